"""`sae push`: what a repository gets, over the hub client's real protocol against a server on loopback."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens

import sae.__main__
from sae import Sae, SaeConfig
from sae.dictionary.spec import Spec
from sae.formats.card import card
from sae.formats.convert import write_one
from sae.formats.describe import describe
from sae.formats.find import find
from sae.formats.format import About
from sae.formats.upload import upload

CREATED = {"url": "http://127.0.0.1/me/dicts", "name": "me/dicts", "id": "1"}
SHA = "0" * 40


class Hub(ThreadingHTTPServer):
    """A hub of one repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.exists = False
        self.commits = 0
        self.forbids = self.drops = self.takes_what_it_drops = self.keeps_apart = False
        self.page_at = ""
        self.answers: dict[str, tuple[Any, int]] = {}
        self.private = True


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body))}.items():
            self.send_header(name, value)
        if status == 404:
            self.send_header("x-error-code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if not self.server.exists:
            return self.answer({"error": "Repository not found"}, 404)
        files = [{"rfilename": name} for name in self.server.files]
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": SHA}
            for name, content in self.server.files.items()
        ]
        about = {"id": "me/dicts", "sha": SHA, "siblings": files, "private": self.server.private}
        self.answer(entries if "/tree/" in self.path else about)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.server.page_at and self.server.page_at in self.path:
            self.send_response(200)
            self.send_header("content-length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")
        elif found := next((answer for at, answer in self.server.answers.items() if at in self.path), None):
            self.answer(*found)
        elif self.server.forbids:
            return self.answer({"error": "You don't have the rights to create a model under the namespace me"}, 403)
        elif self.path.endswith("/repos/create"):
            self.server.exists = True
            self.answer(CREATED)
        elif "/preupload/" in self.path:
            asked = json.loads(sent)["files"]
            mode = "lfs" if self.server.keeps_apart else "regular"
            modes = [{"path": each["path"], "uploadMode": mode, "shouldIgnore": False} for each in asked]
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            upload = {"upload": {"href": f"http://127.0.0.1:{self.server.server_port}/storage", "header": {}}}
            self.answer({"objects": [{**each, "actions": upload} for each in json.loads(sent)["objects"]]})
        elif "/commit/" in self.path and self.server.drops and not self.server.takes_what_it_drops:
            self.close_connection = True  # without an answer
        elif "/commit/" in self.path:
            for line in sent.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.server.commits += 1
            if self.server.drops:
                return
            self.answer({"commitUrl": f"http://127.0.0.1/me/dicts/commit/{SHA}", "commitOid": SHA, "success": True})
        else:  # the card's front matter
            self.answer({"errors": [], "warnings": []})

    def do_PUT(self) -> None:  # a file that is kept apart: always refused
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer({"error": "The quota is used up"}, 403)


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dictionaries(tmp_path: Path) -> Path:
    for hookpoint in ("layers.0", "layers.1"):
        Sae(32, SaeConfig(num_latents=64, k=4)).save_to_disk(tmp_path / "run" / hookpoint)
    return tmp_path / "run"


PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from sae.__main__ import main
for line in sys.stdin:
    said = io.StringIO(), io.StringIO()
    with redirect_stdout(said[0]), redirect_stderr(said[1]):
        status = main(["push", *json.loads(line)])
    print(json.dumps([status, *(one.getvalue() for one in said)]), flush=True)
"""
Push = Callable[..., tuple[int, str, str]]


@contextmanager
def pushes(server: Hub, home: Path, *, token: str = "hf_secret") -> Iterator[Push]:
    """A process that runs `sae push` with the given arguments, again and again: status, output, errors."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def push(*arguments: str) -> tuple[int, str, str]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        status, out, err = json.loads(process.stdout.readline())
        return status, out, err

    try:
        yield push
    finally:
        process.kill()
        process.communicate()


def test_everything_is_pushed_in_one_commit_never_over_others_files_and_loads_as_what_was_saved(
    dictionaries: Path, tmp_path: Path
) -> None:
    with hub() as server, pushes(server, tmp_path / "home") as push:
        status, out, err = push(str(dictionaries), "me/dicts", "--formats", "saelens")
        assert status == 0, err
        assert server.commits == 1 and "hf_secret" not in out + err
        for name in ("layers.0/sae.safetensors", "layers.1/cfg.json"):
            assert server.files[name] == (dictionaries / name).read_bytes()
        assert "saelens/layers.1/sae_weights.safetensors" in server.files
        card = server.files["README.md"].decode()
        assert card.startswith("---\nlibrary_name: ") and '"sparse-autoencoder"' in card and "layers.1" in card
        assert 'Sae.load_from_hub("me/dicts", "layers.0")' in card and str(tmp_path) not in card

        server.forbids = True
        status, out, err = push(str(dictionaries), "me/dicts", "--force")
        assert status == 2 and "me/dicts cannot be written on the hub (" in err and "hf_secret" not in err
        assert len(err.strip().splitlines()) == 1 and server.commits == 1
        server.forbids = False

        status, out, err = push(str(dictionaries), "me/dicts")
        assert status == 2 and "me/dicts holds README.md" in err and server.commits == 1
        assert len(err.strip().splitlines()) == 1

        status, out, err = push(str(dictionaries), "me/dicts", "--force")
        assert status == 0 and server.commits == 2
    for name, content in server.files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    x = torch.randn(3, 32)
    loaded = Sae.load_many(tmp_path / "copy")
    assert list(loaded) == ["layers.0", "layers.1"]
    for hookpoint, one in loaded.items():
        assert one(x).recon.equal(Sae.load_from_disk(dictionaries / hookpoint)(x).recon)


@pytest.mark.parametrize("takes", [False, True])
def test_a_connection_that_breaks_at_the_commit_is_one_line_that_does_not_say_whether_it_was_taken(
    dictionaries: Path, tmp_path: Path, *, takes: bool
) -> None:
    with hub() as server, pushes(server, tmp_path / "home") as push:
        server.drops, server.takes_what_it_drops = True, takes
        status, out, err = push(str(dictionaries), "me/dicts")
        assert (status, len(err.strip().splitlines())) == (2, 1) and bool(server.files) is takes
        assert err.startswith("sae: error: me/dicts did not confirm the commit (") and "hf_secret" not in err
        assert "all of it is in me/dicts, or nothing" in err
        server.drops = False
        assert push(str(dictionaries), "me/dicts", *["--force"] * takes)[0] == 0 and server.commits == 1 + takes


def test_a_refused_file_and_a_page_in_place_of_an_answer_are_told_with_their_reason(
    dictionaries: Path, tmp_path: Path
) -> None:
    with hub() as server, pushes(server, tmp_path / "home") as push:
        for stage in ("/repos/create", "/preupload/", "/commit/"):
            server.page_at = stage
            status, out, err = push(str(dictionaries), "me/dicts")
            assert (status, len(err.strip().splitlines())) == (2, 1), stage
            does = "did not confirm the commit" if stage == "/commit/" else "cannot be written on the hub"
            assert f"me/dicts {does} (what answered is not the hub, or a proxy" in err, stage
        server.page_at, server.keeps_apart = "", True
        status, out, err = push(str(dictionaries), "me/dicts")
        said = err.strip().splitlines()[-1]
        assert status == 2 and said.startswith("sae: error: me/dicts cannot be written on the hub (Error while upload")
        assert "403 Forbidden" in said and server.files == {} and "hf_secret" not in out + err


REFUSED = {"oid": "0" * 64, "size": 1, "error": {"code": 403, "message": "over your quota"}}


@pytest.mark.parametrize(
    ("at", "answer", "says"),
    [
        ("/objects/batch", ({"objects": [REFUSED]}, 200), "LFS batch API returned errors: Encountered"),
        ("/objects/batch", ({}, 500), "500"),
        ("/commit/", ({"error": "over your quota"}, 400), "Bad request for commit endpoint: over your quota"),
        ("/commit/", ({}, 500), "500"),
    ],
)
def test_only_an_error_of_the_commit_that_is_no_refusal_leaves_it_open(
    dictionaries: Path, tmp_path: Path, at: str, answer: tuple[Any, int], says: str
) -> None:
    with hub() as server, pushes(server, tmp_path / "home") as push:
        server.keeps_apart, server.answers = at != "/commit/", {at: answer}
        status, _, err = push(str(dictionaries), "me/dicts")
    said = err.strip().splitlines()[-1]
    is_open = at == "/commit/" and answer[1] == 500
    does = "did not confirm the commit" if is_open else "cannot be written on the hub"
    assert status == 2 and said.startswith(f"sae: error: me/dicts {does} (") and says in said
    assert ("or nothing" in said) is is_open and server.files == {}
    assert "over your quota" in said or answer[1] == 500


def test_what_the_client_will_not_send_is_no_open_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: Any, **options: Any) -> None:
        raise ValueError("Invalid metadata in README.md.")

    for name in ("create_repo", "preupload_lfs_files"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", lambda *given, **options: None)
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", refuses)
    with pytest.raises(ValueError, match=r"cannot be written on the hub \(Invalid metadata in README.md"):
        upload("me/dicts", {"a": b""}, token="hf_secret", private=False, message="")


@pytest.mark.parametrize("stage", ["preupload_lfs_files", "create_commit"])
def test_ctrl_c_while_files_are_sent_does_not_say_that_nothing_was(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def stopped(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for name in ("create_repo", "preupload_lfs_files"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", lambda *given, **options: None)
    monkeypatch.setattr(f"huggingface_hub.HfApi.{stage}", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        upload("me/dicts", {"a": b""}, token="hf_secret", private=False, message="")
    assert stop.value.__notes__[0].startswith("all of it is in me/dicts, or nothing")


def test_what_is_to_be_private_never_goes_into_a_public_repository(dictionaries: Path, tmp_path: Path) -> None:
    with hub() as server, pushes(server, tmp_path / "home") as push:
        server.exists, server.private = True, False
        status, out, err = push(str(dictionaries), "me/dicts", "--private", "--force")
        assert (status, len(err.strip().splitlines())) == (2, 1) and "me/dicts is there and public" in err
        assert server.files == {}
        server.private = True
        assert push(str(dictionaries), "me/dicts", "--private")[0] == 0 and server.commits == 1


def test_a_missing_token_is_told_before_anything_is_written(dictionaries: Path, tmp_path: Path) -> None:
    with hub() as server, pushes(server, tmp_path / "home", token="") as push:
        status, out, err = push(str(dictionaries), "me/dicts")
    assert (status, out, len(err.strip().splitlines())) == (2, "", 1) and "needs a token" in err


def test_what_our_own_format_cannot_say_is_pushed_in_saelens_and_loads_as_what_was_saved(tmp_path: Path) -> None:
    cfg = SaeConfig(num_latents=64, k=4)
    one = Sae(32, cfg, spec=Spec(cfg, 32, 32, 64, layer_norm=True))
    write_one(tmp_path / "dicts" / "layers.3", one.saved(), "saelens", About(hookpoint="layers.3"))
    with hub() as server, pushes(server, tmp_path / "home") as push:
        status, out, err = push(str(tmp_path / "dicts"), "me/dicts", "--formats", "saelens")
    assert status == 0, err
    assert "in saelens's format: an autoencoder in EleutherAI's format must" in out
    assert set(server.files) == {"README.md", "layers.3/cfg.json", "layers.3/sae_weights.safetensors"}
    assert 'SAE.load_from_disk("layers.3")' in server.files["README.md"].decode()
    for name, content in server.files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (loaded,) = Sae.load_many(tmp_path / "copy").values()
    x = torch.randn(3, 32)
    assert torch.equal(loaded(x).recon, Sae.load_from_disk(tmp_path / "dicts" / "layers.3")(x).recon)


@pytest.mark.parametrize("kind", [{}, {"selection": "batchtopk"}, {"crosscode": True}, {"cross_layer": True}], ids=str)
def test_a_card_shows_what_loads_these_dictionaries(tmp_path: Path, kind: dict[str, Any]) -> None:
    cfg = SaeConfig(num_latents=64, k=4, **kind)
    several = cfg.crosscode or cfg.cross_layer
    spec = Spec(cfg, 32, 32, 64, reads=("a.input",), writes=("a", "b"), widths=(16, 16)) if several else None
    Sae(32, cfg, spec=spec).save_to_disk(tmp_path / "a")
    found = {name: describe(name, place) for name, place in find(tmp_path).items()}
    text = card("me/dicts", found, About(), ["eleuther"], run={}, measured={}, license="mit")
    assert ("from sparsify import" in text) == (kind == {})
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for snippet in snippets:
        compile(snippet, "card", "exec")
    assert ("coders(layers)" in snippets[0]) == cfg.cross_layer and '"me/dicts"' in snippets[0]


def test_a_card_names_both_models_of_a_crosscoder_of_two(tmp_path: Path) -> None:
    cfg = SaeConfig(num_latents=64, k=4, crosscode=True)
    Sae(32, cfg, spec=Spec(cfg, 32, 32, 64, writes=("a:x", "b:x"), widths=(16, 16))).save_to_disk(tmp_path / "it")
    found = {name: describe(name, place) for name, place in find(tmp_path).items()}
    about = About(model="org/base", model_b="org/chat")
    text = card("me/dicts", found, about, ["eleuther"], run={}, measured={}, license="mit")
    assert "of `org/base` and `org/chat`." in text and 'base_model: ["org/base", "org/chat"]' in text
    text = card("me/dicts", found, about._replace(model="/models/here"), [], run={}, measured={}, license="mit")
    assert 'base_model: "org/chat"' in text


def _pushed(kind: str) -> dict[str, Sae]:
    """Dictionaries of a model of three blocks that are 32 wide, by name: several labels where a sweep trained them."""
    if kind != "cross-layer":
        options: dict[str, Any] = (
            {"selection": "batchtopk"} if kind == "batchtopk" else {"transcode": kind == "transcoder"}
        )
        return {f"layers.{i}.mlp": Sae(32, SaeConfig(num_latents=64, k=4, **options)) for i in range(2)}
    names = [f"layers.{i}.mlp" for i in range(3)]
    found = {}
    for label in ("k4", "k8"):
        for i, name in enumerate(names):
            cfg = SaeConfig(num_latents=64, k=int(label[1:]), cross_layer=True)
            width = 32 * (3 - i)
            spec = Spec(
                cfg, 32, width, 64, reads=(f"{name}.input",), writes=tuple(names[i:]), widths=(32,) * (3 - i)
            )  # fmt: skip
            found[f"{label}/{name}"] = Sae(32, cfg, d_out=width, spec=spec)
    return found


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "transcoder", "cross-layer"])
def test_the_cards_own_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of a sweep of cross-layer transcoders too, whose labels are not to be mixed."""
    for name, one in _pushed(kind).items():
        one.save_to_disk(tmp_path / "me/dicts" / name)
    found = {name: describe(name, place) for name, place in find(tmp_path / "me/dicts").items()}
    text = card("me/dicts", found, About(), [], run={}, measured={}, license="mit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.formats.hub.fetch", lambda name, wanted, **_: find(Path(name), wanted))
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model, ran = tiny_model("llama", causal_lm=True), {}
    exec(snippet, {"model": model, "tokens": tiny_tokens()}, ran)
    if kind == "cross-layer":
        assert list(ran["layers"]) == ["k4/layers.0.mlp", "k4/layers.1.mlp", "k4/layers.2.mlp"]
    else:
        assert ran["sae"].W_dec.equal(Sae.load_many(tmp_path / "me/dicts")["layers.0.mlp"].W_dec)


def test_a_dry_run_lists_the_files_and_asks_nobody(dictionaries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sae.__main__.main(["push", str(dictionaries), "me/dicts", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "layers.1/sae.safetensors" in out and "nothing was sent" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "dicts"], "must be OWNER/NAME, got 'dicts'"),
        (["RUN", "../dicts"], "must be OWNER/NAME, got '../dicts'"),
        (["RUN", "me/dicts\n"], "must be OWNER/NAME, got 'me/dicts"),
        (["RUN"], "SOURCE and OWNER/NAME must be given"),
        (["nowhere", "me/dicts"], "nowhere is none"),
        (["RUN", "me/dicts", "--formats", "gguf"], "format must be one of"),
        (["RUN", "me/dicts"], "offline mode"),
        (["RUN", "me/dicts", "--formats", "circuit-tracer", "--dry_run"], "circuit-tracer has transcoders"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    dictionaries: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [str(dictionaries) if each == "RUN" else each for each in arguments]
    assert sae.__main__.main(["push", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1

"""A hub repository of many dictionaries: only what is named is fetched, over the real client's protocol."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from strangers import STRANGERS, gemma_scope

from sae.formats.files import shapes_far

CODE = """
import json, sys
from sae import Sae
sae = Sae.load_from_hub("owner/repo", "h.3")
layer = Sae.load_from_hub("owner/repo", "layers.1.post_feedforward_layernorm")
print(json.dumps([sae.d_in, sae.num_latents, layer.d_out]))
"""


Files = dict[str, bytes]


def repository(root: Path, layers: tuple[int, ...]) -> Files:
    for layer in layers:
        folder = root / f"layer_{layer}"
        STRANGERS["saelens topk"].write(folder)
        cfg = json.loads((folder / "cfg.json").read_text())
        cfg["metadata"]["hook_name"] = f"blocks.{layer}.hook_resid_post"
        (folder / "cfg.json").write_text(json.dumps(cfg))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def of_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fake hub serves models; yields who may read, by token (empty: anybody)."""
    allowed: list[str] = []
    get = fake_hub._Handler.do_GET

    def serve(handler: fake_hub._Handler) -> None:
        path = handler.path.replace("/api/models/", "/api/datasets/")
        handler.path = path if path.startswith("/api/") else f"/datasets{path}"
        if allowed and handler.headers.get("Authorization") not in allowed:
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            return handler._send(401, error="RepoNotFound")
        get(handler)

    for verb in ("do_GET", "do_HEAD", "do_POST"):
        monkeypatch.setattr(fake_hub._Handler, verb, serve)
    yield allowed


@pytest.fixture
def asked(of_models: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of all requests to the fake hub, `<range> <path>` where a part is asked for."""
    found: list[str] = []
    get = fake_hub._Handler.do_GET

    def count(handler: fake_hub._Handler) -> None:
        part = handler.headers.get("Range")
        found.append(f"{part} {handler.path}" if part else handler.path)
        get(handler)

    for verb in ("do_GET", "do_HEAD", "do_POST"):
        monkeypatch.setattr(fake_hub._Handler, verb, count)
    return found


def run(code: str, endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | own | environment, capture_output=True, text=True, timeout=100)


def test_one_layer_of_26_is_loaded_without_a_request_for_the_weights_of_the_others(
    tmp_path: Path, asked: list[str]
) -> None:
    files = repository(tmp_path / "repo", tuple(range(26)))
    STRANGERS["circuit-tracer CLT"].write(tmp_path / "repo" / "clt")
    files |= {f"clt/{path.name}": path.read_bytes() for path in (tmp_path / "repo" / "clt").iterdir()}
    with fake_hub.fake_hub({"owner/repo": {"main": files}}, "owner/gated") as endpoint:
        done = run(CODE, endpoint, tmp_path / "home")
    assert done.returncode == 0, done.stderr[-800:]
    assert json.loads(done.stdout) == [8, 24, 16]  # and a layer of a cross-layer transcoder, with its decoders
    weights = [path for path in asked if path.endswith("sae_weights.safetensors")]
    assert weights and all("/layer_3/" in path for path in weights) and len(weights) <= 2
    assert len(asked) <= 2 * 26 + 20  # the configurations, which say which layer is where, each asked for and fetched


def test_a_dictionary_that_is_named_by_its_path_needs_no_configuration_of_another(
    tmp_path: Path, asked: list[str]
) -> None:
    """A repository may have a thousand of them."""
    files = repository(tmp_path / "repo", tuple(range(26)))
    code = """
from sae import Sae
print(*Sae.load_many("owner/repo", ["layer_3", "layer_11"]))
print(Sae.load_from_hub("owner/repo", "layer_3").num_latents)
"""
    with fake_hub.fake_hub({"owner/repo": {"main": files}}, "owner/gated") as endpoint:
        done = run(code, endpoint, tmp_path / "home")
    assert done.stdout.split() == ["layer_3", "layer_11", "24"], done.stderr[-800:]
    assert {path.split("/")[-2] for path in asked if "/layer_" in path} == {"layer_3", "layer_11"}


def test_of_a_glob_only_what_matches_is_fetched_and_one_that_matches_nothing_says_what_there_is(
    tmp_path: Path, asked: list[str]
) -> None:
    files = repository(tmp_path / "repo", tuple(range(12)))
    code = """
from sae.formats.hub import fetch, local_copy
print(*fetch("owner/repo", ["h.1?", "h.3"]))
print(len(list(local_copy("owner/repo", ["h.3"]).glob("*/sae_weights.safetensors"))))
try:
    fetch("owner/repo", ["h.7?"])
except ValueError as error:
    print(error)
"""
    with fake_hub.fake_hub({"owner/repo": {"main": files}}, "owner/gated") as endpoint:
        done = run(code, endpoint, tmp_path / "home")
    named, count, refused = done.stdout.splitlines()
    assert named == "h.3 h.10 h.11" and count == "3", done.stderr[-800:]
    assert "must hold ['h.7?'], but holds ['h.0', 'h.1'" in refused
    weights = {path.split("/")[-2] for path in asked if path.endswith("sae_weights.safetensors")}
    assert weights == {"layer_3", "layer_10", "layer_11"}


def large(root: Path) -> Files:
    """A dictionary of 4 MB in each kind of file."""
    n, d = 2_000, 256
    (root / "layer_0/width_2k").mkdir(parents=True)
    (root / "layer_1_width_2k").mkdir()
    rows, columns = torch.randn(n, d), torch.randn(d, n)
    biases = {"b_enc": torch.randn(n), "b_dec": torch.randn(d), "threshold": torch.rand(n)}
    named = {"W_enc": columns, "W_dec": rows, **biases}
    np.savez(root / "layer_0/width_2k/params.npz", **{name: tensor.numpy() for name, tensor in named.items()})
    save_file({"w_enc": columns, "w_dec": rows, **biases}, root / "layer_1_width_2k/params.safetensors")
    torch.save({"W_enc": rows, "W_dec": columns, **{name: biases[name] for name in ("b_enc", "b_dec")}},
               root / "layer2.sae.pt")  # fmt: skip
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_a_repository_holds_is_told_by_headers_alone(tmp_path: Path, asked: list[str]) -> None:
    files = large(tmp_path / "repo")
    code = "from sae.__main__ import main; raise SystemExit(main(['info', 'owner/repo-L0_50']))"
    with fake_hub.fake_hub({"owner/repo-L0_50": {"main": files}}, "owner/gated") as endpoint:
        done = run(code, endpoint, tmp_path / "home")
    told = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[:4] for line in told] == [
        ["layers.0", "gemma-scope", "256", "2,000"],
        ["layers.1", "gemma-scope-2", "256", "2,000"],
        ["layers.2", "qwen-scope", "256", "2,000"],
    ], done.stderr[-800:]
    assert ["topk,", "k", "50", "float32", "4.1"] == told[2][4:]
    whole = [path for path in asked if path.endswith((".npz", ".safetensors", ".pt")) and "bytes=" not in path]
    parts = [re.findall(r"bytes=(\d+)-(\d+) ", path) for path in asked]
    fetched = sum(int(end) - int(start) + 1 for part in parts for start, end in part)
    assert not whole and 0 < fetched < 0.2 * sum(map(len, files.values()))
    assert not [path for path in (tmp_path / "home").rglob("*") if path.suffix in (".npz", ".safetensors", ".pt")]


def test_the_header_of_a_cut_or_damaged_file_far_away_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, content in large(tmp_path / "repo").items():
        whole = shapes_far(Path(name), io.BytesIO(content), len(content))
        assert (2_000, 256) in {shape.dims for shape in whole.values()}
        for damaged in (content[: len(content) // 2], content[:5], b"", b"\xff" * 1000, content[:-1]):
            with pytest.raises(ValueError, match=f"{name} must be .* damaged") as error:
                shapes_far(Path(name), io.BytesIO(damaged), len(damaged))
            assert "\n" not in str(error.value)


def test_a_set_whose_files_lie_in_another_repository_is_found_there(tmp_path: Path, asked: list[str]) -> None:
    """circuit-tracer's set of Gemma Scope's transcoders is such a list."""
    root = tmp_path / "gemma-scope-2b-pt-transcoders"
    names = [f"layer_{layer}/width_16k/average_l0_{20 + layer}/params.npz" for layer in range(3)]
    for name in [*names, "layer_1/width_16k/average_l0_99/params.npz"]:
        gemma_scope((root / name).parent)
    theirs = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.npz")}
    links = "".join(f"- hf://google/gemma-scope-2b-pt-transcoders/{name}?revision=v1\n" for name in names)
    config = f"model_name: google/gemma-2-2b\nmodel_kind: transcoder_set\ntranscoders:\n{links}"
    code = """
from sae import Sae
print(*Sae.load_many("owner/set"))
print(Sae.load_from_hub("owner/set", "layers.2.post_feedforward_layernorm").spec.reads)
"""
    listed = {"config.yaml": config.encode(), "features/index.json.gz": b""}
    gap = {"config.yaml": config.replace("average_l0_21", "average_l0_77").encode()}
    repos = {"owner/set": {"main": listed}, "owner/gap": {"main": gap},
             "google/gemma-scope-2b-pt-transcoders": {"main": {}, "v1": theirs}}  # fmt: skip
    with fake_hub.fake_hub(repos, "owner/gated") as endpoint:
        one = run(code.replace("print(*", "#"), endpoint, tmp_path / "home")
        assert one.stdout.split() == ["('layers.2.pre_feedforward_layernorm',)"], one.stderr[-800:]
        assert {path.split("/")[-2] for path in asked if path.endswith("params.npz")} == {"average_l0_22"}
        lacking = run(code.replace("owner/set", "owner/gap"), endpoint, tmp_path / "home")
        assert "which must have layer_1/width_16k/average_l0_77/params.npz, but has not (1 of 3" in lacking.stderr
        part = run(code.replace("print(*", "#"), "http://127.0.0.1:9", tmp_path / "home", HF_HUB_OFFLINE="1")
        assert part.stdout == one.stdout, part.stderr[-800:]  # which needs no file but those that are there
        every = run(code, endpoint, tmp_path / "home")
    offline = run(code, "http://127.0.0.1:9", tmp_path / "home", HF_HUB_OFFLINE="1")
    for done in (every, offline):
        assert done.returncode == 0, done.stderr[-800:]
        assert done.stdout.splitlines()[0].split() == [
            f"layers.{layer}.post_feedforward_layernorm" for layer in range(3)
        ]


def test_a_revision_with_a_token_into_a_cache_of_ones_own_which_is_read_offline(
    tmp_path: Path, of_models: list[str]
) -> None:
    old, new = repository(tmp_path / "old", (3,)), repository(tmp_path / "new", (3, 4))
    of_models.append("Bearer hf_secret")
    cache = tmp_path / "cache"
    code = f"""
from sae import Sae
for options in ({{}}, {{"token": "hf_secret", "cache_dir": {str(cache)!r}}}):
    try:
        print(*Sae.load_many("owner/repo", revision="v1", **options), "|", *Sae.load_many("owner/repo", **options))
        print(Sae.load_from_hub("owner/repo", "h.3", revision="v1", **options).num_latents)
    except ValueError as error:
        print(error)
"""
    with fake_hub.fake_hub({"owner/repo": {"main": new, "v1": old}}, "owner/gated") as endpoint:
        reached = run(code, endpoint, tmp_path / "home")
    nowhere = "http://127.0.0.1:9"
    for done in (
        reached,
        run(code, nowhere, tmp_path / "home", HF_HUB_OFFLINE="1"),
        run(code, nowhere, tmp_path / "home"),
    ):
        assert done.returncode == 0, done.stderr[-800:]
        refused, *loaded = done.stdout.splitlines()
        assert "owner/repo must be a folder or a repository on the hub" in refused
        assert loaded == ["h.3 | h.3 h.4", "24"]
    assert cache.is_dir() and not list((tmp_path / "home").rglob("*.safetensors"))

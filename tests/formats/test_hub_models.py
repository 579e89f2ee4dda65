"""A hub repository of many dictionaries: only what is named is fetched, over the real client's protocol."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from strangers import STRANGERS

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

    monkeypatch.setattr(fake_hub._Handler, "do_GET", serve)
    monkeypatch.setattr(fake_hub._Handler, "do_HEAD", serve)
    yield allowed


def run(code: str, endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | own | environment, capture_output=True, text=True, timeout=100)


def test_one_layer_of_26_is_loaded_without_a_request_for_the_weights_of_the_others(
    tmp_path: Path, of_models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = fake_hub._Handler.do_GET

    def count(handler: fake_hub._Handler) -> None:
        asked.append(handler.path)
        get(handler)

    monkeypatch.setattr(fake_hub._Handler, "do_GET", count)
    monkeypatch.setattr(fake_hub._Handler, "do_HEAD", count)
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

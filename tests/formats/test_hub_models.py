"""A hub repository of many dictionaries: only what is named is fetched, over the real client's protocol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data import fake_hub
from strangers import STRANGERS

CODE = """
import json, sys
from sae import Sae
sae = Sae.load_from_hub("owner/repo", "h.3")
print(json.dumps([sae.d_in, sae.num_latents]))
"""


def test_one_dictionary_of_a_repository_is_fetched_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in (3, 4, 5):
        folder = tmp_path / "repo" / f"layer_{layer}"
        STRANGERS["saelens topk"].write(folder)
        cfg = json.loads((folder / "cfg.json").read_text())
        cfg["metadata"]["hook_name"] = f"blocks.{layer}.hook_resid_post"
        (folder / "cfg.json").write_text(json.dumps(cfg))
    root = tmp_path / "repo"
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    get = fake_hub._Handler.do_GET

    def of_models(handler: fake_hub._Handler) -> None:
        path = handler.path.replace("/api/models/", "/api/datasets/")
        handler.path = path if path.startswith("/api/") else f"/datasets{path}"
        get(handler)

    monkeypatch.setattr(fake_hub._Handler, "do_GET", of_models)
    monkeypatch.setattr(fake_hub._Handler, "do_HEAD", of_models)
    with fake_hub.fake_hub({"owner/repo": {"main": files}}, "owner/gated") as endpoint:
        environment = os.environ | {
            "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stderr[-800:]
    assert json.loads(done.stdout) == [8, 24]
    fetched = {path.parent.name + "/" + path.name for path in (tmp_path / "home").rglob("*.*s*") if path.is_symlink()}
    assert {name for name in fetched if name.endswith("sae_weights.safetensors")} == {"layer_3/sae_weights.safetensors"}

"""The README's main command, on the real language model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sae import Sae

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demonstration_reconstructs_held_out_tokens_of_a_real_model(tmp_path: Path) -> None:
    """A third of the tokens, which is enough for these bounds."""
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--save_dir", str(tmp_path / "runs")]
    command += ["--max_tokens", "60000"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "runs").iterdir()
    results = json.loads((run / "evaluation.json").read_text())
    assert list(results) == ["layers.2", "layers.6", "layers.10"]
    for name, metrics in results.items():
        assert metrics["fvu"] < 0.25, name
        assert metrics["tokens"] > 4000 and 20 < metrics["l0"] <= 32
        assert name in done.stdout and f"{metrics['fvu']:.4f}" in done.stdout
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(Sae.load_many(run)) == list(results)

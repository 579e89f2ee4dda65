"""The documentation: the site is built without a warning."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not there: pip install '.[docs]'; .ci/run does")
def test_the_site_is_built_without_a_warning_and_has_the_docstrings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of mkdocs-material, about versions that are not used here
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "reference" / "sae.html").read_text()
    assert 'id="sae.dictionary.autoencoder.Sae.encode"' in page and "Keep the latents of each token" in page
    assert sorted(path.stem for path in (tmp_path / "site" / "tutorials").glob("*.html")) == [
        "evaluate", "first-run", "load-others", "look-at-latents", "several-gpus", "sweep"
    ]  # fmt: skip

"""For every test: shapes are checked, memory starts as NaN, and no network is used."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
# Tests run side by side, and on tiny matrices. There NumPy's and PyTorch's other threads wait for each other, spinning:
# one test of probes took 66 CPU seconds, and minutes. Processes that tests start inherit it.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import typecheck  # noqa: E402, F401
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("sae", "typecheck.checked")

import pytest  # noqa: E402
import torch  # noqa: E402
from smoke import SMOKE  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_empty = torch.empty
with torch.device("meta"):
    torch.empty(0)  # torch remembers its constructors at the first device context: let it be before they are replaced

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the smoke selection, or the one case of them that it names."""
    names = {name for of_room in SMOKE.values() for name in of_room}
    for item in items:
        name = f"{item.path.relative_to(Path(__file__).parent).as_posix()}::{item.name}"
        if not names.isdisjoint((name, name.split("[")[0])):
            item.add_marker("smoke")


@pytest.fixture(autouse=True)
def memory_starts_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that an operation forgot to write shows as NaN, instead of as what lay there before."""

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: fill(_empty(*size, **options)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *size, **options: fill(new_empty(self, *size, **options))
    )


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def compiler_starts_anew() -> None:
    torch._dynamo.reset()


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without curves: drawing takes longer than training here; tests/runs/test_log.py looks at pictures."""
    monkeypatch.setattr("sae.report.training.draw_curves", lambda records, path: None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, for tests that are skipped where there is none (`chromium.PATH`)."""
    from chromium import PATH
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
        yield browser
        browser.close()

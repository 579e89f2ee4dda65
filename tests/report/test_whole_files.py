"""Every file of a report is whole, or not there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from full_disk import files_of_at_most

from sae.config import SelftestConfig, SelftestSaeConfig
from sae.evaluation.evaluate import Evaluation
from sae.evaluation.metrics import Quality
from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.evaluation.recovery import Recoveries, Recovery
from sae.evaluation.stability import BINS, SHARED, Stability
from sae.report.evaluation import report_evaluation
from sae.report.selftest import report_selftest
from sae.report.stability import report_stability
from sae.report.training import report
from sae.runs.log import JsonLines


def of_eval(folder: Path) -> None:
    quality = Quality({"fvu": 0.5, "l0": 3.0}, {"fvu": (0.4, 0.6)}, {"0": {"fvu": 0.5}}, [1] * 28)
    variance = {"layers.0": {"top_1_percent_of_tokens": 0.5, "top_1_percent_of_dimensions": 0.5}}
    evaluation = Evaluation({("run", "layers.0"): quality}, variance, 10, 2, 5, has_head=False, causal=False)
    report_evaluation(evaluation, folder, {"model": "m"})


def of_stability(folder: Path) -> None:
    one = Stability("a", "b", "layers.0", (8, 8), 0.5, dict.fromkeys(map(str, SHARED), 0.5), [1] * BINS, "optimal")
    report_stability([one], folder, {})


def of_selftest(folder: Path) -> None:
    one = Recovery(*[0.5] * len(Recovery._fields))
    report_selftest(
        {"": Recoveries(one, one, one)}, SelftestConfig(sae=SelftestSaeConfig(k=4), out=str(folder / "o.json"))
    )


def of_sweep(folder: Path) -> None:
    names = ("k4/layers.0", "k8/layers.0")
    folder.mkdir(exist_ok=True)
    if not (folder / "metrics.jsonl").exists():
        metrics = {f"{name}/{metric}": 0.5 for name in names for metric in ("fvu", "l0", "dead_fraction", "auxk")}
        lines = JsonLines(folder / "metrics.jsonl")
        lines.write({"step": 1, "tokens": 8.0, "tokens_per_second": 9.0, **metrics})
        lines.close()
    results = dict.fromkeys(names, ReconstructionMetrics(9, 0.5, 0.5, 0, 4.0, 0.1))
    report(folder, folder, results, 99, dict.fromkeys(names, 1.0))


@pytest.mark.parametrize("write", [of_eval, of_stability, of_selftest, of_sweep])
def test_what_a_disk_does_not_take_is_not_there_and_the_rest_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], None]
) -> None:
    """Without `capsys` what is printed would go to a file, too."""
    write(tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for limit in (min(map(len, whole.values())) // 2, max(map(len, whole.values())) - 100):
        cut = tmp_path / str(limit)
        if "metrics.jsonl" in whole:
            cut.mkdir()
            (cut / "metrics.jsonl").write_bytes(whole["metrics.jsonl"])
        with files_of_at_most(limit), pytest.raises(OSError, match="File too large"):
            write(cut)
        left = {path.name: path.read_bytes() for path in cut.iterdir()}
        assert len(left) < len(whole) and left.items() <= whole.items()

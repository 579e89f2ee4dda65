"""Goals of speed, memory and quality, and what was measured last.

Two readings. `table` takes the numbers from the files in benchmarks/results/, for docs/benchmarks/speed.md. `table_of`
takes them from one report of `python -m benchmarks.speed`. What has no file there has its two numbers here.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from benchmarks import RESULTS
from benchmarks.harness.report import Report, Row, markdown

XEON, EPYC = "2 cores, Xeon with AMX", "2 cores, EPYC without AMX"
H100 = "H100"
CPU, GPU = "any CPU", "any GPU"
"""Of goals that are held against one report alone."""
Pair = tuple[float, float]
"""The number that should be small, ours, and what it is held against."""


@dataclass(frozen=True)
class AsTyped:
    """Runs of `benchmarks.as_typed`: medians of seconds a token in training, of peak bytes, or of the slowest window.

    A window is held against our own speed after it.
    """

    file: str
    case: str
    tokens: int
    of: Literal["seconds", "bytes", "window"] = "seconds"

    def pair(self) -> Pair:
        """Ours, and eai-sparsify's; of windows 1, and the window's share of the later speed."""
        rows = [
            row for row in _json(self.file)["rows"] if (row["case"], row["asked_tokens"]) == (self.case, self.tokens)
        ]
        if self.of == "window":
            return 1.0, self._median(rows[0]["runs"], "sae")
        ours, theirs = (self._median(rows[0]["runs"], library) for library in ("sae", "sparsify"))
        return ours, theirs

    def _median(self, runs: Sequence[dict[str, Any]], library: str) -> float:
        return statistics.median(self._number(run) for run in runs if run["library"] == library)

    def _number(self, run: dict[str, Any]) -> float:
        if self.of == "seconds":
            return 1 / float(run["tokens_per_second"])
        return float(run["slowest_window" if self.of == "window" else "peak_bytes"])


@dataclass(frozen=True)
class Rows:
    """Rows of `benchmarks.speed`: our default against a library's best documented setting, or a number."""

    task: str
    tokens: int
    against: str | float = "sparsify"
    file: str | None = None
    """None: only in the report that is being read."""
    section: str = "step"
    setting: str | None = None
    """None: every documented setting."""
    of: Literal["seconds", "bytes", "fvu"] = "seconds"

    def pair(self) -> Pair | None:
        """The pair of `file`'s rows."""
        return self.pair_of(_report(self.file).rows) if self.file else None

    def pair_of(self, rows: Sequence[Row]) -> Pair | None:
        """Ours and theirs; None if one of them is not among the rows."""
        place = (self.section, self.task, self.tokens)
        found = [row for row in rows if (row.section, row.task, row.tokens) == place]
        ours = self._numbers([row for row in found if (row.library, row.setting) == ("sae", "default")])
        if isinstance(self.against, float):
            theirs = [self.against]
        else:
            theirs = self._numbers([row for row in found if row.library == self.against and self._counts(row)])
        return (ours[0], min(theirs)) if ours and theirs else None

    def _counts(self, row: Row) -> bool:
        return row.documented and self.setting in (None, row.setting)

    def _numbers(self, rows: Sequence[Row]) -> list[float]:
        if self.of == "bytes":
            return [row.peak_bytes for row in rows if row.peak_bytes is not None]
        summaries = [row.fvu if self.of == "fvu" else row.seconds for row in rows]
        return [summary.median for summary in summaries if summary is not None]


@dataclass(frozen=True)
class Noted:
    """Two numbers that no file has, with the command that measured them."""

    ours: float
    other: float
    command: str

    def pair(self) -> Pair:
        """As they were noted."""
        return self.ours, self.other


@dataclass(frozen=True)
class Goal:
    """How many times as large as ours the other number should be."""

    what: str
    where: str
    reach: float
    found: AsTyped | Rows | Noted | None
    """None: not measured."""
    must: float = 0.0
    """What less than `reach` is still acceptable; 0: nothing is."""
    digits: int = 2
    """Decimals of the ratio."""

    def line(self, pair: Pair | None) -> dict[str, str]:
        """Cells of a table: what to reach, what was measured, and whether it is reached."""
        cells = {"goal": self.what, "machine": self.where, "reach": self._times(self.reach)}
        if self.must:
            cells["must"] = self._times(self.must)
        if pair is None:
            return cells | {"verdict": "not measured"}
        ours, other = pair
        return cells | {"measured": self._times(other / ours), "verdict": self.verdict(other / ours)}

    def verdict(self, ratio: float) -> str:
        """`reached`, `must` or `missed`."""
        if ratio >= self.reach:
            return "reached"
        return "must" if self.must and ratio >= self.must else "missed"

    def _times(self, ratio: float) -> str:
        return f"{ratio:.{self.digits}f} ×"


_XEON, _EPYC = "2026-11-28-xeon-as-typed.json", "2026-11-29-epyc-as-typed.json"
_EPYC_NEWEST, _STEPS = "2026-11-30-epyc-as-typed.json", "2026-11-29-epyc-steps.json"
_EPYC_A = "2026-11-30-epyc-step-a.json"
_START = "python -m benchmarks.speed.start --against CHECKOUT"
_H100_A, _H100_B, _H100_RUN = (f"2026-11-27-h100-{what}.json" for what in ("step-a", "step-b", "end-to-end"))

GOALS = (
    Goal("as typed, 18,432 latents, 65,536 tokens", XEON, 3.2, AsTyped(_XEON, "default-65k", 65_536)),
    Goal("as typed, 18,432 latents, 500,000 tokens", XEON, 3.2, AsTyped(_XEON, "default-500k", 500_000)),
    Goal("as typed, 4608 latents, 65,536 tokens", XEON, 3.5, AsTyped(_XEON, "small-65k", 65_536)),
    Goal("as typed, 4608 latents, 500,000 tokens", XEON, 4, AsTyped(_XEON, "small-500k", 500_000)),
    Goal("from a cache, 18,432 latents", XEON, 4, AsTyped(_XEON, "cached-500k", 500_000)),
    Goal("as typed, 18,432 latents, 65,536 tokens", EPYC, 3.2, AsTyped(_EPYC_NEWEST, "default-65k", 65_536)),
    Goal("as typed, 4608 latents, 65,536 tokens", EPYC, 3.5, AsTyped(_EPYC_NEWEST, "small-65k", 65_536)),
    Goal("from a cache, 18,432 latents", EPYC, 4, AsTyped(_EPYC, "cached-500k", 500_000)),
    Goal("as typed, all 30 layers, 4608 latents", EPYC, 3.5, AsTyped(_EPYC_NEWEST, "all-layers-32k", 32_768)),
    Goal("memory of 8 hookpoints, 18,432 latents", EPYC, 3, AsTyped(_EPYC_NEWEST, "memory-8", 32_768, "bytes")),
    Goal("slowest window, against the speed after it: 18,432 latents, 65,536 tokens", XEON, 0.7,
         AsTyped(_XEON, "default-65k", 65_536, "window")),
    Goal("… 500,000 tokens", XEON, 0.7, AsTyped(_XEON, "default-500k", 500_000, "window")),
    Goal("… from a cache", XEON, 0.7, AsTyped(_XEON, "cached-500k", 500_000, "window")),
    Goal("… 18,432 latents, 65,536 tokens", EPYC, 0.7, AsTyped(_EPYC_NEWEST, "default-65k", 65_536, "window")),
    Goal("… 4608 latents, 65,536 tokens", EPYC, 0.7, AsTyped(_EPYC_NEWEST, "small-65k", 65_536, "window")),
    Goal("step, 4608 latents, 4096 tokens", EPYC, 6, Rows("small", 4096, file=_STEPS)),
    Goal("step, 18,432 latents, 4096 tokens", EPYC, 6, Rows("medium", 4096, file=_STEPS)),
    Goal("step, 18,432 latents, 1024 tokens", EPYC, 4, Rows("medium", 1024, file=_STEPS)),
    Goal("step (a), 24,576 latents of 768, 4096 tokens", EPYC, 6, Rows("a", 4096, file=_EPYC_A)),
    Goal("memory of that step", EPYC, 3, Rows("a", 4096, of="bytes", file=_EPYC_A)),
    Goal("capped step against Adam's, 18,432 latents, 1024 tokens", EPYC, 1 / 1.1,
         Noted(0.149, 0.121, "python -m benchmarks.speed step --shapes medium --tokens 1024")),
    Goal("`sae eval` of three hookpoints, against the build before", EPYC, 2.5,
         Noted(13.9, 74, "sae eval CHECKPOINT --max_tokens 1024")),
    Goal("to the first step from a `.gguf`, against the build before", XEON, 2, Noted(18.1, 38.1, _START)),
    Goal("… with `--ctx_len 256 --batch_size 16`", XEON, 2, Noted(24.8, 35.4, _START)),
    Goal("… from a folder of transformers", XEON, 2, Noted(15.3, 18.5, _START)),
    Goal("`sae cache` by two processes, against one", XEON, 1.8,
         Noted(20.2, 36.4, "torchrun --nproc_per_node 2 -m sae cache MODEL DATASET")),
    Goal("12 × 24,576 latents on a model of pythia-160m's shape", H100, 4.8,
         Rows("pythia-160m size, 12 layers", 32_768, file=_H100_RUN, section="end to end")),
    Goal("step (a), against 5.1 ms", H100, 1, Rows("a", 32_768, 5.1e-3, _H100_A), must=5.1 / 7.2),
    Goal("step (b), against 62 ms", H100, 1, Rows("b", 16_384, 62e-3, _H100_B)),
    Goal("steps (a) and (b) beside eai-sparsify", H100, 6, None),
    Goal("… beside SAELens", H100, 5, None),
    Goal("… beside dictionary-learning", H100, 12, None),
    Goal("memory of step (b), against eai-sparsify", H100, 5, None),
    Goal("`--compile_lm`, and later parts of a step recorded", H100, 1, None),
    Goal("BatchTopK's and Matryoshka's step against TopK's", H100, 1 / 1.25, None),
    Goal("step (a) beside eai-sparsify", CPU, 6, Rows("a", 4096), must=4),
    Goal("step (a) beside SAELens", CPU, 25, Rows("a", 4096, "sae_lens", setting="default"), must=15),
    Goal("step (a) beside its products in bf16", CPU, 0.65, Rows("a", 4096, "product", setting="bf16"), must=0.45),
    Goal("top-k (a) beside torch.topk", CPU, 5, Rows("a: selection", 4096, "torch.topk", section="stage"), must=3),
    Goal("peak memory of step (a) beside eai-sparsify", CPU, 3, Rows("a", 4096, of="bytes"), must=2),
    Goal("end to end beside eai-sparsify", CPU, 4,
         Rows("smollm2, layers 5 10 15", 2048, section="end to end"), must=3),
    Goal("FVU at equal tokens beside eai-sparsify", CPU, 1,
         Rows("small, Adam", 1024, section="quality", setting="adam", of="fvu"), must=1 / 1.005, digits=4),
    Goal("step (a) beside eai-sparsify", GPU, 6, Rows("a", 32_768), must=4),
    Goal("step (b) beside eai-sparsify", GPU, 5, Rows("b", 16_384), must=3),
    Goal("step (a) beside SAELens", GPU, 12, Rows("a", 32_768, "sae_lens", setting="autocast"), must=8),
    Goal("encode (a), against 1.57 ms of 790 TFLOP/s", GPU, 0.8,
         Rows("a: encode", 32_768, 1.57e-3, section="stage"), must=0.6),
    Goal("end to end, against 300,000 tokens a second", GPU, 1.5,
         Rows("pythia-160m size, 12 layers", 32_768, 32_768 / 3e5, section="end to end"), must=1),
    Goal("peak memory of step (b) beside eai-sparsify", GPU, 5, Rows("b", 16_384, of="bytes"), must=3),
)  # fmt: skip
"""Those of 65,536 and 500,000 tokens are against eai-sparsify 1.3.3 with its defaults, as are the steps."""

COLUMNS = ("goal", "machine", "reach", "measured", "verdict")


def table() -> str:
    """A line for each goal that is held against the files of results."""
    lines = [goal.line(goal.found and goal.found.pair()) for goal in GOALS if goal.where not in (CPU, GPU)]
    return markdown(COLUMNS, lines)


def table_of(report: Report) -> str:
    """A line for each goal that `benchmarks.speed` measures on the report's kind of device."""
    places = (GPU, H100) if report.machine.get("device") == "cuda" else (CPU, EPYC)
    lines = [
        goal.line(goal.found.pair_of(report.rows))
        for goal in GOALS
        if goal.where in places and isinstance(goal.found, Rows)
    ]
    return "### Goals\n\n" + markdown((*COLUMNS[:2], "must", *COLUMNS[2:]), lines)


@cache
def _json(file: str) -> Any:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


@cache
def _report(file: str) -> Report:
    return Report.load(RESULTS / file)

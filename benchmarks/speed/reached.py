"""Every goal of speed and memory beside what was measured last: the table of docs/benchmarks/speed.md.

Numbers come from the files in benchmarks/results/. What has no file there has its two numbers here, and the command.
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
Pair = tuple[float, float]
"""The number that should be small, ours, and what it is held against."""


@dataclass(frozen=True)
class AsTyped:
    """Whole runs of `benchmarks.as_typed`: medians of seconds a token, or of peak bytes."""

    file: str
    case: str
    tokens: int
    of: Literal["seconds", "bytes"] = "seconds"

    def pair(self) -> Pair:
        """Ours, and eai-sparsify's."""
        rows = [
            row for row in _json(self.file)["rows"] if (row["case"], row["asked_tokens"]) == (self.case, self.tokens)
        ]
        ours, theirs = (self._median(rows[0]["runs"], library) for library in ("sae", "sparsify"))
        return ours, theirs

    def _median(self, runs: Sequence[dict[str, Any]], library: str) -> float:
        values = [1 / run["tokens_per_second"] if self.of == "seconds" else run["peak_bytes"] for run in runs
                  if run["library"] == library]  # fmt: skip
        return statistics.median(values)


@dataclass(frozen=True)
class Step:
    """A row of `benchmarks.speed`, against the fastest setting that a library documents, or against seconds."""

    file: str
    task: str
    tokens: int
    against: str | float = "sparsify"

    def pair(self) -> Pair:
        """Seconds: ours in its default, and theirs."""
        rows = [
            row for row in Report.load(RESULTS / self.file).rows if (row.task, row.tokens) == (self.task, self.tokens)
        ]
        ours = [_seconds(row) for row in rows if (row.library, row.setting) == ("sae", "default")]
        if isinstance(self.against, float):
            return ours[0], self.against
        return ours[0], min(_seconds(row) for row in rows if row.library == self.against and row.documented)


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
    found: AsTyped | Step | Noted | None
    """None: not measured."""

    @property
    def ratio(self) -> float | None:
        """What was measured."""
        if self.found is None:
            return None
        ours, other = self.found.pair()
        return other / ours


_XEON, _EPYC = "2026-11-28-xeon-as-typed.json", "2026-11-29-epyc-as-typed.json"
_STEPS = "2026-11-29-epyc-steps.json"
_START = "python -m benchmarks.speed.start --against CHECKOUT"

GOALS = (
    Goal("as typed, 18,432 latents, 65,536 tokens", XEON, 3.2, AsTyped(_XEON, "default-65k", 65_536)),
    Goal("as typed, 18,432 latents, 500,000 tokens", XEON, 3.2, AsTyped(_XEON, "default-500k", 500_000)),
    Goal("as typed, 4608 latents, 65,536 tokens", XEON, 3.5, AsTyped(_XEON, "small-65k", 65_536)),
    Goal("as typed, 4608 latents, 500,000 tokens", XEON, 4, AsTyped(_XEON, "small-500k", 500_000)),
    Goal("from a cache, 18,432 latents", XEON, 4, AsTyped(_XEON, "cached-500k", 500_000)),
    Goal("as typed, 18,432 latents, 65,536 tokens", EPYC, 3.2, AsTyped(_EPYC, "default-65k", 65_536)),
    Goal("as typed, 4608 latents, 65,536 tokens", EPYC, 3.5, AsTyped(_EPYC, "small-65k", 65_536)),
    Goal("from a cache, 18,432 latents", EPYC, 4, AsTyped(_EPYC, "cached-500k", 500_000)),
    Goal("as typed, all 30 layers, 4608 latents", EPYC, 3.5, AsTyped(_EPYC, "all-layers-32k", 32_768)),
    Goal("memory of 8 hookpoints, 18,432 latents", EPYC, 3, AsTyped(_EPYC, "memory-8", 32_768, "bytes")),
    Goal("step, 4608 latents, 4096 tokens", EPYC, 6, Step(_STEPS, "small", 4096)),
    Goal("step, 18,432 latents, 4096 tokens", EPYC, 6, Step(_STEPS, "medium", 4096)),
    Goal("step, 18,432 latents, 1024 tokens", EPYC, 4, Step(_STEPS, "medium", 1024)),
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
         Step("2026-11-27-h100-end-to-end.json", "pythia-160m size, 12 layers", 32_768)),
    Goal("step (a), against 5.1 ms", H100, 1, Step("2026-11-27-h100-step-a.json", "a", 32_768, 5.1e-3)),
    Goal("step (b), against 62 ms", H100, 1, Step("2026-11-27-h100-step-b.json", "b", 16_384, 62e-3)),
    Goal("steps (a) and (b) beside three peers", H100, 6, None),
    Goal("`--compile_lm`, and later parts of a step recorded", H100, 1, None),
    Goal("BatchTopK's and Matryoshka's step against TopK's", H100, 1 / 1.25, None),
)  # fmt: skip
"""Those of 65,536 and 500,000 tokens are against eai-sparsify 1.3.3 with its defaults, as are the steps."""

COLUMNS = ("goal", "machine", "reach", "measured", "verdict")


def table() -> str:
    """A line for each goal: what to reach, what was measured, and whether it is reached."""
    return markdown(COLUMNS, [_line(goal) for goal in GOALS])


def _line(goal: Goal) -> dict[str, str]:
    cells = {"goal": goal.what, "machine": goal.where, "reach": f"{goal.reach:.2f} ×"}
    ratio = goal.ratio
    if ratio is None:
        return cells | {"verdict": "not measured"}
    return cells | {"measured": f"{ratio:.2f} ×", "verdict": "reached" if ratio >= goal.reach else "missed"}


@cache
def _json(file: str) -> Any:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def _seconds(row: Row) -> float:
    assert row.seconds is not None, f"{row.library}, {row.setting} was not measured"
    return row.seconds.median

"""The ratios to reach, held against what a run measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.harness.report import Report, Row, markdown

OURS = ("sae", "default")
AT_MOST = ("memory", "fvu")


@dataclass(frozen=True)
class Goal:
    """One line of the table of ratios."""

    what: str
    quantity: str
    """speedup: their time over ours. share: the same, for a yardstick, which is faster. rate: our tokens per second.
    These have to be at least `must`. memory: our peak over theirs. fvu: our held-out FVU over theirs. At most."""
    section: str
    task: str
    tokens: int
    library: str
    must: float
    aim: float
    setting: str | None = None
    """None: every documented setting."""
    device: str = "cpu"
    ideal: float | None = None
    """Seconds, by arithmetic; takes the place of an opponent."""


GOALS = (
    Goal("step (a)", "speedup", "step", "a", 4096, "sparsify", 4, 6),
    Goal("step (a)", "speedup", "step", "a", 4096, "sae_lens", 15, 25, setting="default"),
    Goal("step (a)", "share", "step", "a", 4096, "product", 0.45, 0.65, setting="bf16"),
    Goal("top-k (a)", "speedup", "stage", "a: selection", 4096, "torch.topk", 3, 5),
    Goal("peak memory (a)", "memory", "step", "a", 4096, "sparsify", 1 / 2, 1 / 3),
    Goal("end to end", "speedup", "end to end", "smollm2, layers 5 10 15", 2048, "sparsify", 3, 4),
    Goal("FVU at equal tokens", "fvu", "quality", "small, Adam", 1024, "sparsify", 1.005, 1.0, setting="adam"),
    Goal("step (a)", "speedup", "step", "a", 32768, "sparsify", 4, 6, device="cuda"),
    Goal("step (b)", "speedup", "step", "b", 16384, "sparsify", 3, 5, device="cuda"),
    Goal("step (a)", "speedup", "step", "a", 32768, "sae_lens", 8, 12, setting="autocast", device="cuda"),
    Goal("step (a)", "share", "step", "a", 32768, "ideal step", 0.5, 0.7, device="cuda", ideal=3.6e-3),
    Goal("step (b)", "share", "step", "b", 16384, "ideal step", 0.5, 0.7, device="cuda", ideal=59e-3),
    Goal("encode (a)", "share", "stage", "a: encode", 32768, "790 TFLOP/s", 0.6, 0.8, device="cuda", ideal=1.57e-3),
    Goal("end to end", "rate", "end to end", "pythia-160m size, 12 layers", 32768, "", 3e5, 4.5e5, device="cuda"),
    Goal("peak memory (b)", "memory", "step", "b", 16384, "sparsify", 1 / 3, 1 / 5, device="cuda"),
)

COLUMNS = ("goal", "against", "ours", "theirs", "ratio", "must", "aim", "verdict")


def table(report: Report) -> str:
    """Every goal with its two numbers; "not measured" where one of them is missing."""
    lines = [line for goal in GOALS for line in _lines(goal, report.rows, report.machine.get("device", "cpu"))]
    return "### Goals\n\n" + markdown(COLUMNS, lines)


def _lines(goal: Goal, rows: Sequence[Row], device: str) -> Iterator[dict[str, str]]:
    head = {"goal": f"{goal.device}: {goal.what}", "must": f"{goal.must:.4g}", "aim": f"{goal.aim:.4g}"}
    found = [row for row in rows if device == goal.device and _belongs(goal, row)]
    mine = next((row for row in found if (row.library, row.setting) == OURS), None)
    pairs = list(_pairs(goal, mine, found)) if mine is not None else []
    if not pairs:
        yield head | {"against": goal.library, "verdict": "not measured"}
    for against, ours, theirs in pairs:
        ratio = ours / theirs if goal.quantity in AT_MOST else theirs / ours
        yield head | {
            "against": against,
            "ours": _text(goal.quantity, ours),
            "theirs": _text(goal.quantity, theirs),
            "ratio": f"{ratio:.4f}" if goal.quantity == "fvu" else f"{ratio:.3g}",
            "verdict": verdict(goal, ratio),
        }


def _pairs(goal: Goal, mine: Row, rows: Sequence[Row]) -> Iterator[tuple[str, float, float]]:
    """(against whom, our number, theirs)."""
    ours = _number(goal.quantity, mine)
    if ours is None:
        return
    if goal.quantity == "rate":
        yield "", 1.0, mine.tokens / ours
    elif goal.ideal is not None:
        yield goal.library, ours, goal.ideal
    for row in rows:
        theirs = _number(goal.quantity, row)
        if theirs is not None and _is_opponent(goal, row):
            yield f"{row.library}, {row.setting}", ours, theirs


def verdict(goal: Goal, ratio: float) -> str:
    """`aim`, `must` or `missed`."""
    sign = -1 if goal.quantity in AT_MOST else 1
    if sign * ratio >= sign * goal.aim:
        return "aim"
    return "must" if sign * ratio >= sign * goal.must else "missed"


def _belongs(goal: Goal, row: Row) -> bool:
    return (row.section, row.task, row.tokens) == (goal.section, goal.task, goal.tokens)


def _is_opponent(goal: Goal, row: Row) -> bool:
    return row.library == goal.library and row.documented and goal.setting in (None, row.setting)


def _number(quantity: str, row: Row) -> float | None:
    if quantity == "memory":
        return row.peak_bytes
    summary = row.fvu if quantity == "fvu" else row.seconds
    return summary and summary.median


def _text(quantity: str, value: float) -> str:
    if quantity == "memory":
        return f"{value / 1e6:,.0f} MB"
    if quantity == "rate":
        return f"{value:,.0f}" if value != 1 else ""
    return f"{value:.4f}" if quantity == "fvu" else f"{value * 1e3:,.4g} ms"

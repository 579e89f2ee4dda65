"""Tables of k-sparse probes, for the terminal and for the page."""

from collections.abc import Mapping

from sae.evaluation.probes import AUC, KS, RAW, RAW_AUC, Probed
from sae.report.html import table

HEADINGS = {AUC.format(k): f"k = {k}" for k in KS} | {RAW_AUC: "all dimensions"}
"""The metrics, and what stands above each."""


def short_title(probed: Probed) -> str:
    """Heading of the table on the terminal; the page and eval.json have the intervals."""
    return f"AUC of k-sparse probes, mean over {len(probed.tasks):,} tasks with {sum(probed.tasks.values()):,} texts"


def title(probed: Probed) -> str:
    """Heading of the page's table."""
    return f"{short_title(probed)}; ± is half of a 95 % interval{' over tasks' * (len(probed.tasks) > 1)}"


def mean_rows(probed: Probed, short_labels: Mapping[str, str]) -> list[list[str]]:
    """Hookpoint, label and a cell under each of `HEADINGS`, hookpoint by hookpoint, the raw activations last."""
    keys = sorted(probed.by_task, key=lambda key: (_place(probed, key[1]), key[0].startswith(RAW)))
    return [
        [hookpoint, short_labels.get(label, label), *(_cell(probed, (label, hookpoint), metric) for metric in HEADINGS)]
        for label, hookpoint in keys
    ]


def _place(probed: Probed, hookpoint: str) -> int:
    return list(dict.fromkeys(name for _, name in probed.by_task)).index(hookpoint)


def _cell(probed: Probed, key: tuple[str, str], metric: str) -> str:
    if metric not in probed.by_task[key]:
        return "-"
    mean, half = probed.mean(key, metric)
    return f"{mean:.4f} ± {half:.4f}"


def parts(probed: Probed | None, short_labels: Mapping[str, str]) -> list[str]:
    """HTML of the page's part about probes."""
    if probed is None:
        return []
    keys = list(probed.by_task)
    columns = [(key, metric) for key in keys for metric in HEADINGS if metric in probed.by_task[key]]
    by_task = [
        [task, f"{texts:,}", *(f"{probed.by_task[key][metric][task].value:.3f}" for key, metric in columns)]
        for task, texts in probed.tasks.items()
    ]
    headings = [
        f"{short_labels.get(label, label)}, {hookpoint}, {HEADINGS[metric]}" for (label, hookpoint), metric in columns
    ]
    return [
        "<h2>k-sparse probes</h2>",
        f"<p>{title(probed)}. A probe sees the last token's k latents that differ most between the classes.</p>",
        table(["hookpoint", "checkpoint", *HEADINGS.values()], mean_rows(probed, short_labels), names=2),
        *_differences(probed, short_labels),
        table(["task", "texts", *headings], by_task, names=1),
    ]


def _differences(probed: Probed, short_labels: Mapping[str, str]) -> list[str]:
    """Advantage of the first checkpoint over each other one, over the same tasks."""
    first = next((label for label, _ in probed.by_task if not label.startswith(RAW)), None)
    metrics = [metric for metric in HEADINGS if metric.startswith("sae")]
    lines = []
    for label, hookpoint in probed.by_task:
        if label != first and not label.startswith(RAW) and first is not None and (first, hookpoint) in probed.by_task:
            pair = ((first, hookpoint), (label, hookpoint))
            lines.append(
                [hookpoint, short_labels.get(label, label), *(_advantage(probed, pair, metric) for metric in metrics)]
            )
    if not lines:
        return []
    return [
        "<p>The first checkpoint's AUC minus the others', task by task:</p>",
        table(["hookpoint", "against", *(HEADINGS[metric] for metric in metrics)], lines, names=2),
    ]


def _advantage(probed: Probed, pair: tuple[tuple[str, str], tuple[str, str]], metric: str) -> str:
    if not all(metric in probed.by_task[key] for key in pair):
        return "-"
    return "{:+.4f} ± {:.4f}".format(*probed.difference(*pair, metric))

"""The end of `sae selftest`: one table, and a JSON file if one was asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from sae.config import SaeConfig, SelftestConfig, several
from sae.evaluation.metrics import as_json
from sae.evaluation.recovery import Recoveries, Recovery
from sae.report.terminal import show_rows
from sae.runs.folder import command, versions
from sae.storage.files import without_dots, write_json

COLUMNS = {
    "F1": ("f1", "{:.3f}"),
    "MCC": ("mcc", "{:.3f}"),
    "found": ("found", "{:.1%}"),
    "dead": ("dead", "{:.1%}"),
    "L0": ("l0", "{:.2f}"),
    "FVU": ("fvu", "{:.4f}"),
}
"""Headings, the number under each, and how it is written."""


def report_selftest(found: Mapping[str, Recoveries], cfg: SelftestConfig) -> None:
    """Print each combination's row and below it those of random rows and of the features; write `cfg.out`."""
    title = f"{cfg.num_features:,} known features in {cfg.width} dimensions, {cfg.num_tokens:,} tokens"
    show_rows(title, ["recipe"], list(COLUMNS), _rows(found, cfg))
    if cfg.out is not None:
        rows = {label: {name: each._asdict() for name, each in one._asdict().items()} for label, one in found.items()}
        document = {"command": command(), "versions": versions(), "options": asdict(cfg), "results": as_json(rows)}
        path = without_dots(cfg.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)
        print(f"{'numbers':<11} {cfg.out}")


def _rows(found: Mapping[str, Recoveries], cfg: SelftestConfig) -> Iterator[list[str]]:
    (first, *_) = several(cfg.sae)
    for label, one in found.items():
        yield [label or _recipe(first), *_cells(one.trained)]
        yield ["  random rows", *_cells(one.random)]
        yield ["  true features", *_cells(one.true)]


def _recipe(sae: SaeConfig) -> str:
    at_inference = "" if sae.inference_l0 is None else f", inference_l0 {sae.inference_l0:g}"
    return f"{sae.selection}, k {sae.k}{at_inference}"


def _cells(one: Recovery) -> list[str]:
    return [form.format(getattr(one, name)) for name, form in COLUMNS.values()]

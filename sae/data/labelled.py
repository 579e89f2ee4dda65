"""Texts of two classes, for probes: the 113 data sets inside the package sae-probes, and CSV files of anybody."""

import csv
import importlib.util
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sae.storage.damage import plainly

FEWEST = 20
"""Rows that each class must have."""
MOST_ROWS = 5000
"""Rows of a task that are used, the first ones."""
_MOST_BYTES = 2**30
_TEXT, _LABEL = ("text", "prompt"), ("label", "target")
_MASTER = "probing_datasets_MASTER.csv.zst"
_BINARY = "Binary Classification"


class Task(NamedTuple):
    """Texts and the class of each; both classes are equally frequent."""

    name: str
    texts: list[str]
    labels: list[bool]


def probing_tasks(names: Sequence[str], num_texts: int | None = None) -> list[Task]:
    """The tasks of these names, at most `num_texts` texts of each; without names all 113.

    A name is that of a CSV file with the columns text and label, or of one of the 113, such as 100_news_fake. Raises
    ValueError, in one line, for a file that does not exist or lacks a column. So it does for other than two classes of
    at least `FEWEST` rows each, and if the package that has the 113 is not installed.
    """
    files = {name: Path(name) for name in names if Path(name).suffix in (".csv", ".zst") or Path(name).exists()}
    known = _of_the_package() if len(files) < len(names) or not names else {}
    if unknown := [name for name in names if name not in files and name not in known]:
        raise ValueError(
            f"probes must be CSV files or data sets of sae-probes, got {unknown[0]}; there are {', '.join(known)}"
        )
    chosen = {name: files.get(name) or known[name] for name in names} if names else known
    return [_balanced(_stem(path), _rows(path), num_texts, path) for path in chosen.values()]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zst").removesuffix(".csv")


def _of_the_package() -> dict[str, Path]:
    """Where each data set lies in the installed package, which is not imported: it would import half of the world."""
    spec = importlib.util.find_spec("sae_probes")
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else None
    if folder is None or not (folder / _MASTER).is_file():
        raise ValueError(
            "probes on the 113 data sets need the package sae-probes 0.4.2, which is not installed; "
            "pip install --no-deps sae-probes==0.4.2, or name CSV files: --probes FILE.csv"
        )
    listed = csv.DictReader(io.StringIO(_text(folder / _MASTER)))
    files = [row["Dataset save name"] for row in listed if row["Data type"] == _BINARY]
    return {Path(file).stem: folder / f"{file}.zst" for file in files}


def _text(path: Path) -> str:
    """A file's text. Raises ValueError for one that cannot be read."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"probes must name files of less than 1 GB, got {path}; take a part of it")
        if path.suffix != ".zst":
            return path.read_text(encoding="utf-8-sig")
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            return str(stream.read(_MOST_BYTES).decode())
    except (OSError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"probes must name CSV files in UTF-8, and {path} cannot be read: {plainly(error)}") from None


def _rows(path: Path) -> list[tuple[str, str]]:
    """Text and label of each row."""
    csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""))
        columns = reader.fieldnames or []
        text, label = (next((name for name in wanted if name in columns), "") for wanted in (_TEXT, _LABEL))
        if not text or not label:
            raise ValueError(
                f"{path} must have the columns text and label (or prompt and target) to be probed, got "
                f"{', '.join(columns)[:200] or 'none'}; rename its columns"
            )
        return [(row[text] or "", row[label] or "") for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} must be a CSV file to be probed, got one that is not: {error}") from None


def _balanced(name: str, rows: Iterable[tuple[str, str]], num_texts: int | None, path: Path) -> Task:
    """As many rows of each class, the first ones, in the file's order. Positive is the class that sorts last."""
    usable = [(text, label) for text, label in rows if text and label]
    counts = {label: sum(each == label for _, each in usable) for label in sorted({label for _, label in usable})}
    if len(counts) != 2:
        raise ValueError(
            f"{path} must have two classes to be probed, got {len(counts)}: {_short(counts)}; leave out rows"
        )
    if min(counts.values()) < FEWEST:
        few = min(counts, key=lambda label: counts[label])
        raise ValueError(
            f"{path} must have at least {FEWEST} rows of each class to be probed, got {counts[few]} of "
            f"{few[:40]!r}; add rows"
        )
    positive = max(counts)
    left = dict.fromkeys(counts, min(*counts.values(), min(num_texts or MOST_ROWS, MOST_ROWS) // 2))
    texts, labels = [], []
    for text, label in usable:
        if left[label]:
            left[label] -= 1
            texts.append(text)
            labels.append(label == positive)
    return Task(name, texts, labels)


def _short(counts: Iterable[str]) -> str:
    return ", ".join(label[:20] for label in list(counts)[:5]) or "none"

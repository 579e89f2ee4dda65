"""Data on this machine: which files a name means, and the rows in them."""

import difflib
import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
PIECE_CHARACTERS = 1 << 16  # a .txt file becomes documents of about this length


class DataError(ValueError):
    """What a user gave does not name usable data; the message is one line."""


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a file or folder, not as a data set on the hub."""
    suffix = os.path.splitext(name)[1].lower()
    return (
        glob.has_magic(name)
        or name.startswith((".", "/", "~", os.sep))
        or "\\" in name
        or name.count("/") > 1
        or suffix == ".bin"
        or suffix in BUILDERS
    )


def find_files(path: str) -> list[str]:
    """The files that a path or a glob names, sorted. Raises DataError with near names if there are none."""
    if os.path.isfile(path):
        return [path]
    files = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not files:
        raise DataError(
            f"dataset must be an existing file, folder or glob, or a hub id, got {path!r}; {_near_names(path)}"
        )
    return files


def _near_names(path: str) -> str:
    """What lies where the path leads, as far as it exists; like names first."""
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    entries = sorted(os.listdir(folder or "."))
    near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
    if near:
        return f"near names: {', '.join(os.path.join(folder, entry) for entry in near)}"
    listing = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
    return f"{folder or 'the current folder'} holds {listing or 'nothing'}"


def builder_for(files: Iterable[str]) -> str:
    """The `datasets` builder that reads all these files. Raises DataError if none does."""
    suffixes = sorted({os.path.splitext(file)[1].lower() for file in files})
    builders = {BUILDERS.get(suffix) for suffix in suffixes}
    found = ", ".join(suffix or "no extension" for suffix in suffixes)
    if None in builders:
        known = ", ".join([*BUILDERS, ".bin"])
        raise DataError(f"data files must be one of {known}, got {found}; convert them, or name one kind with a glob")
    if len(builders) > 1:
        raise DataError(f"data files must all be of one kind, got {found}; name one kind with a glob such as '*.jsonl'")
    return next(builder for builder in builders if builder)


def open_files(files: list[str], *, split: str, streaming: bool) -> "datasets.Dataset | datasets.IterableDataset":
    """The rows of data files, as one split named train."""
    from datasets import load_dataset

    check_split(split, ["train"], streaming=streaming)
    if not any(map(os.path.getsize, files)):
        raise empty_data(", ".join(files))
    builder = builder_for(files)
    if builder == "text":
        return open_text({"train": files}, split=split, streaming=streaming)
    return load_dataset(builder, data_files={"train": files}, split=split, streaming=streaming)


def open_text(
    files: Mapping[str, list[str]], *, split: str, streaming: bool
) -> "datasets.Dataset | datasets.IterableDataset":
    """The pieces of text files, in a column `text`, from the files of each split."""
    from datasets import Dataset, Features, IterableDataset, Value

    def rows_of(kind: Any, paths: list[str]) -> Any:
        # size and time are there for the key under which `datasets` caches the rows
        versions = [(path, os.path.getsize(path), os.stat(path).st_mtime_ns) for path in paths]
        features = Features({"text": Value("string")})
        return kind.from_generator(text_pieces, features=features, gen_kwargs={"files": versions})

    names = list(files) if split == "all" else split_names(split)
    if streaming:
        return rows_of(IterableDataset, [path for name in names for path in files[name]])
    return select_split({name: rows_of(Dataset, files[name]) for name in names}, split)


def text_pieces(files: list[tuple[str, int, int]]) -> Iterator[dict[str, str]]:
    """Files cut at line ends into pieces of about 64k characters (twice that where there are no lines)."""
    for path, *_ in files:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            while piece := file.read(PIECE_CHARACTERS):
                yield {"text": piece + file.readline(PIECE_CHARACTERS)}


def is_saved_dataset(folder: str) -> bool:
    """Whether `datasets`' save_to_disk wrote the folder."""
    names = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def open_saved(folder: str, *, split: str, streaming: bool) -> "datasets.Dataset | datasets.IterableDataset":
    """A split of a folder written by save_to_disk; one that holds a single data set has the one split train."""
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(folder)
    except IndexError:  # what `datasets` says when it has saved a data set without rows
        raise empty_data(folder) from None
    splits = {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)
    check_split(split, splits, streaming=False)
    rows = select_split(splits, split)
    return rows.to_iterable_dataset() if streaming else rows


def split_names(split: str) -> list[str]:
    """The splits that an expression such as `train[:1%]+test` names."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def check_split(split: str, available: Iterable[str], *, streaming: bool) -> None:
    """Raise DataError if a split is missing, or is a slice of a stream."""
    available = list(map(str, available))
    missing = [name for name in split_names(split) if name not in available and name != "all"]
    if missing:
        raise DataError(f"split must be one of {', '.join(available)}, got {', '.join(missing)}; change --split")
    if streaming and "[" in split:
        raise DataError(f"split of a stream must be a whole split, got {split}; leave out the slice or --streaming")


def select_split(splits: "Mapping[str, datasets.Dataset]", split: str) -> "datasets.Dataset":
    """The rows that an expression such as `train[:1%]+test` names."""
    from datasets import ReadInstruction, concatenate_datasets

    if split in splits:
        return splits[split]
    instruction: Any = ReadInstruction.from_spec("+".join(splits) if split == "all" else split)
    parts = instruction.to_absolute({name: len(rows) for name, rows in splits.items()})
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def empty_data(name: str) -> DataError:
    return DataError(f"the data set must have at least one row, got none in {name}; choose another --split or data set")

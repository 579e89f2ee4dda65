"""Data on this machine: which files a name means, and the rows in them."""

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.storage.files import near_names, read_json

from .read import (
    CHAT,
    IDS,
    MASK,
    DataError,
    File,
    columns_of,
    endings,
    known_endings,
    no_such_column,
    rows_of,
    tell_what_is_no_text,
    wanted_columns,
)

if TYPE_CHECKING:
    import datasets

TOKEN_FILES = (".bin", ".npy")


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a file or folder, not as a data set on the hub."""
    return (
        glob.has_magic(name)
        or name.startswith((".", "/", "~", os.sep))
        or "\\" in name
        or name.count("/") > 1
        or name.lower().endswith(TOKEN_FILES)
        or File.of(name).kind is not None
    )


def find_files(path: str) -> list[str]:
    """The files that a path or a glob names, sorted. Raises DataError with near names if there are none."""
    if os.path.isfile(path):
        return [path]
    files = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not files:
        raise DataError(
            f"dataset must be an existing file, folder or glob, or a hub id, got {path!r}; {near_names(path)}"
        )
    return files


def kind_of(files: Iterable[File]) -> str:
    """The kind that all these files have. Raises DataError for a kind that is not read, or for several kinds."""
    files = list(files)
    kinds = {file.kind for file in files}
    found = ", ".join(sorted({"".join(endings(file.name)) or "no extension" for file in files}))
    if None in kinds:
        raise DataError(
            f"data files must be one of {known_endings()}, {', '.join(TOKEN_FILES)}, got {found}; convert them, or "
            "name one kind with a glob"
        )
    if len(kinds) > 1:
        raise DataError(f"data files must all be of one kind, got {found}; name one kind with a glob such as '*.jsonl'")
    return next(kind for kind in kinds if kind)


def open_files(
    files: Mapping[str, list[File]], *, split: str, streaming: bool, text_column: str
) -> "datasets.Dataset | datasets.IterableDataset":
    """The rows of data files by split, with the wanted columns.

    If a wanted column is missing, a parquet file gives all its columns; other files raise an error that lists them.
    """
    check_split(split, files, streaming=streaming)
    parts = {name: files[name] for name in (files if split == "all" else split_names(split))}
    chosen = [file for part in parts.values() for file in part]
    if not any(file.version[0] or "://" in file.path for file in chosen):
        raise empty_data(", ".join(file.path for file in chosen))
    kind = kind_of(chosen)
    if kind == "parquet":
        return _open_parquet(parts, split=split, streaming=streaming, text_column=text_column)
    if kind == "text":
        tell_what_is_no_text(chosen)
    found = columns_of(chosen)
    if not found:
        raise empty_data(", ".join(file.name for file in chosen[:3]))
    columns = wanted_columns(found, text_column)
    if not columns:
        raise no_column(found, text_column)
    return _open_rows(parts, columns, split=split, streaming=streaming)


def _open_rows(
    parts: Mapping[str, list[File]], columns: list[str], *, split: str, streaming: bool
) -> "datasets.Dataset | datasets.IterableDataset":
    from datasets import Dataset, Features, IterableDataset, List, Value

    kinds = dict.fromkeys((*IDS, MASK), List(Value("int64")))
    features = Features({name: kinds.get(name, Value("string")) for name in columns})

    def rows_in(kind: Any, files: list[File]) -> Any:
        return kind.from_generator(rows_of, features=features, gen_kwargs={"files": files, "columns": tuple(columns)})

    if streaming:
        return rows_in(IterableDataset, [file for part in parts.values() for file in part])
    return select_split({name: rows_in(Dataset, part) for name, part in parts.items()}, split)


def _open_parquet(
    parts: Mapping[str, list[File]], *, split: str, streaming: bool, text_column: str
) -> "datasets.Dataset | datasets.IterableDataset":
    """Only the wanted columns are read, so that files may differ in others. `datasets` fails at a file without rows."""
    import pyarrow.parquet as pq
    from datasets import load_dataset

    about = {file.path: pq.read_metadata(file.path) for part in parts.values() for file in part}
    paths = {name: [file.path for file in part if about[file.path].num_rows] for name, part in parts.items()}
    if empty := next((parts[name] for name, left in paths.items() if not left), []):
        raise empty_data(", ".join(file.name for file in empty[:3]))
    every = {path: about[path].schema.to_arrow_schema().names for part in paths.values() for path in part}
    columns = wanted_columns(next(iter(every.values())), text_column)
    for path, names in every.items():
        if missing := [name for name in columns if name not in names]:
            raise no_such_column(missing[0], path)
    if not columns:
        raise no_column(next(iter(every.values())), text_column)
    return load_dataset("parquet", data_files=paths, split=split, streaming=streaming, columns=columns)


def no_column(found: Iterable[str], text_column: str) -> DataError:
    """The error if no wanted column is found."""
    return DataError(
        f"text column must be one of the data set's columns ({', '.join(found)}), got {text_column!r}; "
        f"name it with text_key (--text_column), or call token ids {IDS[0]} and a chat {CHAT}"
    )


def odd_files(folder: str) -> dict[str, list[File]]:
    """The files of a local folder by split, if `datasets` would not know or not find one that we read; else none."""
    if not os.path.isdir(folder):
        return {}
    from datasets.data_files import DataFilesDict, get_data_patterns

    found = glob.glob(os.path.join(folder, "**"), recursive=True)
    ends = [endings(path) for path in found if File.of(path).kind is not None and os.path.isfile(path)]
    if not any(kind == ".jsonlines" or packed == ".zip" for kind, packed in ends):
        return {}
    by_split = DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder)
    files = {str(name): list(map(File.of, map(str, paths))) for name, paths in by_split.items()}
    return {name: [file for file in part if file.kind is not None] for name, part in files.items()}


def is_saved_dataset(folder: str) -> bool:
    """Whether `datasets`' save_to_disk wrote the folder."""
    names = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def open_saved(folder: str, *, split: str, streaming: bool) -> "datasets.Dataset | datasets.IterableDataset":
    """A split of a folder written by save_to_disk; one that holds a single data set has the one split train."""
    from datasets import load_from_disk

    folders = _saved_splits(folder)
    check_split(split, folders, streaming=False)
    splits: dict[str, Any] = {}
    for name in folders if split == "all" else split_names(split):
        try:
            splits[name] = load_from_disk(folders[name])
        except IndexError:  # what `datasets` says when it has saved a data set without rows
            raise empty_data(folders[name]) from None
    rows = select_split(splits, split)
    return rows.to_iterable_dataset() if streaming else rows


def _saved_splits(folder: str) -> dict[str, str]:
    """The folder of each split of what save_to_disk wrote."""
    splits = Path(folder, "dataset_dict.json")
    names = read_json(splits)["splits"] if splits.is_file() else []
    return {name: os.path.join(folder, name) for name in names} or {"train": folder}


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

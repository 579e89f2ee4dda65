"""Rows of token ids, as other tools leave them: the column's name, padding, rows that are null, what is no id."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from .pack import DOCUMENTS_PER_BATCH, ChunkLayout, Row, pack_dataset
from .read import IDS, MASK, DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow


def ids_column(column_names: Iterable[str]) -> str:
    """The column of token ids. Raises ValueError if there is none, naming those that there are."""
    names = list(column_names)
    found = next((name for name in IDS if name in names), None)
    if found is None:
        raise ValueError(
            f"a tokenised data set must have a column {IDS[0]}, got {', '.join(names)}; call chunk_and_tokenize on it "
            "first"
        )
    return found


def row_ids(row: Any) -> Int64[np.ndarray, " tokens"]:
    """The token ids of a row that is all text, as training takes it; a row with padding is an error."""
    if not isinstance(row, Mapping):
        raise ValueError(f'rows must look like {{"input_ids": ...}}, got {type(row).__name__}; use chunk_and_tokenize')
    ids = as_ids(row[ids_column(row)])
    mask = row.get(MASK)
    if padding := 0 if mask is None else int((as_ids(mask) == 0).sum()):
        raise ValueError(
            f"rows must be without padding, got {padding} tokens in one whose {MASK} is 0; leave them out and join the "
            "rows, as sae.data.load_data does"
        )
    return ids


def is_empty(row: Any) -> bool:
    """Whether a row has the column of token ids, and null or no token in it."""
    name = next((each for each in IDS if each in row), None) if isinstance(row, Mapping) else None
    ids = None if name is None else row[name]
    return name is not None and (ids is None or (hasattr(ids, "__len__") and len(ids) == 0))


def without_empty_rows(rows: "datasets.Dataset") -> "datasets.Dataset":
    """The rows of a tokenised data set that hold a token: neither null nor empty ones."""
    import pyarrow.compute as pc

    tables: Iterable[Any] = rows.select_columns([name := ids_column(rows.column_names)])
    tables = tables.with_format("arrow").iter(batch_size=10_000)  # type: ignore[attr-defined]
    lengths = (pc.list_value_length(table[name]).fill_null(0).to_numpy() for table in tables)
    valid = np.concatenate([np.zeros(0, np.int64), *lengths]) > 0
    return rows if valid.all() else rows.select(np.flatnonzero(valid))


def ids_of(rows: list[Row]) -> list[list[int]]:
    """The token ids of rows, without padding; of a row that is null none."""
    return [_unpadded(as_ids(row[IDS[0]]), row.get(MASK)).tolist() for row in rows if row[IDS[0]] is not None]


def _unpadded(ids: Int64[np.ndarray, " tokens"], mask: Any) -> Int64[np.ndarray, " kept"]:
    if mask is None:
        return ids
    _check_mask(len(ids), len(mask))
    return ids[as_ids(mask) != 0]


def as_ids(ids: Any) -> Int64[np.ndarray, " tokens"]:
    """Token ids as an array. Raises ValueError unless they are one list of whole numbers."""
    ids = np.asarray(ids)
    if ids.ndim == 1 and not len(ids):
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.dtype == np.bool_):
        raise DataError(
            f"input_ids must be one list of whole numbers per row, got {ids.dtype} of shape {ids.shape}; "
            "make them with chunk_and_tokenize"
        )
    return ids.astype(np.int64, copy=False)


def rows_without_padding(rows: "datasets.Dataset") -> "datasets.Dataset":
    """The rows of a tokenised data set with nothing but `input_ids`, without the tokens that a mask leaves out.

    Raises DataError for what is no list of whole numbers.
    """
    from datasets import Features, List, Value

    name = ids_column(rows.column_names)
    _check_feature(name, rows.features[name])
    if MASK not in rows.column_names or not has_padding(rows):
        rows = rows.select_columns([name])
        return rows if name == IDS[0] else rows.rename_column(name, IDS[0])
    return (
        rows.select_columns([name, MASK])
        .with_format("arrow")
        .map(
            _unpad,
            batched=True,
            batch_size=DOCUMENTS_PER_BATCH,
            fn_kwargs={"name": name},
            remove_columns=[name, MASK],
            features=Features({IDS[0]: List(Value("int64"))}),
            desc="Leaving out padding",
        )
        .with_format(None)
    )


def joined_without_padding(rows: "datasets.Dataset") -> "datasets.Dataset":
    """The rows joined end to end without padding, and cut to the length of the longest. Nothing but a tail is lost."""
    longest = row_lengths(rows, ids_column(rows.column_names))[1]
    return pack_dataset(rows_without_padding(rows), ChunkLayout(longest))


def has_padding(rows: "datasets.Dataset") -> bool:
    """Whether the mask of a tokenised data set leaves anything out. Raises DataError for what is no mask."""
    import pyarrow.compute as pc

    tables: Iterable[Any] = rows.select_columns([MASK]).with_format("arrow").iter(batch_size=10_000)
    return any(pc.min(_whole_numbers(pc.list_flatten(table[MASK]))).as_py() == 0 for table in tables)


def _whole_numbers(mask: Any) -> Any:
    if mask.null_count or str(mask.type) in ("float", "double", "halffloat"):
        found = "null in one" if mask.null_count else mask.type
        raise DataError(f"{MASK} must be lists of whole numbers, got {found}; leave the column out")
    return mask.cast("int64")


def row_lengths(rows: "datasets.Dataset", name: str = IDS[0]) -> tuple[int, int]:
    """The shortest and the longest row; one that is null has none. Reads where rows end, not the tokens.

    Raises DataError for a null among the tokens.
    """
    import pyarrow.compute as pc

    ends = []
    tables: Iterable[Any] = rows.select_columns([name]).with_format("arrow").iter(batch_size=10_000)
    for table in tables:
        if pc.list_flatten(table[name]).null_count:
            raise DataError(f"{name} must be lists of whole numbers, got null in one; call chunk_and_tokenize")
        ends.append(pc.min_max(pc.list_value_length(table[name]).fill_null(0)).as_py())
    return min(end["min"] for end in ends), max(end["max"] for end in ends)


def _check_feature(name: str, feature: Any) -> None:
    dtype = str(getattr(getattr(feature, "feature", None), "dtype", feature))
    if not dtype.startswith(("int", "uint")):
        raise DataError(f"{name} must be lists of whole numbers, got {dtype}; make them with chunk_and_tokenize")


def _check_mask(num_ids: int, num_masked: int) -> None:
    if num_ids != num_masked:
        raise DataError(
            f"{MASK} must be as long as the token ids of its row, got {num_masked} and {num_ids}; leave the column out"
        )


def _unpad(table: "pyarrow.Table", name: str) -> "pyarrow.Table":
    import pyarrow as pa

    rows = table.rename_columns([IDS[0], MASK]).to_pylist()
    return pa.table({IDS[0]: pa.array(ids_of(rows), type=pa.list_(pa.int64()))})


def check_length(index: int, length: int, ctx_len: int) -> None:
    """Raise ValueError unless row `index` is as long as the first."""
    if length != ctx_len:
        raise ValueError(
            f"all rows of input_ids must be {ctx_len} tokens long like the first, got {length} in row {index}; "
            "pack them with chunk_and_tokenize"
        )

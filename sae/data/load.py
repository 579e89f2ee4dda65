"""From the name of a data set, wherever it is, to token sequences."""

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .files import DataError, empty_data, find_files, is_saved_dataset, looks_like_path, open_files, open_saved
from .hub import explained, open_repository
from .memmap import MemmapTokens
from .pack import ChunkLayout, PackedStream, Row, own_view, pack_dataset
from .tokenize import check_text_column, chunk_and_tokenize
from .tokens import PiecedSequences, RowSequences, Sequences, SequenceStream

if TYPE_CHECKING:
    import datasets
    import transformers

logger = logging.getLogger(__name__)


def load_data(
    dataset: str,
    *,
    split: str = "train",
    streaming: bool = False,
    text_column: str = "text",
    revision: str | None = None,
    token: str | None = None,
    tokenizer: "transformers.PreTrainedTokenizerBase | None",
    ctx_len: int,
    num_proc: int | None = None,
    vocab_size: int,
) -> Sequences | SequenceStream:
    """Sequences of `ctx_len` tokens from the data set of that name, for `TokenBatches`.

    `dataset` is the first of these that fits: a .bin file of token ids; a folder written by save_to_disk; a local
    folder in the hub's layout; .txt, .jsonl, .json, .parquet or .csv files, one or a glob (quoted), all of one kind; a
    hub id. A configuration of a folder or hub id is named after a colon: `allenai/c4:en`. A .txt file is cut at line
    ends into documents of about 64k characters.

    The text in `text_column` is tokenised and packed by `chunk_and_tokenize`. A data set without that column, but with
    `input_ids`, is taken as tokenised (also by naming input_ids as `text_column`): rows of ctx_len tokens as they are,
    rows of one greater length cut into pieces of ctx_len, other rows joined end to end and cut. A stream's rows are
    always joined. `streaming` reads rows only as they are needed, without caching them; a .bin file never needs it.

    Raises ValueError, in one line: data that does not exist, cannot be reached or is not open to `token` (which appears
    in no message); a missing split, configuration or column; no rows; fewer tokens than one sequence.
    """
    path, token = os.path.expanduser(dataset), token.strip() if token else None
    if path.lower().endswith(".bin"):
        return _open_memmap(path, ctx_len, vocab_size)
    with explained(dataset, token):
        rows = _open_rows(path, split=split, streaming=streaming, revision=revision, token=token, num_proc=num_proc)
        columns = _column_names(rows, dataset)
    if text_column not in columns or text_column == "input_ids":
        if "input_ids" in columns:
            return _join_tokens(rows, ctx_len)
        check_text_column(columns, None, text_column)
    return _tokenize(rows, tokenizer, text_column=text_column, ctx_len=ctx_len, num_proc=num_proc)


def _open_memmap(path: str, ctx_len: int, vocab_size: int) -> MemmapTokens:
    files = find_files(path)
    if len(files) > 1:
        raise DataError(f"dataset must be a single .bin file, got {len(files)} that match {path!r}; join them with cat")
    return MemmapTokens(files[0], ctx_len, vocab_size)


def _open_rows(
    path: str, *, split: str, streaming: bool, revision: str | None, token: str | None, num_proc: int | None
) -> "datasets.Dataset | datasets.IterableDataset":
    if os.path.isdir(path) and is_saved_dataset(path):
        return open_saved(path, split=split, streaming=streaming)
    if os.path.isfile(path):
        return open_files([path], split=split, streaming=streaming)
    name, _, config = (path, "", "") if os.path.isdir(path) else path.partition(":")
    if not os.path.isdir(name) and looks_like_path(path):
        return open_files(find_files(path), split=split, streaming=streaming)
    return open_repository(
        name,
        config=config or None,
        split=split,
        streaming=streaming,
        revision=revision,
        token=token,
        num_proc=num_proc,
    )


def _column_names(rows: "datasets.Dataset | datasets.IterableDataset", name: str) -> list[str]:
    """The columns, by reading the first row of a stream, so that a stream that cannot be read fails here."""
    from datasets import Dataset

    if isinstance(rows, Dataset):
        if not len(rows):
            raise empty_data(name)
        return rows.column_names
    first = next(iter(own_view(rows)), None)
    if first is None:
        raise empty_data(name)
    return list(first)


def _tokenize(
    rows: "datasets.Dataset | datasets.IterableDataset",
    tokenizer: "transformers.PreTrainedTokenizerBase | None",
    *,
    text_column: str,
    ctx_len: int,
    num_proc: int | None,
) -> Sequences | SequenceStream:
    if tokenizer is None:
        raise ValueError(f"tokenizer must be given for text (column {text_column!r}), got None; pass the model's")
    packed: Any = chunk_and_tokenize(
        rows, tokenizer, format="numpy", num_proc=num_proc, text_key=text_column, max_seq_len=ctx_len
    )
    sequences = _stream(packed, ctx_len) if isinstance(packed, PackedStream) else RowSequences(packed)
    if sequences.ctx_len < ctx_len:
        logger.warning("sequences are %d tokens long, not %d: the tokenizer's limit", sequences.ctx_len, ctx_len)
    return sequences


def _join_tokens(rows: "datasets.Dataset | datasets.IterableDataset", ctx_len: int) -> Sequences | SequenceStream:
    """Rows that are tokenised already, as sequences of `ctx_len` tokens."""
    from datasets import Dataset

    layout = ChunkLayout(ctx_len)
    if not isinstance(rows, Dataset):
        return _stream(PackedStream(rows, _ids_of, layout, format="numpy"), ctx_len)
    _check_ids(rows.features["input_ids"])
    shortest, longest = _row_lengths(rows)
    if shortest == longest >= ctx_len:
        sequences = RowSequences(rows)
        return sequences if longest == ctx_len else PiecedSequences(sequences, ctx_len)
    packed = pack_dataset(rows.select_columns(["input_ids"]), layout)
    if not len(packed):
        raise _too_few_tokens(ctx_len)
    return RowSequences(packed)


def _stream(rows: PackedStream, ctx_len: int) -> SequenceStream:
    """Reads the first sequence, so that a stream without one fails here."""
    if next(iter(rows), None) is None:
        raise _too_few_tokens(ctx_len)
    return SequenceStream(rows)


def _ids_of(rows: list[Row]) -> list[list[int]]:
    return [row["input_ids"] for row in rows]


def _check_ids(feature: Any) -> None:
    dtype = str(getattr(getattr(feature, "feature", None), "dtype", feature))
    if not dtype.startswith(("int", "uint")):
        raise DataError(f"input_ids must be lists of whole numbers, got {dtype}; make them with chunk_and_tokenize")


def _row_lengths(rows: "datasets.Dataset") -> tuple[int, int]:
    """The shortest and the longest row; reads where rows end, not the tokens."""
    import pyarrow.compute as pc

    tables: Iterable[Any] = rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=10_000)
    ends = [pc.min_max(pc.list_value_length(table["input_ids"])).as_py() for table in tables]
    return min(end["min"] or 0 for end in ends), max(end["max"] or 0 for end in ends)


def _too_few_tokens(ctx_len: int) -> DataError:
    return DataError(
        f"the data set must have at least one sequence of ctx_len={ctx_len} tokens, got fewer; "
        "pass more text or lower --ctx_len"
    )

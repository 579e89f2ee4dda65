"""From the name of a data set, wherever it is, to token sequences."""

import logging
import os
from typing import TYPE_CHECKING, Any

from .files import (
    TOKEN_FILES,
    empty_data,
    find_files,
    is_saved_dataset,
    looks_like_path,
    no_column,
    open_files,
    open_saved,
)
from .hub import data_errors_explained, open_repository
from .ids import ids_of, row_lengths, rows_without_padding
from .memmap import MemmapTokens
from .pack import ChunkLayout, PackedStream, own_view, pack_dataset
from .read import IDS, DataError, File, wanted_columns
from .sequences import PiecedSequences, RowSequences, Sequences
from .stream import SequenceStream
from .tokenize import chunk_and_tokenize

if TYPE_CHECKING:
    import datasets
    import transformers

logger = logging.getLogger(__name__)


class TokenizerNeededError(ValueError):
    """Text, and no tokenizer to make tokens of it."""


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

    The name `dataset` means the first of these that fits:

    - a .bin or .npy file of token ids;
    - a folder written by save_to_disk;
    - a local folder in the hub's layout;
    - files, one or a glob, all of one kind of `read.KINDS`, compressed or not;
    - a hub id.

    A configuration of a folder or hub id is named after a colon: `allenai/c4:en`. A .txt file, wherever it lies, is one
    text, cut at line ends into documents of about 64k characters. Other files give only the wanted column: the others
    may differ from file to file.

    The text in `text_column` is tokenised and packed by `chunk_and_tokenize`. A data set without that column, but with
    `input_ids` (or `tokens`), is taken as tokenised (also by naming them as `text_column`). Rows of ctx_len tokens stay
    as they are. Others are joined end to end and cut, so that only a tail is lost. Tokens whose `attention_mask` is 0
    are left out. A data set with `messages` alone is a chat, which the tokenizer's chat template makes text. A stream's
    rows are always joined.

    Args:
        dataset: Name of the data, see above.
        split: Split of the data set, such as train or train[:1%].
        streaming: Read rows only as they are needed, without caching them; a .bin file never needs it.
        text_column: Column that holds the text.
        revision: Branch, tag or commit on the hub.
        token: Token for private data on the hub; it appears in no message.
        tokenizer: Tokenizer of the language model; None for data that is tokenised.
        ctx_len: Tokens of a sequence.
        num_proc: Processes that tokenise. None: half of the cores.
        vocab_size: Token ids that the language model has.

    Returns:
        Sequences (n, ctx_len) that can be read in any order, or a stream of them.

    Raises:
        ValueError: In one line, for data that does not exist, cannot be reached or is not open to `token`. So it does
            for a missing split, configuration or column, for no rows, and for fewer tokens than one sequence.
    """
    path, token = os.path.expanduser(dataset), token.strip() if token else None
    if path.lower().endswith(TOKEN_FILES):
        return _open_tokens(path, ctx_len, vocab_size)
    with data_errors_explained(dataset, token):
        rows = _open_rows(
            path,
            split=split,
            streaming=streaming,
            revision=revision,
            token=token,
            num_proc=num_proc,
            text_column=text_column,
        )
        found = _column_names(rows, dataset)
        columns = wanted_columns(found, text_column)
        if not columns:
            raise no_column(found, text_column)
        rows = rows.select_columns(columns)
        if columns[0] in IDS:
            return _join_tokens(rows, ctx_len)
    return _tokenize(rows, tokenizer, text_column=columns[0], ctx_len=ctx_len, num_proc=num_proc)


def _open_tokens(path: str, ctx_len: int, vocab_size: int) -> Sequences:
    files = find_files(path)
    if len(files) > 1:
        kind = os.path.splitext(path)[1].lower()
        raise DataError(f"dataset must be a single {kind} file, got {len(files)} that match {path!r}; join them")
    return MemmapTokens(files[0], ctx_len, vocab_size)


def _open_rows(
    path: str,
    *,
    split: str,
    streaming: bool,
    revision: str | None,
    token: str | None,
    num_proc: int | None,
    text_column: str,
) -> "datasets.Dataset | datasets.IterableDataset":
    if os.path.isdir(path) and is_saved_dataset(path):
        return open_saved(path, split=split, streaming=streaming)
    name, _, config = (path, "", "") if os.path.isdir(path) else path.partition(":")
    if os.path.isfile(path) or (not os.path.isdir(name) and looks_like_path(path)):
        files = {"train": list(map(File.of, find_files(path)))}
        return open_files(files, split=split, streaming=streaming, text_column=text_column)
    return open_repository(
        name,
        config=config or None,
        split=split,
        streaming=streaming,
        revision=revision,
        token=token,
        num_proc=num_proc,
        text_column=text_column,
    )


def _column_names(rows: "datasets.Dataset | datasets.IterableDataset", name: str) -> list[str]:
    """The columns, by reading the first row of a stream, so that a stream that cannot be read fails here."""
    from datasets import Dataset

    if isinstance(rows, Dataset):
        if not len(rows):
            raise empty_data(name)
        return list(rows.column_names)
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
        raise TokenizerNeededError(
            f"tokenizer must be given for text (column {text_column!r}), got None; pass the model's"
        )
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
        name = next(name for name in IDS if name in (rows.column_names or IDS[:1]))
        rows = rows if name == IDS[0] else rows.rename_column(name, IDS[0])
        return _stream(PackedStream(rows, ids_of, layout, format="numpy"), ctx_len)
    rows = rows_without_padding(rows)
    shortest, longest = row_lengths(rows)
    if shortest == longest >= ctx_len:
        left_out = len(rows) * (longest % ctx_len)
        if longest == ctx_len or left_out < ctx_len:
            sequences = RowSequences(rows)
            return sequences if longest == ctx_len else PiecedSequences(sequences, ctx_len)
    packed = pack_dataset(rows, layout)
    if not len(packed):
        raise _too_few_tokens(ctx_len)
    return RowSequences(packed)


def _stream(rows: PackedStream, ctx_len: int) -> SequenceStream:
    """Reads the first sequence, so that a stream without one fails here."""
    if next(iter(rows), None) is None:
        raise _too_few_tokens(ctx_len)
    return SequenceStream(rows)


def _too_few_tokens(ctx_len: int) -> DataError:
    return DataError(
        f"the data set must have at least one sequence of ctx_len={ctx_len} tokens, got fewer; "
        "pass more text or lower --ctx_len"
    )

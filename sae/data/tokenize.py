"""Text to rows of token ids of one length."""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae.storage.damage import in_one_line
from sae.storage.files import short

from .chat import RULE, ChatError, Turn, as_part, takes_parts, turns_of
from .pack import DOCUMENTS_PER_BATCH, ChunkLayout, PackedStream, Row, pack_dataset
from .read import CHAT

if TYPE_CHECKING:
    import datasets
    import transformers

CLOSING = 3  # tokens at the end of a chat among which its last turn is closed; a line break may follow
DOCUMENTS_PER_PROCESS = 1000  # below this, starting a process takes longer than tokenising


def chunk_and_tokenize(
    data: "datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict",
    tokenizer: "transformers.PreTrainedTokenizerBase",
    *,
    format: str | None = "torch",
    num_proc: int | None = None,
    text_key: str = "text",
    max_seq_len: int = 2048,
    return_final_batch: bool = False,
    load_from_cache_file: bool = True,
) -> "datasets.Dataset | datasets.DatasetDict | PackedStream | dict[str, PackedStream]":
    """Tokenise the documents of a data set and pack them into rows of one length, in a column `input_ids`.

    Each document is tokenised alone, without special tokens. The stream of tokens is `eos doc eos doc …` (with `sep`,
    else `cls`, else nothing for a tokenizer that has no eos). It is cut into chunks of min(tokenizer.model_max_length,
    max_seq_len) tokens. Each chunk carries the special tokens that the tokenizer puts around a text (BOS; [CLS] and
    [SEP]), which count. Empty texts and None are skipped. What a text carries at an end itself, of the separator or of
    the special tokens around a chunk, is not doubled.

    A column of chats (lists of turns with a role, as `messages`) becomes text by the tokenizer's chat template. Where
    that closes a chat with the separator, no other is added. A BOS with which it begins is the chunk's. Empty chats are
    skipped, content that is null is empty, and parts of text are joined.

    Args:
        data: Documents.
        tokenizer: Tokenizer of the language model.
        format: Format of a Dataset's rows.
        num_proc: Processes; the result does not depend on it. None: half of the CPUs, one for small data.
        text_key: Column of the documents.
        max_seq_len: Most tokens of a row.
        return_final_batch: Keep the tokens after the last whole chunk of each split, as a last, shorter row.
        load_from_cache_file: Whether `datasets` may reuse what it cached.

    Returns:
        A Dataset for a Dataset, a DatasetDict for a DatasetDict. An IterableDataset gives a `PackedStream` of rows that
        `state_dict` can resume, an IterableDatasetDict a dict of them.

    Raises:
        ValueError: If the column is missing or is not text, or if a Dataset has fewer tokens than one chunk.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    layout = chunk_layout(tokenizer, max_seq_len)

    def rows_of(split: "datasets.Dataset") -> "datasets.Dataset":
        tokenize = _tokenize_of(split, tokenizer, text_key, layout)
        documents = _tokenize_dataset(split, tokenize, num_proc=num_proc, use_cache=load_from_cache_file)
        return pack_dataset(documents, layout, keep_partial=return_final_batch, use_cache=load_from_cache_file)

    def stream_of(split: "datasets.IterableDataset") -> PackedStream:
        tokenize = _tokenize_of(split, tokenizer, text_key, layout)
        return PackedStream(split, tokenize.rows, layout, format=format, keep_partial=return_final_batch)

    if isinstance(data, Dataset):
        rows = rows_of(data)
        if not len(rows):
            raise ValueError(
                f"data must have at least one chunk of {layout.size} tokens, got fewer in {len(data)} documents; "
                "pass more text or lower max_seq_len (--ctx_len)"
            )
        return rows.with_format(format, columns=["input_ids"])  # the documents' numbers are there, not in the rows
    if isinstance(data, DatasetDict):
        return DatasetDict(
            {name: rows_of(split).with_format(format, columns=["input_ids"]) for name, split in data.items()}
        )
    if isinstance(data, IterableDataset):
        return stream_of(data)
    if isinstance(data, IterableDatasetDict):
        return {name: stream_of(split) for name, split in data.items()}
    raise ValueError(f"data must be a data set of the `datasets` library, got {type(data).__name__}; use load_dataset")


def _tokenize_of(
    split: "datasets.Dataset | datasets.IterableDataset",
    tokenizer: "transformers.PreTrainedTokenizerBase",
    text_key: str,
    layout: ChunkLayout,
) -> "Tokenize":
    """How the texts or chats of a split become tokens. Raises ValueError for a column that holds neither."""
    is_chat = holds_chats(split.features, text_key)
    check_text_column(split.column_names, None if is_chat else split.features, text_key)
    if is_chat:
        check_chat_template(tokenizer, text_key)
    ends = (layout.prefix, layout.suffix)
    in_parts = is_chat and takes_parts(tokenizer)
    return Tokenize(tokenizer, text_key, separator_id(tokenizer), is_chat=is_chat, ends=ends, chats_in_parts=in_parts)


@dataclass(frozen=True)
class Tokenize:
    """A batch of texts to the token ids of each, the separator first; picklable, so that `datasets` can cache by it."""

    tokenizer: "transformers.PreTrainedTokenizerBase"
    text_key: str
    separator: int | None
    # part of the key under which `datasets` caches tokens: raise it when the same text must give other tokens
    version: int = 4
    is_chat: bool = False
    """Whether rows are chats, which the tokenizer's template makes text."""
    ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Special tokens before and after each chunk."""
    chats_in_parts: bool = False
    """Whether the template wants the content of a turn as a list of parts."""

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int] = ()) -> dict[str, list[list[int]]]:
        """Raises ValueError, with the place by `indices`, for what cannot be tokenised."""
        texts = self._texts(batch[self.text_key], indices)
        if not texts:
            return {"input_ids": []}
        ids = self._ids(texts)
        return {"input_ids": [self._separated(document) for document in ids]}

    def _separated(self, ids: list[int]) -> list[int]:
        """A document with the separator before it, which is not doubled where the text carries it at an end.

        Nor are the special tokens around a chunk. A rendered chat that closes its last turn with the separator needs no
        other.
        """
        separator = [] if self.separator is None else [self.separator]
        before, after = ({*separator, *end} for end in self.ends)
        if self.is_chat and self.separator in ids[-CLOSING:]:
            return _without(ids, before, ())
        return [*separator, *_without(ids, before, after)]

    def rows(self, rows: list[Row]) -> list[list[int]]:
        """Token ids of each row. Raises ValueError, listing the columns, for a row without the column."""
        for row in rows:
            check_text_column(list(row), None, self.text_key)
        ids: list[list[int]] = self({self.text_key: [row[self.text_key] for row in rows]})["input_ids"]
        return ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        try:
            ids: list[list[int]] = self.tokenizer(
                texts,
                add_special_tokens=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # the chunks are what must fit the model, not the documents
            )["input_ids"]
            return ids
        except Exception as error:  # some kinds of tokenizers refuse what is not in their vocabulary
            raise ValueError(
                f"text column {self.text_key!r} must hold what the tokenizer can read, got a text of which it says: "
                f"{in_one_line(error)}; clean the text, or give the tokenizer an unknown token"
            ) from error

    def _texts(self, column: list[Any], indices: Sequence[int]) -> list[str]:
        if self.is_chat:
            chats = (self._rendered(chat, indices[place : place + 1]) for place, chat in enumerate(column))
            return [text for text in chats if text]
        texts = [text for text in column if text is not None and text != ""]
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise _not_text(self.text_key, type(wrong).__name__)
        return texts

    def _rendered(self, chat: Any, index: Sequence[int]) -> str:
        """The chat as text; empty for an empty chat."""
        where = "".join(f" in row {number + 1:,} of the data" for number in index)
        try:
            turns = turns_of(chat)
        except ChatError as error:
            raise ValueError(
                f"column {self.text_key!r} {RULE}, got {error}{where}; mend or leave out that row"
            ) from None
        if not turns:
            return ""
        text = self._from_template(turns, where)
        # half of a surrogate pair, which JSON can say and UTF-8 cannot
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _from_template(self, turns: list[Turn], where: str) -> str:
        if self.chats_in_parts:
            turns = [turn | {"content": as_part(turn["content"])} for turn in turns]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception as error:  # templates raise what they like
            raise ValueError(
                f"column {self.text_key!r} must hold chats that the tokenizer's chat template can render, got one"
                f"{where} ({short(turns)}) of which it says: {type(error).__name__}: {in_one_line(error)}; "
                "mend or leave out that row, or make the chats text, in another column"
            ) from error


def holds_chats(features: Any, text_key: str) -> bool:
    """Whether the column is one of chats: lists of turns with a role, or text of JSON of them, called `messages`."""
    feature = (features or {}).get(text_key)
    turn = getattr(feature, "feature", None)
    of_json = type(feature).__name__ == "Json" or getattr(feature, "dtype", "string") == "string"
    return (isinstance(turn, Mapping) and "role" in turn) or (text_key == CHAT and of_json)


def check_chat_template(tokenizer: "transformers.PreTrainedTokenizerBase", text_key: str) -> None:
    """Raise ValueError if there is no template to make text of chats."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer must have a chat template for the chats in column {text_key!r}, got none; take an "
            "instructed model, or name a column of text with text_key (--text_column)"
        )


def check_text_column(column_names: list[str] | None, features: Any, text_key: str) -> None:
    """Raise ValueError if the column is known to be missing or not to be text. Streams may know neither: None."""
    if column_names is not None and text_key not in column_names:
        raise ValueError(
            f"text column must be one of the data set's columns ({', '.join(column_names)}), got {text_key!r}; "
            "name it with text_key (--text_column)"
        )
    dtype = getattr((features or {}).get(text_key), "dtype", "string" if features is None else "not a string")
    if dtype not in ("string", "large_string", "string_view", "null"):
        raise _not_text(text_key, dtype)


def _not_text(text_key: str, found: str) -> ValueError:
    return ValueError(
        f"text column {text_key!r} must hold strings, got {found}; name the column that holds text with text_key "
        "(--text_column)"
    )


def chunk_layout(tokenizer: "transformers.PreTrainedTokenizerBase", max_seq_len: int) -> ChunkLayout:
    """Chunks as long as both the tokenizer's model and `max_seq_len` allow, with the tokenizer's special tokens."""
    prefix, suffix = special_ends(tokenizer)
    # a tokenizer that does not know its model's length says 1e30
    return ChunkLayout(int(min(tokenizer.model_max_length, max_seq_len)), prefix, suffix)


def special_ends(tokenizer: "transformers.PreTrainedTokenizerBase") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text, found by tokenising one both ways.

    The text is one that the tokenizer knows, by its own vocabulary. An unknown text may vanish, and then nothing tells
    what stood before it from what stood after. Raises ValueError if none shows the two.
    """
    for text in _known_texts(tokenizer):
        try:
            plain, full = (_ids(tokenizer(text, add_special_tokens=special)) for special in (False, True))
        except Exception:  # a tokenizer's own kinds: it may refuse what it does not know
            continue
        if ends := _around(plain, full):
            return ends
    raise ValueError(
        f"the tokenizer must show which special tokens it puts around a text, but {type(tokenizer).__name__} turns "
        "none of its own vocabulary into the same tokens with and without them; pass data that is tokenised, in a "
        "column input_ids"
    )


def _known_texts(tokenizer: "transformers.PreTrainedTokenizerBase") -> Iterator[str]:
    """Texts of one ordinary token each, as far as the vocabulary can be read; a plain letter first."""
    yield "a"
    special = set(tokenizer.all_special_ids)
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        if index not in special:
            yield from dict.fromkeys([str(tokenizer.decode([index])), token])


def encode_once(tokenizer: "transformers.PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text with the tokenizer's special tokens around it, each once though the text may carry them.

    Such is a rendered chat: its template may write the BOS that the tokenizer puts before any text.
    """
    try:
        prefix, suffix = special_ends(tokenizer)
    except ValueError:  # nothing tells them
        return [_ids(tokenizer(text)) for text in texts]
    plain = (_ids(tokenizer(text, add_special_tokens=False)) for text in texts)
    return [[*prefix, *_without(ids, prefix, suffix), *suffix] for ids in plain]


def _without(ids: list[int], before: Container[int], after: Container[int]) -> list[int]:
    """The ids from the first that is not in `before` to the last that is not in `after`."""
    first = next((place for place, token in enumerate(ids) if token not in before), len(ids))
    last = next((place for place in range(len(ids), first, -1) if ids[place - 1] not in after), first)
    return ids[first:last]


def _ids(encoded: Any) -> list[int]:
    return list(encoded["input_ids"])


def _around(plain: list[int], full: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """What stands before and after `plain` in `full`; None unless there is one answer."""
    size = len(plain)
    starts = [start for start in range(len(full) - size + 1) if full[start : start + size] == plain] if size else []
    return (tuple(full[: starts[0]]), tuple(full[starts[0] + size :])) if len(starts) == 1 else None


def separator_id(tokenizer: "transformers.PreTrainedTokenizerBase") -> int | None:
    """The token that goes before each document."""
    candidates = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id)
    return next((token for token in candidates if token is not None), None)


def derived_num_proc(num_documents: int) -> int:
    """Processes for tokenising: half of the CPUs that we may use, as far as there is work for them."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    num_cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(num_cpus // 2, num_documents // DOCUMENTS_PER_PROCESS))


def _tokenize_dataset(
    data: "datasets.Dataset", tokenize: Tokenize, *, num_proc: int | None, use_cache: bool
) -> "datasets.Dataset":
    """One row of token ids per document. Cached on its own, so that another chunk length costs no tokenising."""
    from datasets import Features, List, Value

    if num_proc is not None and num_proc < 1:
        raise ValueError(
            f"num_proc must be at least 1, got {num_proc}; leave it out to derive it (--data_preprocessing_num_proc)"
        )
    num_proc = min(num_proc or derived_num_proc(len(data)), max(1, len(data)))
    return data.with_format(None).map(
        tokenize,
        batched=True,
        with_indices=True,
        batch_size=DOCUMENTS_PER_BATCH,
        num_proc=num_proc if num_proc > 1 else None,
        remove_columns=data.column_names,
        features=Features({"input_ids": List(Value("int32"))}),
        load_from_cache_file=use_cache,
        desc="Tokenizing",
    )

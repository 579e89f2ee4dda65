"""Files of rows: which are read, however they are named or packed, and the one column of them that is wanted."""

import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import IO, Any, NamedTuple

from sae.storage.damage import DAMAGED, plainly

from .chat import RULE, ChatError, turns_of

KINDS = {
    ".txt": "text", ".jsonl": "json", ".ndjson": "json", ".jsonlines": "json", ".json": "json", ".csv": "csv",
    ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
"""Kinds of rows by the ending of a file; parquet is read by `datasets`."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
"""Each of them may follow an ending of KINDS, but that of parquet, which is compressed inside."""
IDS = ("input_ids", "tokens")
"""Names of the column of a tokenised data set; the second is that of SAELens."""
MASK, CHAT = "attention_mask", "messages"

PIECE_CHARACTERS = 1 << 16  # length of the documents that a .txt file becomes, about
SAMPLE_BYTES = 1 << 22  # bytes of a file by which it is known as text
ROWS_FOR_COLUMNS = 1000  # rows of a file by which its columns are known
MAX_WHOLE_BYTES = 1 << 33  # size of a JSON file that is one list: it is read at once

Row = dict[str, Any]

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """What a user gave does not name usable data; the message is one line."""


class File(NamedTuple):
    """A file, and what it was when it was opened: part of the key under which `datasets` caches its rows."""

    path: str
    """Where it lies; may be hf://…"""
    name: str
    """Where it came from, with its endings; for messages."""
    version: tuple[int, int]
    """Size and time."""
    token: str | None = None
    """For the hub; only where the file lies there."""

    @classmethod
    def of(cls, path: str, name: str | None = None, *, token: str | None = None) -> "File":
        here = os.stat(path) if os.path.exists(path) else None
        version = (here.st_size, here.st_mtime_ns) if here else (0, 0)
        return cls(path, name or path, version, token if path.startswith("hf://") else None)

    def open(self, compression: str | None = None) -> Any:
        """A context that gives its bytes, unpacked."""
        import fsspec

        return fsspec.open(self.path, "rb", compression=compression, **({"token": self.token} if self.token else {}))

    @property
    def kind(self) -> str | None:
        """Kind of its rows; None for a file that is not read."""
        kind = KINDS.get(endings(self.name)[0])
        return None if kind == "parquet" and endings(self.name)[1] else kind


def endings(name: str) -> tuple[str, str]:
    """What a file's name ends with, as `.jsonl` and `.gz`; "" for none."""
    stem, last = os.path.splitext(os.path.basename(name).lower())
    return (os.path.splitext(stem)[1], last) if last in COMPRESSIONS else (last, "")


def known_endings() -> str:
    """The endings that are read, for messages."""
    return f"{', '.join(KINDS)} (all but the last also with {', '.join(COMPRESSIONS)})"


def wanted_columns(columns: Iterable[str], text_column: str) -> list[str]:
    """Columns that are read: the text's; else that of token ids, with its mask; else that of chats; else none.

    Token ids are also chosen by naming their column as that of the text.
    """
    columns = list(columns)
    if text_column in columns and text_column not in IDS:
        return [text_column]
    ids = [name for name in dict.fromkeys((text_column, *IDS)) if name in IDS and name in columns]
    if ids:
        return [ids[0], *[MASK] * (MASK in columns)]
    return [CHAT] * (CHAT in columns)


def columns_of(files: Iterable[File]) -> list[str]:
    """The columns of the first file that has a row, as its first rows show."""
    for file in files:
        if file.kind == "text":
            return ["text"]
        if columns := list(dict.fromkeys(name for _, row in islice(_raw_rows(file), ROWS_FOR_COLUMNS) for name in row)):
            return columns
    return []


def rows_of(files: list[File], columns: Sequence[str]) -> Iterator[Row]:
    """The rows of files, of these columns alone; others may be of any kind, and differ. A chat is text of JSON.

    Raises DataError, naming file, line and column, for an unreadable file, one without the column, and a value of
    another kind than its name says.
    """
    of_kind: dict[str, Callable[[str, Any], Any]] = {CHAT: _chat, MASK: _mask, **dict.fromkeys(IDS, _ids)}
    read: dict[str, Callable[[str, Any], Any]] = {name: of_kind.get(name, _text) for name in columns}
    for file in files:
        has_column = has_rows = False
        for place, row in _raw_rows(file):
            has_rows, has_column = True, has_column or columns[0] in row
            with _in_place(file, place):
                wanted = {name: as_kind(name, row.get(name)) for name, as_kind in read.items()}
            yield wanted
        if has_rows and not has_column:
            raise no_such_column(columns[0], file.name)


def no_such_column(name: str, file: str) -> DataError:
    return DataError(f"column {name!r} must be in every file, got none in {file}; leave that file out")


@contextmanager
def _in_place(file: File, place: str) -> Iterator[None]:
    try:
        yield
    except _WrongKind as error:
        raise DataError(f"{error} in {place} of {file.name}; mend or leave out that row") from None


class _WrongKind(Exception):
    """A value that is not of the kind of its column."""


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _WrongKind(f"text column {name!r} must hold strings, got {type(value).__name__}")
    # half of a surrogate pair, which JSON can say and UTF-8 cannot
    return value and value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _ids(name: str, value: Any) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _WrongKind(f"column {name!r} must hold lists of whole numbers, got {type(value).__name__}")
    wrong = next((one for one in value if type(one) is not int or not -(2**63) <= one < 2**63), 0)
    if type(wrong) is not int or wrong:
        raise _WrongKind(f"column {name!r} must hold lists of whole numbers, got {str(wrong)[:40]}")
    return value


def _mask(name: str, value: Any) -> list[int] | None:
    return _ids(name, [int(one) if type(one) is bool else one for one in value] if isinstance(value, list) else value)


def _chat(name: str, value: Any) -> str | None:
    try:
        turns = turns_of(value)
    except ChatError as error:
        raise _WrongKind(f"column {name!r} {RULE}, got {error}") from None
    return json.dumps(turns) if turns else None


# The rows of one file, each with its place for messages


def _raw_rows(file: File) -> Iterator[tuple[str, Row]]:
    readers: dict[str, Callable[[File], Iterator[tuple[str, Row]]]]
    readers = {"text": _text_rows, "json": _json_rows, "csv": partial(_csv_rows, tab=endings(file.name)[0] == ".tsv")}
    assert file.kind is not None
    try:
        yield from readers[file.kind](file)
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.errno is not None or "://" in file.path):
            raise  # of the disk or the network; the others are of codecs and of what unpacks
        why = DAMAGED if isinstance(error, OSError) else plainly(error)
        raise DataError(f"data files must be readable, got {file.name}: {why}; mend it, or leave it out") from None


@contextmanager
def open_bytes(file: File) -> Iterator[IO[bytes]]:
    """The contents of a file, unpacked. Raises DataError for an archive of several files."""
    import fsspec

    packed = COMPRESSIONS.get(endings(file.name)[1])
    if packed == "zstd" and "zstd" not in fsspec.available_compressions():
        raise DataError(f"reading {file.name} needs the package zstandard; pip install zstandard, or unpack the file")
    if packed == "zip":
        _check_one_inside(file)
    with file.open(packed) as stream:
        yield stream


def _check_one_inside(file: File) -> None:
    import zipfile

    with file.open() as stream:
        if not zipfile.is_zipfile(stream):
            raise DataError(f"data files must be what their endings say, got {file.name}, which is no archive")
        inside = zipfile.ZipFile(stream).namelist()
    if len(inside) != 1:
        raise DataError(f"a .zip file must hold one file, got {len(inside)} in {file.name}; unpack it, and name those")


@contextmanager
def _open_text(file: File, *, errors: str = "strict", newline: str | None = None) -> Iterator[IO[str]]:
    import io

    with open_bytes(file) as stream:
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors=errors, newline=newline)


def _text_rows(file: File) -> Iterator[tuple[str, Row]]:
    """A text cut at line ends into pieces of about 64k characters (twice that where there are no lines)."""
    with _open_text(file, errors="replace") as stream:
        while piece := stream.read(PIECE_CHARACTERS):
            yield "a piece", {"text": piece + stream.readline(PIECE_CHARACTERS)}


def _json_rows(file: File) -> Iterator[tuple[str, Row]]:
    """An object on each line; or all in one list; or one object of columns."""
    with _open_text(file) as stream:
        first = next(filter(str.strip, stream), "").lstrip()
        row, is_last = _parsed(first), not any(map(str.strip, stream))
    may_be_whole = endings(file.name)[0] == ".json" and (not isinstance(row, dict) or (is_last and _is_columns(row)))
    if first:
        yield from _rows_of_whole(file) if may_be_whole or first.startswith("[") else _lines_of_json(file)


def _lines_of_json(file: File) -> Iterator[tuple[str, Row]]:
    with _open_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"line {number}", _object(file, f"line {number}", _parsed(line))


def _parsed(text: str) -> Any:
    """What a text of JSON says; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(file: File, place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"data files must hold one JSON object on each line, or one list of them, got {place} of {file.name}, "
            "which is none; mend or leave out that line"
        )
    return value


def _is_columns(value: dict[str, Any]) -> bool:
    """Whether an object holds columns, as of a table, and not values, as of a row."""
    lengths = {len(column) if isinstance(column, list) else -1 for column in value.values()}
    return len(lengths) == 1 and lengths != {-1} and not set(value) & {*IDS, CHAT}


def _rows_of_whole(file: File) -> Iterator[tuple[str, Row]]:
    with open_bytes(file) as stream:
        text = stream.read(MAX_WHOLE_BYTES + 1)
    if len(text) > MAX_WHOLE_BYTES:
        raise DataError(
            f"a JSON file that is one list must fit in memory, got {file.name}; write one object on each line"
        )
    value = _parsed(text.decode("utf-8-sig"))
    if isinstance(value, dict) and _is_columns(value):
        names = list(value)
        value = [dict(zip(names, row, strict=True)) for row in zip(*value.values(), strict=True)]
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"row {number}", _object(file, f"row {number}", row)


def _csv_rows(file: File, *, tab: bool) -> Iterator[tuple[str, Row]]:
    """Rows of a table whose first line names the columns. Text stays what it is: NA and null too."""
    csv.field_size_limit(2**31 - 1)
    with _open_text(file, newline="") as stream:
        lines = csv.reader(stream, delimiter="\t" if tab else ",")
        names = next(lines, [])
        for row in lines:
            yield f"line {lines.line_num}", dict(zip(names, row, strict=False))


def tell_what_is_no_text(files: Iterable[File]) -> None:
    """A line in the log for text files whose beginning is not UTF-8, with the share of it that is replaced."""
    for file in files:
        with open_bytes(file) as stream:
            found = stream.read(SAMPLE_BYTES).decode("utf-8-sig", "replace")
        wrong = found.count("\ufffd") + found.count("\0")
        if wrong > found.endswith("\ufffd"):  # the sample may end within a character
            logger.warning(
                "%s is not all UTF-8: %.2g %% of the characters of its beginning are none and become \ufffd; "
                "convert the file, as with iconv",
                file.name,
                100 * wrong / len(found),
            )

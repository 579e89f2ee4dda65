"""Words for what is wrong with a file, in place of those of the libraries that read it."""

import json
import lzma
import struct
import zipfile
import zlib

_MOST = 200
DAMAGED = "it is cut off, damaged or of another kind"
_OF_CONTENTS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error)
_NAMES_OF_CONTENTS = {"ArrowInvalid", "BadGzipFile", "SafetensorError", "UnpicklingError", "ZstdError"}
"""Classes of libraries that are imported where they are needed."""


def in_one_line(said: object) -> str:
    """What a library or its error says, in one line of at most 200 characters; an error without words by its class."""
    words = " ".join(str(said).split())[:_MOST]
    return words or (type(said).__name__ if isinstance(said, BaseException) else "")


def plainly(error: BaseException) -> str:
    """What an error about the contents of a file means; of an unknown kind its class and first line."""
    if isinstance(error, json.JSONDecodeError):
        return f"at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, _OF_CONTENTS) or type(error).__name__ in _NAMES_OF_CONTENTS or _is_arrows(error):
        return DAMAGED
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:_MOST]


def _is_arrows(error: BaseException) -> bool:
    """Whether pyarrow raised the error about what it read: OSError, and none of the operating system."""
    if type(error) is not OSError or error.errno is not None:
        return False
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and str(at.tb_frame.f_globals.get("__name__")).partition(".")[0] == "pyarrow"

"""Folders behind an address, such as `s3://bucket/folder`: whatever fsspec opens. An object is there whole or not."""

import hashlib
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sae.storage.damage import in_one_line
from sae.storage.files import without_dots

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*(?=://)")
_ONE_SLASH = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
_HERE = ("file", "local")
_WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "r2", "hf")
"""Protocols of object stores, where a path needs no folder. Asked for one, some of them would create a bucket."""
_OF_THIS_PROCESS = ("memory",)
"""Protocols whose files are gone when the process ends."""
_SECRETS = (
    (re.compile(r"//[^/\s]*@"), "//***@"),
    (re.compile(r"\?\S+"), "?***"),
    (re.compile(r"(?i)(key|token|secret|signature|password|credential|authorization)(\w*\W{1,3})\S+"), r"\1\2***"),
)
_BLOCK = 2**24
"""Bytes that are asked for at a time."""


Mapped = mmap.mmap | bytearray
"""Contents of a file, mapped; an empty one has no map."""


class RemoteFolder:
    """A folder behind an address. Its files are read and written whole; nothing is renamed or appended to.

    Credentials are those that the protocol's package finds, in its own files or in the environment. Errors are
    OSErrors of one line that hold none of them.
    """

    def __init__(self, address: str) -> None:
        """Raises ValueError for an address that fsspec cannot open here, and says which package is missing."""
        self.address, self._protocol = address.rstrip("/"), _checked(address)
        import fsspec
        from fsspec.registry import known_implementations, registry

        if self._protocol not in known_implementations and self._protocol not in registry:
            raise ValueError(
                f"{self._protocol}:// is not known to fsspec; give a folder, or an address such as s3://bucket/folder"
            )
        try:
            with self._explained(""):
                self._files, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise ValueError(_missing(self._protocol, error)) from None
        self._root = str(root).rstrip("/")

    def __str__(self) -> str:
        return self.address

    def check_lasting(self, option: str) -> None:
        """Raise ValueError for an address whose files are gone when this process ends."""
        if self._protocol in _OF_THIS_PROCESS:
            raise ValueError(
                f"{option} must be a place that outlives this command, got {self}, which is gone when it ends; "
                "give a folder, or an address such as s3://bucket/folder"
            )

    def sizes(self, below: str = "") -> dict[str, int]:
        """{path in this folder: bytes} of all files below one of its folders; empty if there is none."""
        with self._explained(below), suppress(FileNotFoundError, NotADirectoryError):
            self._files.invalidate_cache()
            found = self._files.find(self._path(below), detail=True)
            return {str(name)[len(self._root) :].strip("/"): int(info["size"]) for name, info in found.items()}
        return {}

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        with suppress(FileNotFoundError), self._explained(name):  # fsspec's own `isfile` says no to any error
            self._files.invalidate_cache()
            return bool(self._files.info(self._path(name))["type"] == "file")
        return False

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """A small file. Raises ValueError if it is larger than `max_bytes`."""
        with self._explained(name):
            self._files.invalidate_cache()
            size = int(self._files.info(self._path(name))["size"])
            if size <= max_bytes:
                return bytes(self._files.cat_file(self._path(name)))
        raise ValueError(f"{self}/{name} must be at most {max_bytes} bytes, got {size}")

    def read_parts(self, parts: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of files, given as (name, start, stop), side by side where the protocol can. Raises if one is short."""
        names, starts, stops = ([each[at] for each in parts] for at in range(3))
        with self._explained(""):
            read = self._files.cat_ranges([self._path(str(name)) for name in names], starts, stops, on_error="raise")
            found = [bytes(part) for part in read]
        for (name, start, stop), part in zip(parts, found, strict=True):
            if len(part) != stop - start:
                raise OSError(f"{self}/{name} must have {stop} bytes, and ends before; delete it all, and begin anew")
        return found

    def fetch(self, name: str) -> tuple[Mapped, str]:
        """A file brought to the disk and mapped, and its SHA-256. It has no name, and is gone when nobody has it.

        Raises ValueError if there is no room for it.
        """
        with self._explained(name):
            size = int(self._files.info(self._path(name))["size"])
        if (free := shutil.disk_usage(tempfile.gettempdir()).free) < size:
            raise ValueError(
                f"{self}/{name} of {size / 1e6:.0f} MB is fetched to {tempfile.gettempdir()}, which has "
                f"{free / 1e6:.0f} MB left; make room, or set TMPDIR to a larger disk"
            )
        digest = hashlib.sha256()
        with tempfile.TemporaryFile() as file:
            for start in range(0, size, _BLOCK):
                with self._explained(name):
                    block = self._files.cat_file(self._path(name), start=start, end=min(size, start + _BLOCK))
                digest.update(block)
                file.write(block)
            file.flush()
            found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if file.tell() else bytearray()
        return found, digest.hexdigest()

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file: readers find the old one or the new one, if the protocol keeps its word."""
        with self._explained(name):
            self._make_folder_of(name)
            self._files.pipe_file(self._path(name), bytes(content))

    def write_blocks(self, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file of any size."""
        with self._explained(name):
            self._make_folder_of(name)
            with self._files.open(self._path(name), "wb") as file:
                for block in blocks:
                    file.write(block)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those of them that are there."""
        for name in names:
            with self._explained(name), suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

    def remove_below(self, folder: str) -> None:
        """Remove a folder in this one, if it is there."""
        with self._explained(folder), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            if self._files.exists(self._path(folder)):
                self._files.rm(self._path(folder), recursive=True)

    def check_writable(self, option: str) -> None:
        """Raise ValueError unless files can be made here. It is tried, and leaves nothing."""
        try:
            self.write(".writable", b"tried")
            self.remove([".writable"])
        except OSError as error:
            raise ValueError(f"{option} must be an address that can be written, but {error}") from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _make_folder_of(self, name: str) -> None:
        if self._protocol not in _WITHOUT_FOLDERS:
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Any error as an OSError in one line, without what is secret."""
        try:
            yield
        except ImportError:
            raise
        except Exception as error:
            # not chained: a library's message may quote a key, or an address that is signed
            kind = next((kind for kind in (FileNotFoundError, PermissionError) if isinstance(error, kind)), OSError)
            place = f"{self}/{name}" if name else str(self)
            raise kind(f"{place} cannot be reached ({_one_line(error)})") from None


def place_of(name: "Path | str | RemoteFolder") -> "Path | RemoteFolder":
    """A folder here, or behind an address. `file://` is here.

    Raises ValueError for an address that cannot be opened.
    """
    if isinstance(name, str) and (meant := _ONE_SLASH.match(name)):
        raise ValueError(f"an address must be {meant[1]}://PLACE/FOLDER, got one slash instead of two; add the other")
    if not isinstance(name, str) or (found := _PROTOCOL.match(name)) is None:
        return name if isinstance(name, RemoteFolder) else without_dots(str(name))
    if found[0] in _HERE:
        return without_dots(name.partition("://")[2] or ".")
    return RemoteFolder(name)


def _checked(address: str) -> str:
    """The protocol of an address. Raises ValueError if it holds what a file or a message should not show."""
    found = _PROTOCOL.match(address)
    at = urlsplit(address).netloc.rpartition("@")[0]
    if (
        found is None
        or not address[found.end() :].strip(":/")
        or ":" in at
        or "?" in address
        or "::" in address
        or not address.isprintable()
    ):
        shown = " ".join(_without_secrets(address).split())[:100]
        raise ValueError(
            "an address must be PROTOCOL://PLACE/FOLDER without password, ? and ::, as it is recorded and shown, got "
            f"{shown}; put keys where the protocol's package looks for them"
        )
    return found[0]


def _missing(protocol: str, error: ImportError) -> str:
    """The sentence on the package that a protocol needs."""
    from fsspec.registry import known_implementations

    told = known_implementations.get(protocol, {}).get("class", "").split(".")[0]
    cause: Any = error.__cause__ or error
    package = told if told not in ("", "fsspec") else str(getattr(cause, "name", None) or "that fsspec names")
    return f"{protocol}:// needs the package {package}, which is not installed; pip install {package}"


def _one_line(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return in_one_line(_without_secrets(told))


def _without_secrets(text: str) -> str:
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text

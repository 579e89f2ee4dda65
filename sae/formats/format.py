"""Definition of a format: how its files are recognised, read and written."""

import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sae.dictionary.spec import Saved
from sae.storage.files import read_json

_MAX_FILES = 200_000


class About(NamedTuple):
    """What a format's configuration says beside the dictionary itself; empty if it is not known."""

    hookpoint: str = ""
    model: str = ""
    dataset: str = ""
    ctx_len: int = 0
    model_b: str = ""
    """The second model, of a crosscoder of two."""


class Claim(NamedTuple):
    """A dictionary that a file's name reveals."""

    relative: str
    """Relative path that `Format.read` takes: a folder, or the file itself."""
    files: tuple[str, ...]
    """Relative paths of the files that reading it needs."""


class Format(NamedTuple):
    """Another library's files."""

    name: str
    """Name in `--to` and `sae info`."""
    library: str
    files: str
    """Description of the files that are looked for, for a message."""
    configs: tuple[str, ...]
    """Names of small files that say what is there, fetched before any weights."""
    claim: Callable[[PurePosixPath, Container[str]], Claim | None]
    """The dictionary that a file belongs to, given all names of files; None if it is of another kind."""
    hookpoint: Callable[[Path], str]
    """Where a dictionary reads, by its configuration and place. Empty: not known. Reads no weights."""
    read: Callable[[Path], Saved]
    write: Callable[[Path, Saved, About], None] | None = None
    """Write one dictionary into a folder. Raises ValueError for what the format cannot say."""
    folder_of: Callable[[str], str] = str
    """Folder of the dictionary of a hookpoint, below the target."""
    finish: Callable[[Path, list[str], About], None] | None = None
    """Complete a set of dictionaries, given their hookpoints."""
    knows: Callable[[Path], Claim | None] | None = None
    """The dictionary in a folder without its weights, by what its configuration says."""
    says_hookpoint: bool = True
    """Whether files or their place name a hookpoint; else `hookpoint` is a name, and the user chooses."""


class StoredDictionary(NamedTuple):
    """A dictionary on the disk or the hub, unread."""

    format: Format
    path: Path
    """Path that `format.read` takes."""
    files: tuple[str, ...]
    """See `Claim`."""
    relative: str
    """The path below the searched folder; "." for that itself."""
    also: tuple[str, ...] = ()
    """Formats in which the same dictionary stands there too, as `sae push` writes them."""
    is_copy: bool = False
    """Whether it is one of these: it is found by its path alone."""

    @property
    def root(self) -> Path:
        """The searched folder."""
        return self.path if self.relative == "." else Path(str(self.path).removesuffix(self.relative))

    def read(self) -> Saved:
        """The dictionary.

        Raises ValueError, in one line, as the format does, and for a configuration that is there and damaged: some
        formats do without one.
        """
        for config in nearby(self.path, *self.format.configs):
            if config.suffix == ".json":
                read_json(config)
        return self.format.read(self.path)


def names_below(folder: Path, *, depth: int = 12) -> list[str]:
    """Relative paths of the files below a folder, sorted; links to folders are not followed."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        at = Path(parent).relative_to(folder)
        if len(at.parts) >= depth:
            folders.clear()
        found += [(at / name).as_posix() for name in files]
        if len(found) > _MAX_FILES:
            raise ValueError(f"{folder} must have at most {_MAX_FILES} files below it; name a folder further down")
    return sorted(found)


def nearby(path: Path, *names: str) -> Iterator[Path]:
    """The files, of `names`, that lie in the folder of a dictionary, or beside a dictionary that is a file."""
    folder = path if path.is_dir() else path.parent
    return (folder / name for name in names if (folder / name).is_file())


def quietly(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty if it cannot be read, which reading the dictionary will say."""
    try:
        return dict(read_json(path))
    except ValueError:
        return {}


def config_of(path: Path, *names: str) -> dict[str, object]:
    """The JSON object in the first of these files that lies by a dictionary; empty without one that can be read."""
    return next((quietly(file) for file in nearby(path, *names)), {})


def beside(file: PurePosixPath, name: str) -> str:
    """Relative path of another file of the folder."""
    return (file.parent / name).as_posix()


def in_folder(file: PurePosixPath, *names: str) -> Claim:
    """A dictionary that is the folder of `file`, with these files in it."""
    return Claim(file.parent.as_posix(), tuple(beside(file, name) for name in names))


def by_itself(file: PurePosixPath) -> Claim:
    """A dictionary that is a file."""
    return Claim(file.as_posix(), (file.as_posix(),))

"""Small files: read as if a stranger had written them, and written so that a crash leaves the old one or the new."""

import difflib
import errno
import glob
import hashlib
import json
import os
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from sae.storage.damage import plainly

MANIFEST = "manifest.json"
"""Name of the list of a folder's files, written last: where it is, the checkpoint or cache is complete."""
_MAX_DIGITS, _MAX_PATH = 20, 400
_PARTIAL = ".partial"
"""End of the name of what is not whole yet."""


def near_names(path: str) -> str:
    """What lies where a path leads that does not exist, as far as it goes: like names, or a few."""
    if near := _like_names(path):
        return f"near names: {', '.join(near)}"
    folder, _, entries = _as_far_as_it_goes(path)
    listing = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
    return f"{folder or 'the current folder'} holds {listing or 'nothing'}"


def near_here(name: str) -> str:
    """The end of a message about a path, or a name of the hub: paths that are like it. Empty if none is."""
    near = _like_names(name)
    return f"; near names here: {', '.join(near)}" if near else ""


def _like_names(path: str) -> list[str]:
    """Paths that are there, and nearly the one that is not."""
    folder, name, entries = _as_far_as_it_goes(path)
    return [os.path.join(folder, entry) for entry in difflib.get_close_matches(name, entries, n=3, cutoff=0.5)]


def _as_far_as_it_goes(path: str) -> tuple[str, str, list[str]]:
    """The last folder of a path that exists, the name that it lacks, and those that it holds and shows."""
    folder, name = os.path.split(path.rstrip("/"))
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    try:
        return folder, name, sorted(os.listdir(folder or "."))
    except OSError:  # it may not be looked into
        return folder, name, []


def read_json(path: Path, *, max_bytes: int = 2**20) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ValueError, in one line that names the file, if there is none, or if it is larger than `max_bytes`. So it
    does if it is not plain JSON: an object, with each key once, finite numbers of sensible size, and little nesting.
    """
    if not path.is_file():
        found = "it is of another kind" if os.path.lexists(path) else "there is no such file"
        raise ValueError(f"{path} must be a JSON file, but {found}")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} must be a small JSON file of at most {max_bytes} bytes, got {size}")
    return json_object(path.read_bytes(), str(path))


def json_object(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in the contents of a file with this name, as `read_json` takes it."""
    try:
        value = json.loads(content, parse_int=_integer, parse_constant=_refuse, object_pairs_hook=_with_each_key_once)
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else plainly(error)
        raise ValueError(f"{name} must be JSON, but it is not ({reason}); is it complete?") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a JSON object, got {type(value).__name__}")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse(constant: str) -> None:
    raise ValueError(f"a number that is {constant}")


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key that stands there twice")
    return values


def steps_of(run: Path) -> list[Path]:
    """The folders `step_<n>` in the folder of a run, newest first, complete or not."""
    steps = [path for path in run.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(steps, key=lambda path: int(path.name[5:]), reverse=True)


def newest_step(run: Path) -> Path:
    """The newest checkpoint in the folder of a run; the folder itself if it holds none."""
    return next(iter(steps_of(run)), run)


def last_taken_and_next_free(path: Path) -> tuple[Path, Path]:
    """Name that was taken last, and the next that is free: the name itself, then with -2 and so on.

    Where none is taken, both are the name itself.
    """
    taken, free, number = path, path, 1
    while os.path.lexists(free):  # a link to nothing is there as well
        number += 1
        taken, free = free, path.with_name(f"{path.name}-{number}")
    return taken, free


def short(value: object) -> str:
    """A value for a message: one line, and never long."""
    try:
        shown = reprlib.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        shown = f"<{type(value).__name__}>"
    return " ".join(shown.split())[:60]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with `write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write the file so that a crash at any moment leaves the old one or the new one, complete."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to inside `with`, whose file becomes `path` at its end. An error leaves what was there."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # of a full disk Python does not say which file it was
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill inside `with`. `folder`, new or empty before, has all of it at the end; an error leaves nothing.

    An empty one stays the same, for it may be another disk's, or the current one.
    """
    was_there = folder.exists()
    partial = folder / _PARTIAL if was_there else folder.with_name(f".{folder.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill has left
    try:
        partial.mkdir(parents=True)
        yield partial
        if was_there:
            for path in list(partial.iterdir()):
                path.rename(folder / path.name)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_new_or_empty(folder: Path) -> bool:
    """Whether `whole_folder` can fill it."""
    return not os.path.lexists(folder) or (folder.is_dir() and all(path.name == _PARTIAL for path in folder.iterdir()))


def without_dots(name: str) -> Path:
    """The folder of that name without `..`, which leads nowhere behind a folder that is not there yet."""
    folder = Path(name)
    if ".." not in folder.parts:
        return folder
    return folder.resolve() if folder.name == ".." else folder.parent.resolve() / folder.name


def absolute(name: str) -> str:
    """A name that leads to the same from anywhere, if it leads to something here; else as it is, as one on the hub.

    It may be a file, a folder, a glob that fits some, or a folder with a configuration after a colon. An address, such
    as `s3://…`, stays as it is.
    """
    if "://" in name:
        return name
    path = os.path.expanduser(name)
    return os.path.abspath(path) if is_here(path) else name


def is_here(path: str) -> bool:
    """Whether the path leads to something."""
    folder, colon, _ = path.partition(":")
    return os.path.exists(path) or bool(glob.glob(path)) or (bool(colon) and os.path.isdir(folder))


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder that is, or will be."""
    return shutil.disk_usage(nearest(folder)).free


@contextmanager
def full_disk_explained(message: Callable[[str], str]) -> Iterator[None]:
    """The OSError of a disk, or a share of it, that is full gets a message made of the system's words for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(message(str(error.strerror))) from error


def check_writable(option: str, folder: Path) -> None:
    """Raise ValueError unless files can be made in `folder`, or where it will be. It is tried, and leaves nothing.

    `option` is its name; in capitals it is one that is typed without a name.
    """
    existing, typed = nearest(folder), option if option.isupper() else f"--{option}"
    if not existing.is_dir():
        raise ValueError(f"{option} must be a folder, but {existing} is a file; choose another {typed}")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ValueError(
            f"{option} must be a folder that can be written, but {existing} cannot ({error.strerror}); "
            f"choose another {typed}"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_inside(name: str) -> bool:
    """Whether a relative path with slashes stays in the folder that it starts from, and fits into a line of text."""
    path = PurePosixPath(name)
    stays = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
    return stays and name.isprintable() and len(name) <= _MAX_PATH


def link_that_leaves(folder: Path, *, within: Sequence[str] = ()) -> Path | None:
    """A symbolic link below `folder` that leads out of it; None if there is none.

    Links below the folders of the names `within` it are not looked at: these belong to others.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not _target(path).is_relative_to(root):
                return path
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in within]
    return None


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return Path("/")

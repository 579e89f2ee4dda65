"""One writer for a folder: a lock of the operating system, which ends with the process that holds it."""

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sae.storage.files import short

LOCK = ".lock"
"""Name of the file that is locked. One that a dead process left behind is locked by nobody."""
_NOT_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Error numbers of file systems that cannot lock."""
_held: set[int] = set()
"""Open files that this process has locked."""


@contextmanager
def alone_in(folder: Path, *, tell: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
    """Be the only process that writes into the existing folder, other machines on its file system included.

    Raises ValueError if another process does. Where the file system cannot lock, `tell` gets a sentence, and nothing is
    locked.
    """
    descriptor = _locked(folder, tell)
    try:
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            try:
                with suppress(OSError):
                    (folder / LOCK).unlink()  # while it is ours
            finally:
                os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Raise ValueError if a process that is alive writes into the folder. Leaves nothing."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        descriptor = os.open(folder / LOCK, os.O_RDWR)
        try:
            _try_to_lock(descriptor, folder)
        finally:
            os.close(descriptor)


def remove_left_lock(folder: Path) -> None:
    """Remove the lock that a dead process has left in a folder that is complete."""
    if (folder / LOCK).exists():
        with suppress(ValueError, OSError), alone_in(folder):
            pass


def holds_nothing(folder: Path) -> bool:
    """Whether the folder is empty, but for a lock."""
    return all(path.name == LOCK for path in folder.iterdir())


def _locked(folder: Path, tell: Callable[[str], None]) -> int | None:
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try_to_lock(descriptor, folder):
                tell(f"{folder} is on a file system without locks: see to it that no other process writes there")
                (folder / LOCK).unlink(missing_ok=True)
                os.close(descriptor)
                return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_still_there(descriptor, folder / LOCK):
            _close_in_children()
            _held.add(descriptor)
            with suppress(OSError):  # who we are is for messages; the disk may be full
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())
            return descriptor
        os.close(descriptor)  # who held it has removed it meanwhile


def _try_to_lock(descriptor: int, folder: Path) -> bool:
    """Lock the open file; false if that cannot be done here. Raises ValueError if another process has locked it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not on this system
        return False
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            raise
        raise ValueError(
            f"{folder} must have one process that writes it, but {_holder(folder)} is at work there; wait until it has "
            "ended, or stop it"
        ) from None
    return True


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _holder(folder: Path) -> str:
    """Name of the process that says it writes there."""
    try:
        found = json.loads((folder / LOCK).read_bytes()[:1000])
        return f"process {int(found['process'])} on {short(found['host'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another"


@cache
def _close_in_children() -> None:
    """Close the lock in a child process, which must not hold it longer than this one lives."""
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())

"""One writer for a folder: others are told who, and what a dead process left behind stops nobody."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae.storage.lock import LOCK, alone_in, check_unlocked, holds_nothing

WRITER = """
import os, sys, time
from pathlib import Path
from sae.storage.lock import alone_in
with alone_in(Path(sys.argv[1])):
    if "child" in sys.argv and os.fork() == 0:
        os.setsid()
        os.close(1)  # who reads what its parent says waits for the end of all who could write
        time.sleep(20)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


def writer(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Another process that writes into the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_writes_and_one_that_was_killed_stops_nobody(tmp_path: Path) -> None:
    other = writer(tmp_path)
    for attempt in (check_unlocked, lambda folder: alone_in(folder).__enter__()):
        with pytest.raises(ValueError, match=f"one process that writes it, but process {other.pid} on .* is at work"):
            attempt(tmp_path)
    kill(other)
    assert (tmp_path / LOCK).exists() and holds_nothing(tmp_path)
    check_unlocked(tmp_path)
    with alone_in(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()}"):
        check_unlocked(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_child_that_outlives_the_process_does_not_hold_its_lock(tmp_path: Path) -> None:
    other = writer(tmp_path, "child")
    kill(other)
    try:
        deadline = time.monotonic() + 5  # until the child has run what it does first
        while time.monotonic() < deadline:
            try:
                check_unlocked(tmp_path)
                break
            except ValueError:
                time.sleep(0.01)
        check_unlocked(tmp_path)
    finally:
        os.killpg(other.pid, signal.SIGKILL) if _lives(other.pid) else None


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_writers_of_one_process_are_two(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(ValueError, match="is at work there"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_a_lock_whose_holder_removed_it_in_between_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / LOCK).unlink()  # the one before has just ended
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone_in(tmp_path), pytest.raises(ValueError, match="is at work there"):
        check_unlocked(tmp_path)
    assert len(calls) == 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with alone_in(tmp_path, tell=said.append):
        assert not any(tmp_path.iterdir())
    assert len(said) == 1 and "on a file system without locks" in said[0]


def test_what_a_lock_says_is_not_believed(tmp_path: Path) -> None:
    for text in (b"", b"[]", b'{"host": "\\u001b[31m", "process": 3}', b"\xff" * 2000):
        with alone_in(tmp_path):
            (tmp_path / LOCK).write_bytes(text)
            with pytest.raises(ValueError, match="at work there") as error:
                check_unlocked(tmp_path)
            assert str(error.value).isprintable()

"""Files are written whole, or what was there stays; the order of a run's steps."""

from pathlib import Path

import pytest
from full_disk import files_of_at_most

from sae.storage.files import steps_of, whole_file, write_atomically


def test_a_file_that_a_disk_does_not_take_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_atomically(path, b"old")
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        write_atomically(path, b"new" * 1000)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("report.html", b"old")]
    write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"new" * 1000


def test_a_stop_while_a_file_is_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("curves.png", b"old")]


def test_the_steps_of_a_run_come_newest_first_and_other_folders_are_none(tmp_path: Path) -> None:
    for name in ("step_9", "step_10", "step_²", "step_", "step_1a", ".step_11.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_12").write_bytes(b"")
    assert [path.name for path in steps_of(tmp_path)] == ["step_10", "step_9"]

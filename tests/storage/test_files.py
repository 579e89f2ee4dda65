"""Files are written whole, or what was there stays; the order of a run's steps."""

from pathlib import Path

import pytest
from full_disk import files_of_at_most

from sae.storage.files import is_new_or_empty, steps_of, whole_file, without_dots, write_atomically


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


@pytest.mark.parametrize(("name", "is_free"), [("new/..", False), ("empty/../new", True), ("new/../other", True)])
def test_a_folder_behind_two_dots_is_what_it_leads_to(tmp_path: Path, name: str, *, is_free: bool) -> None:
    (tmp_path / "empty").mkdir()
    folder = without_dots(f"{tmp_path}/{name}")
    assert is_new_or_empty(folder) is is_free
    assert folder == (tmp_path / name.rpartition("/")[2] if is_free else tmp_path)


def test_a_link_to_nothing_behind_two_dots_is_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert not is_new_or_empty(without_dots(f"{tmp_path}/new/../link"))


def test_the_steps_of_a_run_come_newest_first_and_other_folders_are_none(tmp_path: Path) -> None:
    for name in ("step_9", "step_10", "step_²", "step_", "step_1a", ".step_11.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_12").write_bytes(b"")
    assert [path.name for path in steps_of(tmp_path)] == ["step_10", "step_9"]

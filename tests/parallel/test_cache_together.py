"""`sae cache` on several processes: the bytes of one, whoever dies meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from several import Launcher, launcher
from tiny_cache import all_files

CACHES: dict[str, dict[str, Any]] = {
    "shuffled": {"exclude_positions": [0], "max_tokens": 640},
    "in_order": {"shuffle": False},
    "int8": {"exclude_tokens": list(range(40, 60))},
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launcher(tmp_path_factory.mktemp("launcher")) as found:
        yield found


@pytest.fixture(scope="module")
def alone(processes: Launcher, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of each cache that one process writes."""
    folder = tmp_path_factory.mktemp("alone")
    processes.succeed("write_caches", 1, folder=str(folder), caches=CACHES)
    return {name: all_files(folder / name) for name in CACHES}


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_write_the_bytes_of_one(
    processes: Launcher, alone: dict[str, dict[str, bytes]], tmp_path: Path, ranks: int
) -> None:
    processes.succeed("write_caches", ranks, folder=str(tmp_path), caches=CACHES)
    for name in CACHES:
        assert len(alone[name]) > 15
        assert all_files(tmp_path / name) == alone[name]


@pytest.mark.parametrize("name", ["shuffled", "in_order"])
@pytest.mark.parametrize(("how", "said"), [("killed", ""), ("nan", "is not finite"), ("full", "the disk is full")])
def test_when_one_fails_all_end_and_any_number_continues_to_the_same_bytes(
    processes: Launcher, alone: dict[str, dict[str, bytes]], tmp_path: Path, name: str, how: str, said: str
) -> None:
    one, folder = {name: CACHES[name]}, str(tmp_path)
    for rank, batch in ((1, 4), (0, 2)):
        ended = processes.run("write_caches", 2, folder=folder, caches=one, rank=rank, batch=batch, how=how)
        assert 0 not in ended.codes and ended.codes[rank] == (-9 if how == "killed" else 1)
        assert said in ended.errors[rank] and "PeerFailed: " in ended.errors[1 - rank]
        assert not (tmp_path / name / "manifest.json").exists()
    processes.succeed("write_caches", 3 if how == "killed" else 1, folder=folder, caches=one)
    assert all_files(tmp_path / name) == alone[name]


@pytest.mark.parametrize("name", ["shuffled", "in_order"])
def test_behind_an_address_several_processes_write_the_bytes_of_one_in_a_folder_whoever_dies(
    processes: Launcher, alone: dict[str, dict[str, bytes]], tmp_path: Path, name: str
) -> None:
    job: dict[str, Any] = {"folder": "shelf://caches", "caches": {name: CACHES[name]}}
    shelf = {"environment": {"SHELF": str(tmp_path)}}
    for rank, batch in ((1, 4), (0, 2)):
        ended = processes.run("write_caches", 2, **shelf, **job, rank=rank, batch=batch, how="killed")
        assert 0 not in ended.codes and ended.codes[rank] == -9
    processes.succeed("write_caches", 3, **shelf, **job)
    assert all_files(tmp_path / "caches" / name) == alone[name]


def test_processes_that_would_cache_different_things_do_not_begin(processes: Launcher, tmp_path: Path) -> None:
    ended = processes.run("cache_apart", 2, folder=str(tmp_path))
    assert ended.codes == [1, 1] and not (tmp_path / "c" / "progress.json").exists()
    for rank in range(2):
        assert f"all processes must cache the same, but options of process {1 - rank} differs" in ended.errors[rank]

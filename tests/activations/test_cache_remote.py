"""A cache behind an address: written, continued and read as one in a folder, with what is fetched bounded."""

import gc
import itertools
import json
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_inputs import READING, text
from fsspec.implementations.memory import MemoryFileSystem
from tiny_cache import WIDTHS, Died, all_files, header, live, rows_of, with_small_shards
from whole_runs import weights

import sae.__main__
from sae.activations.cache.format import TRAIN
from sae.activations.cache.read import ActivationCache, CachedActivations, CachedRows
from sae.activations.cache.write import write_cache
from sae.browser.plan import plan_browse
from sae.commands.browse_index import make_index
from sae.config import BrowseConfig
from sae.formats.find import find
from sae.storage.remote import RemoteFolder, place_of

EXCLUDE = {"exclude_positions": [0, 3], "exclude_tokens": list(range(40, 60))}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shards and buffers of a few rows, and an empty store."""
    with_small_shards(monkeypatch)
    MemoryFileSystem.store.clear()
    yield
    MemoryFileSystem.store.clear()


def write(name: str, **changes: Any) -> ActivationCache:
    exclude = {option: value for option, value in changes.items() if option.startswith("exclude")}
    batches, source = live(**exclude)
    write_cache(place_of(name), header(**changes), source, batches.held_out_batches())
    return ActivationCache(name)


def stored(name: str = "c") -> dict[str, bytes]:
    """The files behind memory://name."""
    return {
        path.removeprefix(f"/{name}/"): bytes(file.getbuffer())
        for path, file in sorted(MemoryFileSystem.store.items())
        if path.startswith(f"/{name}/")
    }


@pytest.mark.parametrize("changes", [{}, {"shuffled": False}, {"dtype": "int8", **EXCLUDE}], ids=str)
def test_the_files_behind_an_address_are_those_of_a_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = write("memory://c", **changes)
    here = write(str(tmp_path / "c"), **changes)
    assert stored() == all_files(tmp_path / "c")
    assert torch.equal(rows_of(found), rows_of(here)) and found.fingerprint == here.fingerprint
    assert np.array_equal(found.row_of_token(), here.row_of_token())
    some = np.arange(3, 60, 7)
    assert torch.equal(found.rows(TRAIN, "wide").take(some), here.rows(TRAIN, "wide").take(some))
    write("memory://c", **changes)
    assert stored() == all_files(tmp_path / "c")
    with pytest.raises(ValueError, match="memory://c must be continued as it was begun, but ctx_len was 8 and is 9"):
        write_cache(place_of("memory://c"), header(**changes)._replace(ctx_len=9), live()[1], [])


@pytest.mark.parametrize("before", ["", "file://"])
def test_a_cache_behind_two_dots_lies_where_they_lead(tmp_path: Path, before: str) -> None:
    write(f"{before}{tmp_path}/new/../c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_file_address_is_a_folder_here(tmp_path: Path) -> None:
    assert place_of(f"file://{tmp_path}/c") == tmp_path / "c"
    assert torch.equal(rows_of(write(f"file://{tmp_path}/c")), rows_of(ActivationCache(tmp_path / "c")))


@pytest.mark.parametrize("shuffled", [True, False])
def test_killed_before_or_after_any_change_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    write(str(tmp_path / "c"), shuffled=shuffled)
    expected, moments = all_files(tmp_path / "c"), die_at(monkeypatch, None)
    write("memory://counted", shuffled=shuffled)
    assert len(moments) > 40
    for moment in range(0, len(moments), 3):
        for death in (moment, moment + 5):  # and once more while it continues
            die_at(monkeypatch, death)
            try:
                write("memory://c", shuffled=shuffled)
            except Died:
                pass
        if "manifest.json" not in stored():
            with pytest.raises(ValueError, match="memory://c holds (an unfinished one; repeat its sae cache|none)"):
                ActivationCache("memory://c")
        die_at(monkeypatch, None)
        write("memory://c", shuffled=shuffled)
        assert stored() == expected
        MemoryFileSystem.store.clear()


def die_at(monkeypatch: pytest.MonkeyPatch, moment: int | None) -> list[int]:
    """Let the writer die at its n-th change, every other time once it is made; the list counts them."""
    moments: list[int] = []

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            moments.append(len(moments))
            dies = len(moments) - 1 == moment
            if not dies or moment % 2:  # type: ignore[operator]
                function(*given, **options)
            if dies:
                raise Died

        return call

    for name in ("write", "write_blocks", "remove", "remove_below"):
        original = getattr(RemoteFolder, f"original_{name}", getattr(RemoteFolder, name))
        monkeypatch.setattr(RemoteFolder, f"original_{name}", original, raising=False)
        monkeypatch.setattr(RemoteFolder, name, guarded(original))
    return moments


def test_the_commands_train_and_index_from_an_address_as_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.storage.remote._OF_THIS_PROCESS", ())  # several commands in one process
    model, tokens = text(tmp_path)
    for place in ("here", "memory://there"):
        assert sae.__main__.main(["cache", model, tokens, *READING, "--activations", place]) == 0
        name = place.rpartition("/")[2]
        arguments = ["--activations", place, "--num_latents", "64", "--k", "4", "--no_log_to_wandb", "--run_name", name]
        assert sae.__main__.main([*arguments, "--save_dir", "runs"]) == 0
    assert stored("there") == all_files(tmp_path / "here")
    here, there = (weights(tmp_path / "runs" / name) for name in ("here", "there"))
    assert here == there and len(here) >= 2
    recorded = {json.loads(path.read_text())["options"]["activations"] for path in Path("runs").glob("*/config.json")}
    assert recorded == {str(tmp_path / "here"), "memory://there"}
    indexes = []
    for place in ("here", "memory://there"):
        plan = plan_browse(
            cfg := BrowseConfig(checkpoint="runs/here", activations=place, out=place[-5:]), Path("runs/here")
        )
        assert make_index(cfg, plan)
        indexes.append({name: content for name, content in all_files(plan.folder).items() if name != "manifest.json"})
    assert indexes[0] == indexes[1] and len(indexes[0]) > 20


def test_a_command_does_not_write_where_it_is_gone_when_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokens = text(tmp_path)
    capsys.readouterr()
    assert sae.__main__.main(["cache", model, tokens, *READING, "--activations", "memory://there"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "activations must be a place that outlives this command, got memory://there, which is gone" in line
    assert not RemoteFolder("memory://there").sizes()


def recorded(cache: ActivationCache, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, weakref.ref[Any]]]:
    """(name, contents) of each file that this cache fetches from now on."""
    folder, fetches = cache.folder, []
    assert isinstance(folder, RemoteFolder)
    fetch = folder.fetch

    def fetch_and_record(name: str) -> tuple[Any, str]:
        content, sha256 = fetch(name)
        fetches.append((name, weakref.ref(content)))
        return content, sha256

    monkeypatch.setattr(folder, "fetch", fetch_and_record)
    return fetches


def test_what_is_fetched_is_at_most_three_shards_of_a_hookpoint_and_is_dropped_when_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetches = recorded(cache := write("memory://c", num_shards=9), monkeypatch)
    source, most = CachedActivations(cache, list(WIDTHS), 1), 0

    def settled(at_most: int = 3 * len(WIDTHS)) -> int:
        count = 0
        for _ in range(500):  # what a jump, or the end, no longer wants may be on its way
            if (count := sum(content() is not None for _, content in fetches)) <= at_most:
                break
            gc.collect()
            time.sleep(0.02)
        return count

    for _ in source:
        most = max(most, settled())
    assert 2 <= most <= 3 * len(WIDTHS)
    for place in (30, 2, 17):  # jumps leave nothing behind
        source.load_state_dict(source.state_dict() | {"batch_index": place})
        assert len(list(itertools.islice(source, 2))) == 2
        assert settled() <= 3 * len(WIDTHS)
    del source, cache, _
    assert settled(at_most=0) == 0


def test_a_pass_fetches_each_file_once_however_its_threads_are_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = recorded(cache := write("memory://c", num_shards=9), monkeypatch)
    read, slow = CachedRows.read, itertools.cycle([0.003, 0, 0.001])

    def read_late(rows: CachedRows, start: int, stop: int) -> torch.Tensor:
        time.sleep(next(slow))  # what comes after may be first
        return read(rows, start, stop)

    monkeypatch.setattr(CachedRows, "read", read_late)
    assert len(list(CachedActivations(cache, list(WIDTHS), 1))) == 40
    assert len(fetches) == 9 * len(WIDTHS) == len(dict(fetches))


def test_a_file_that_is_not_what_was_written_is_named() -> None:
    write("memory://c")
    path = "/c/train/wide/00002.rows"
    content = stored()["train/wide/00002.rows"]
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 4])):
        MemoryFileSystem().pipe_file(path, damaged)
        with pytest.raises(ValueError, match="memory://c/train/wide/00002.rows is missing or damaged"):
            rows_of(ActivationCache("memory://c"))


def test_a_manifest_that_names_files_elsewhere_is_refused() -> None:
    write("memory://c")
    manifest = json.loads(stored()["manifest.json"])
    for name in ("../secret", "/etc/passwd", "train/../../x"):
        changed = manifest | {"files": manifest["files"] | {name: manifest["files"]["held_out/tokens"]}}
        MemoryFileSystem().pipe_file("/c/manifest.json", json.dumps(changed).encode())
        with pytest.raises(ValueError, match="memory://c/manifest.json is damaged"):
            ActivationCache("memory://c")


def test_what_else_is_at_an_address_is_left_alone() -> None:
    MemoryFileSystem().pipe_file("/c/thesis.tex", b"precious")
    with pytest.raises(ValueError, match="memory://c holds something else; choose another --activations"):
        write("memory://c")
    assert stored() == {"thesis.tex": b"precious"}


# Addresses


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_protocol_whose_package_is_missing_is_told_with_its_name(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    package = {"s3": "s3fs", "gs": "gcsfs"}[protocol]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{protocol}:// needs the package {package}.*; pip install {package}$"):
        place_of(f"{protocol}://bucket/folder")


@pytest.mark.parametrize("address", ["s3://key:hush@bucket/c", "https://h/c?sig=hush", "simplecache::s3://b/hush"])
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(address: str) -> None:
    with pytest.raises(ValueError, match="an address must be PROTOCOL://PLACE/FOLDER without password") as error:
        RemoteFolder(address)
    assert "hush" not in str(error.value) or "::" in address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "an address must be PROTOCOL://PLACE/FOLDER"),
        ("memory:///", "an address must be PROTOCOL://PLACE/FOLDER"),
        ("s3:/bucket/folder", "an address must be s3://PLACE/FOLDER, got one slash instead of two; add the other"),
        ("gs:/", "an address must be gs://PLACE/FOLDER, got one slash"),
    ],
)
def test_an_address_of_no_place_is_refused(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place_of(address)


def test_a_cache_that_is_named_as_a_dictionary_is_told_as_one(tmp_path: Path) -> None:
    write(str(tmp_path / "c"))
    with pytest.raises(ValueError, match="; it is a cache of activations, which sae --activations .*c trains on$"):
        find(tmp_path / "c")


def test_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(ValueError, match="^nosuch:// is not known to fsspec; give a folder, or an address such as"):
        place_of("nosuch://x/c")


def test_errors_of_a_store_are_one_line_without_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder("memory://c")
    for told in ("GET https://me:hush@h/x?Signature=hush", "bad secret_key='hush'", "Authorization: hush\nhush"):

        def fail(self: Any, path: str, *, told: str = told, **options: Any) -> bytes:
            raise RuntimeError(told)

        monkeypatch.setattr(MemoryFileSystem, "info", fail)
        with pytest.raises(OSError, match="^memory://c/manifest.json cannot be reached .RuntimeError: ") as error:
            folder.has("manifest.json")
        assert "hush" not in str(error.value) and "\n" not in str(error.value) and error.value.__cause__ is None

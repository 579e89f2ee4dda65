"""A cache of activations: every token once, in an order that is random or a live run's, whatever happened meanwhile."""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_cache import (
    BATCH,
    COUNT,
    HELD_OUT,
    SEQ,
    WIDTHS,
    Died,
    all_files,
    harvest,
    header,
    live,
    rows_of,
    with_small_shards,
)
from torch import Tensor

from sae.activations.cache import format as cache_format
from sae.activations.cache import local as cache_local
from sae.activations.cache.format import TRAIN, decode_rows, encode_rows, row_bytes
from sae.activations.cache.read import AHEAD, ActivationCache, CachedActivations, held_out_batches
from sae.activations.cache.write import cache_size, check_space, write_cache
from sae.activations.source import ActivationSource, LiveActivations
from sae.data.tokens import TokenBatches
from sae.storage import files as disk


def write(folder: Path, *, fail: Callable[[int], None] = lambda batches: None, **changes: Any) -> ActivationCache:
    exclude = {name: value for name, value in changes.items() if name.startswith("exclude")}
    batches, source = live(**exclude)
    write_cache(folder, header(**changes), source, batches.held_out_batches(), on_batch=fail)
    return ActivationCache(folder)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    without_waiting(monkeypatch)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shards, and no waiting for the disk."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    with_small_shards(monkeypatch)


def asking_for(sequences: int | None, folder: Path, **changes: Any) -> None:
    batches, source = live()
    write_cache(folder, header(**changes)._replace(sequences=sequences), source, batches.held_out_batches())


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("recorded", [40, None], ids=["of now", "of before"])
def test_a_complete_cache_with_less_than_is_asked_for_is_no_reason_to_say_done(
    tmp_path: Path, shuffled: bool, recorded: int | None
) -> None:
    asking_for(recorded, tmp_path / "c", shuffled=shuffled)
    files = all_files(tmp_path / "c")
    for fewer_or_as_many in (40, 36, None):
        asking_for(fewer_or_as_many, tmp_path / "c", shuffled=shuffled)
    with pytest.raises(ValueError, match="is complete with 320 tokens, and 352 are asked for; choose another --act"):
        asking_for(44, tmp_path / "c", shuffled=shuffled)
    assert all_files(tmp_path / "c") == files


def test_an_unfinished_cache_is_not_continued_with_another_number_of_tokens(tmp_path: Path) -> None:
    batches, source = live()
    with pytest.raises(Died):
        write_cache(tmp_path / "c", header()._replace(sequences=40), source, iter(()), on_batch=dying_at(2))
    with pytest.raises(ValueError, match="sequences was 40 and is 44"):
        asking_for(44, tmp_path / "c")


def dying_at(batch: int) -> Callable[[int], None]:
    def fail(done: int) -> None:
        if done == batch:
            raise Died

    return fail


def test_a_second_writer_of_a_cache_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    expected = all_files(write(tmp_path / "alone").folder)

    def meanwhile(batches: int) -> None:
        before = all_files(tmp_path / "c")
        with pytest.raises(ValueError, match=f"but process {os.getpid()} on .* is at work there"):
            write(tmp_path / "c")
        assert all_files(tmp_path / "c") == before

    write(tmp_path / "c", fail=meanwhile)
    assert all_files(tmp_path / "c") == expected
    with pytest.raises(Died):
        write(tmp_path / "d", fail=dying_at(3))
    (tmp_path / "d/.lock").write_text("left by one that died")
    write(tmp_path / "d")
    assert all_files(tmp_path / "d") == expected


EXCLUDE = [{}, {"exclude_positions": [0, 3], "exclude_tokens": list(range(40, 60))}]


@pytest.mark.parametrize("exclude", EXCLUDE, ids=["all", "excluding"])
@pytest.mark.parametrize("shuffled", [True, False])
def test_every_token_is_there_once_and_the_hookpoints_belong_together(
    tmp_path: Path, shuffled: bool, exclude: dict[str, Any]
) -> None:
    cache = write(tmp_path / "c", shuffled=shuffled, **exclude)
    expected = torch.cat([batch["wide"] for batch in live(**exclude)[1]])
    found = rows_of(cache)
    assert torch.equal(found.sort(dim=0).values, expected.sort(dim=0).values)
    assert torch.equal(rows_of(cache, "narrow"), found[:, :4])
    assert torch.equal(found, expected) == (not shuffled)


def test_the_order_is_random_over_the_whole_data_set_and_repeats_with_the_seed(tmp_path: Path) -> None:
    order = rows_of(write(tmp_path / "a"))[:, 0].argsort().argsort()
    again = rows_of(write(tmp_path / "b"))[:, 0].argsort().argsort()
    assert torch.equal(order, again)
    # ranks of a random permutation: neither the place in the data nor the shard tells anything
    place = torch.arange(len(order)).float()
    assert abs(torch.corrcoef(torch.stack([place, order.float()]))[0, 1]) < 3 / len(order) ** 0.5
    assert (order.diff().abs() < len(order) / 10).float().mean() < 0.3


@pytest.mark.parametrize("exclude", EXCLUDE, ids=["all", "excluding"])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_a_cache_in_a_live_runs_order_gives_the_live_runs_batches(
    tmp_path: Path, batch_size: int, exclude: dict[str, Any]
) -> None:
    cache = write(tmp_path / "c", shuffled=False, **exclude)
    tokens = torch.arange(COUNT * SEQ).view(COUNT, SEQ)
    batches = TokenBatches(tokens, batch_size, seed=3, held_out=HELD_OUT)
    expected = list(LiveActivations(batches, harvest, **exclude))
    found = list(CachedActivations(cache, list(WIDTHS), batch_size))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in WIDTHS)


@pytest.mark.parametrize("exclude", EXCLUDE, ids=["all", "excluding"])
def test_the_held_out_tokens_and_activations_come_back_as_they_were(tmp_path: Path, exclude: dict[str, Any]) -> None:
    cache = write(tmp_path / "c", **exclude)
    batches, source = live(**exclude)
    expected = [source.batch(tokens) for tokens in batches.held_out_batches()]
    found = list(held_out_batches(cache, ["narrow"], BATCH))
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.kept, other.kept)
        assert torch.equal(one.activations["narrow"], other.activations["narrow"])


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_read_every_so_manieth_batch_and_pass_over_the_others(tmp_path: Path, size: int, shuffled: bool) -> None:
    cache = write(tmp_path / "c", shuffled=shuffled)
    alone = [batch["wide"] for batch in CachedActivations(cache, ["wide"], 2)]
    for rank in range(size):
        source = CachedActivations(cache, ["wide"], 2)
        for index, expected in enumerate(alone):
            if index % size == rank:
                assert torch.equal(next(source)["wide"], expected)
            else:
                assert source.skip() == len(expected)
            assert len(source._reading) <= AHEAD + 1
        for end in (source.skip, source.__next__):
            with pytest.raises(StopIteration):
                end()


def test_it_is_an_activation_source_that_continues_anywhere(tmp_path: Path) -> None:
    cache = write(tmp_path / "c")
    source = CachedActivations(cache, list(WIDTHS), 3, max_batches=9)
    assert isinstance(source, ActivationSource)
    states, expected = [source.state_dict()], []
    for batch in source:
        states.append(source.state_dict())
        expected.append(batch["wide"])
    assert len(expected) == source.num_batches == 9
    for index in (9, 0, 4):  # forward and backward, also while it reads ahead
        source.load_state_dict(json.loads(json.dumps(states[index])))
        rest = [batch["wide"] for batch in itertools.islice(source, 9 if index else 2)]
        assert all(torch.equal(one, other) for one, other in zip(rest, expected[index:], strict=False))
        assert len(rest) == min(9 - index, 9 if index else 2)
    with pytest.raises(ValueError, match=r"batch_size.* must be as they were saved, \[3, .* got \[4, "):
        CachedActivations(cache, ["wide"], 4).load_state_dict(states[0])
    with pytest.raises(ValueError, match=r"batch_size.* must be as they were saved, 'x.*x', got ") as error:
        source.load_state_dict({**states[0], "cache": "x" * 3000})
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match="batch_index of a saved place must be a whole number .*, got -1;"):
        source.load_state_dict({**states[0], "batch_index": -1})


# Numbers as bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_numbers_of_their_own_type_come_back_to_the_bit(dtype: str) -> None:
    x = torch.randn(37, 48).to(cache_format.STORED_DTYPES[dtype])
    rows = encode_rows(x, dtype)
    assert rows.shape == (37, row_bytes(48, dtype))
    assert torch.equal(decode_rows(rows, dtype), x)


def test_int8_is_off_by_at_most_half_a_step_of_its_tokens_scale() -> None:
    x = torch.randn(37, 48) * torch.logspace(-30, 30, 37).unsqueeze(1)
    x[3] = 0
    rows = encode_rows(x, "int8")
    assert rows.shape == (37, 48 + 4)
    half_step = x.abs().amax(1, keepdim=True) / 254
    error = (decode_rows(rows, "int8").float() - x).abs()
    assert (error <= half_step * 1.01 + x.abs() * 2**-8).all()  # and the rounding to bfloat16


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="float16 ends at 65504; give --dtype bfloat16"):
        encode_rows(torch.tensor([[1e5]]), "float16")


# Death, damage, and full disks


@pytest.mark.parametrize("shuffled", [True, False])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    """Every call that changes a file is a moment to die, before or (of a write) half-way through it."""
    write(tmp_path / "whole", shuffled=shuffled)
    moments = die_at(monkeypatch, None)
    write(tmp_path / "counted", shuffled=shuffled)
    assert len(moments) > 60
    expected = all_files(tmp_path / "whole")
    for moment in range(0, len(moments), 4):
        folder = tmp_path / str(moment)
        for death in (moment, moment + 7):  # and once more while it continues
            die_at(monkeypatch, death)
            try:
                write(folder, shuffled=shuffled)
            except Died:
                pass
        die_at(monkeypatch, None)
        write(folder, shuffled=shuffled)
        assert all_files(folder) == expected
        shutil.rmtree(folder)


def die_at(monkeypatch: pytest.MonkeyPatch, moment: int | None) -> list[int]:
    """Let the writer die at its n-th change of the disk; the list counts them."""
    monkeypatch.undo()
    without_waiting(monkeypatch)
    moments: list[int] = []

    def guarded(function: Callable[..., Any], half: Callable[..., Any] = lambda *given: None) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            if len(moments) == moment:
                half(*given)
                raise Died
            moments.append(len(moments))
            return function(*given, **options)

        return call

    monkeypatch.setattr(cache_local, "_write_at", guarded(cache_local._write_at, half_of_write))
    monkeypatch.setattr(cache_local, "write_atomically", guarded(cache_local.write_atomically))
    for name in ("unlink", "rename", "replace", "mkdir"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))
    return moments


def half_of_write(path: Path, rows: Tensor, start: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(rows.contiguous().numpy().tobytes()[:-3])


@pytest.mark.parametrize("file", ["train/wide/00002.rows", "held_out/narrow/00000.rows", "held_out/tokens"])
@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, damage: str) -> None:
    write(tmp_path / "c")
    path = tmp_path / "c" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "shorter" else content[:-1] + bytes([content[-1] ^ 4]))
    with pytest.raises(ValueError, match=f"{file} is missing or damaged.*write the cache again"):
        cache = ActivationCache(tmp_path / "c")
        list(CachedActivations(cache, list(WIDTHS), BATCH))
        list(held_out_batches(cache, list(WIDTHS), BATCH))


def test_the_next_shard_is_verified_while_one_is_read_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, hashed = write(tmp_path / "c"), []
    sha256_of = disk.sha256_of
    monkeypatch.setattr(
        "sae.activations.cache.read.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path)
    )
    rows, bounds = cache.rows(TRAIN, "wide"), [0, *itertools.accumulate(cache._manifest.shards[TRAIN])]
    for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows.read(start, stop - 1), rows.read(stop - 1, stop)
        following = f"train/wide/{shard + 1:05d}.rows"
        assert shard == 4 or cache._files[following].result()
        assert hashed == [f"{number:05d}.rows" for number in range(min(5, shard + 2))]


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    write(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["options"]["exclude_tokens"] = {}
    for damaged in ('{"version": 1}', json.dumps(manifest)):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            ActivationCache(tmp_path / "c")


@pytest.mark.parametrize("without_kept", [False, True])
def test_a_manifest_with_fewer_held_out_activations_than_tokens_is_an_error(tmp_path: Path, without_kept: bool) -> None:
    write(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"]["held_out"] = []
    if without_kept:
        del manifest["files"]["held_out/kept"]
    path.write_text(json.dumps(manifest))
    message = "must hold held_out/kept, and does not" if without_kept else "held_out/kept is missing or damaged"
    with pytest.raises(ValueError, match=message):
        list(held_out_batches(ActivationCache(tmp_path / "c"), ["wide"], BATCH))


def test_a_full_disk_is_one_line_and_repeating_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at, calls = cache_local._write_at, itertools.count()

    def full(path: Path, rows: Tensor, start: int) -> None:
        if next(calls) == 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(path, rows, start)

    monkeypatch.setattr(cache_local, "_write_at", full)
    with pytest.raises(OSError, match="the disk is full .* make room and repeat the command: it continues"):
        write(tmp_path / "c")
    with pytest.raises(ValueError, match="holds an unfinished one; repeat its sae cache command"):
        ActivationCache(tmp_path / "c")
    cache = write(tmp_path / "c")
    assert torch.equal(rows_of(cache), rows_of(write(tmp_path / "whole")))


def test_a_complete_cache_is_left_alone_and_another_one_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "c")
    before = all_files(tmp_path / "c")
    write(tmp_path / "c")
    with pytest.raises(ValueError, match="dtype was 'float32' and is 'int8'"):
        write(tmp_path / "c", dtype="int8")
    assert all_files(tmp_path / "c") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="other holds something else; choose another --activations"):
        write(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_the_size_is_what_is_written_and_is_checked_against_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = (COUNT - HELD_OUT) * SEQ
    size = cache_size(WIDTHS, "int8", tokens=tokens, held_out_tokens=HELD_OUT * SEQ, shuffled=True)
    cache = write(tmp_path / "c", dtype="int8", num_shards=size.num_shards)
    written = sum(len(content) for name, content in all_files(tmp_path / "c").items() if name.endswith("rows"))
    assert size.bytes == written + 4 * HELD_OUT * SEQ == tokens * (6 + 4 + 4 + 4) + HELD_OUT * SEQ * (18 + 4)
    assert cache.num_tokens == size.tokens
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size.peak_bytes - 1))
    with pytest.raises(ValueError, match="must fit on the disk with .* GB, but .* make room, lower --max_tokens"):
        check_space(tmp_path / "new" / "folder", size)
    check_space(tmp_path / "c", size)  # what is written already needs no room


def test_the_kept_numbers_are_those_of_the_sequences(tmp_path: Path) -> None:
    cache = write(tmp_path / "c", shuffled=False, **EXCLUDE[1])
    kept = cache.kept(TRAIN)
    assert kept is not None and len(kept) == COUNT - HELD_OUT and set(np.unique(kept)) <= set(range(7))
    assert kept.sum() == cache.num_tokens and cache.kept("held_out") is not None


@pytest.mark.parametrize("options", [{}, EXCLUDE[1]])
def test_a_shuffled_cache_says_where_each_token_of_its_text_is(tmp_path: Path, options: dict[str, Any]) -> None:
    ordered, mixed = (write(tmp_path / str(shuffled), shuffled=shuffled, **options) for shuffled in (False, True))
    texts = [cache.tokens(TRAIN) for cache in (ordered, mixed)]
    assert texts[0] is not None and texts[1] is not None and torch.equal(*texts)
    assert np.array_equal(ordered.kept(TRAIN), mixed.kept(TRAIN))
    order = mixed.row_of_token()
    assert sorted(order) == list(range(mixed.num_tokens)) and (order != np.arange(len(order))).any()
    for name in WIDTHS:
        straight = ordered.rows(TRAIN, name)
        assert torch.equal(mixed.rows(TRAIN, name).take(order), straight.read(0, ordered.num_tokens))
        some = order[3:40:5]
        assert torch.equal(straight.take(ordered.row_of_token()[3:40:5]), mixed.rows(TRAIN, name).take(some))


def test_a_cache_that_an_older_version_began_is_finished_as_it_was_begun(tmp_path: Path) -> None:
    """An older writer does not say which tokens it read."""
    folder = tmp_path / "c"
    with pytest.raises(Died):
        write(folder, fail=dying_at(5))
    progress = json.loads((folder / "progress.json").read_text())
    del progress["batches"]
    (folder / "progress.json").write_text(json.dumps(progress))
    for name in ("tokens", "batches", "kept"):
        (folder / "train" / name).unlink()
    cache = write(folder)
    assert cache.tokens(TRAIN) is None and cache.kept(TRAIN) is None
    with pytest.raises(ValueError, match="an older sae wrote it; write it again"):
        cache.row_of_token()
    assert cache.num_tokens == write(tmp_path / "new").num_tokens
    assert torch.equal(rows_of(cache), rows_of(ActivationCache(tmp_path / "new")))

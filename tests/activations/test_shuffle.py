"""The shuffle buffer: every token once, mixed, independent of the batch size, resumable; and the live source."""

import gc
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae.activations.shuffle import FIRST_TOKENS, ShuffleBuffer, batches_of_first_block, batches_per_block
from sae.activations.source import Activations, LiveActivations, NonFiniteError


class Counting:
    """A source whose tokens are numbered: hookpoint a holds n, hookpoint b holds (n, −n)."""

    def __init__(self, batches: int, tokens: int) -> None:
        self.num_batches: int | None = batches
        self._tokens, self._at = tokens, 0

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        if self._at == self.num_batches:
            raise StopIteration
        n = torch.arange(self._at * self._tokens, (self._at + 1) * self._tokens).double()
        self._at += 1
        return {"a": n[:, None], "b": torch.stack([n, -n], 1)}

    def skip(self) -> int:
        return len(next(self)["a"])

    def state_dict(self) -> dict[str, Any]:
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._at = state["at"]


def order(buffer: ShuffleBuffer) -> list[int]:
    return [int(n) for part in buffer for n in part["a"][:, 0]]


@pytest.mark.parametrize("block", [1, 2, 4, 5, 100])
@pytest.mark.parametrize("batches", [1, 7, 8])
def test_every_token_comes_out_exactly_once_in_as_many_parts(block: int, batches: int) -> None:
    parts = list(ShuffleBuffer(Counting(batches, 10), block, seed=0))
    assert [len(part["a"]) for part in parts] == [10] * batches
    assert sorted(int(n) for part in parts for n in part["a"][:, 0]) == list(range(10 * batches))


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("split", [2, 3, 12])
def test_a_batch_can_come_out_in_parts_while_only_one_is_read_for_it(block: int, split: int) -> None:
    source = Counting(7, 12)
    buffer = ShuffleBuffer(source, block, seed=0, split=split)
    assert buffer.num_batches == 7 * split
    parts = []
    for part in buffer:
        parts.append(part["a"][:, 0].tolist())
        assert source._at <= min(7, block * math.ceil(math.ceil(len(parts) / split) / block) + block)
        assert source._at >= min(7, math.ceil(len(parts) / split))
    assert [len(part) for part in parts] == [12 // split] * 7 * split
    assert sorted(n for part in parts for n in part) == list(range(84))
    assert [n for part in parts for n in part] != list(range(84))


def test_parts_of_a_block_are_those_of_smaller_batches() -> None:
    assert order(ShuffleBuffer(Counting(8, 10), 4, seed=3, split=2)) == order(ShuffleBuffer(Counting(8, 10), 4, seed=3))


@pytest.mark.parametrize(("block", "split"), [(4, 1), (8, 2)])
def test_the_blocks_that_exist_at_a_time_take_the_memory_of_one_and_of_a_batch(block: int, split: int) -> None:
    width, tokens, most = 4099, 12, 0  # no other tensor is as wide

    class Wide(Counting):
        def __next__(self) -> Activations:
            acts = super().__next__()["a"]
            return {name: acts.expand(-1, width).contiguous() for name in "abcd"}

    gc.freeze()  # what there was before is not looked through each time
    try:
        for part in ShuffleBuffer(Wide(4 * block, tokens), block, seed=0, split=split):
            assert part["d"].shape == (tokens // split, width)
            rows = {each.untyped_storage().data_ptr(): len(each) for each in gc.get_objects() if _is_wide(each, width)}
            most = max(most, sum(rows.values()) / 4)
    finally:
        gc.unfreeze()
    assert most == pytest.approx((block + 1) * tokens, rel=0.01)


def _is_wide(each: object, width: int) -> bool:
    return type(each) is torch.Tensor and each.dim() == 2 and each.shape[1] == width


def test_hookpoints_are_permuted_alike() -> None:
    for part in ShuffleBuffer(Counting(6, 10), 3, seed=0):
        assert torch.equal(part["b"], torch.cat([part["a"], -part["a"]], 1))


def test_tokens_mix_within_a_block_and_differently_in_each() -> None:
    out = order(ShuffleBuffer(Counting(8, 10), 4, seed=0))
    assert out[:40] != sorted(out[:40]) and sorted(out[:40]) == list(range(40))
    assert [n - 40 for n in out[40:]] != out[:40]
    assert out != order(ShuffleBuffer(Counting(8, 10), 4, seed=1))


def test_a_block_of_one_changes_nothing() -> None:
    assert order(ShuffleBuffer(Counting(3, 10), 1, seed=0)) == list(range(30))


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert order(ShuffleBuffer(Counting(8, 10), 4, seed=3)) == order(ShuffleBuffer(Counting(16, 5), 8, seed=3))


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize(("block", "first"), [(1, 1), (2, 2), (3, 3), (4, 1), (3, 2)])
@pytest.mark.parametrize("stop", range(9))
def test_stopping_and_resuming_equals_not_stopping(block: int, first: int, stop: int, split: int) -> None:
    straight, stopped = (ShuffleBuffer(Counting(8, 6), block, seed=0, split=split, first=first) for _ in range(2))
    expected = order(straight)
    before = [int(n) for _ in range(stop) for n in next(stopped)["a"][:, 0]]
    resumed = ShuffleBuffer(Counting(8, 6), block, seed=0, split=split, first=first)
    resumed.load_state_dict(stopped.state_dict())
    assert before + order(resumed) == expected


def test_blocks_grow_from_the_first_and_each_is_gathered_while_the_one_before_is_handed_out() -> None:
    source = Counting(19, 10)
    buffer = ShuffleBuffer(source, 8, seed=0, first=1)
    read, out = [], []
    for part in buffer:
        read.append(source._at)
        out += part["a"][:, 0].tolist()
    assert read == [3, 5, 7, 9, 11, 13, 15, *range(16, 20), *[19] * 8]
    for begin, end in ((0, 1), (1, 3), (3, 7), (7, 15), (15, 19)):
        assert sorted(out[10 * begin : 10 * end]) == list(range(10 * begin, 10 * end))


def test_the_order_of_blocks_that_grow_does_not_depend_on_the_batch_size_either() -> None:
    large, small = (
        ShuffleBuffer(Counting(8, 10), 4, seed=3, first=1),
        ShuffleBuffer(Counting(16, 5), 8, seed=3, first=2),
    )
    assert order(large) == order(small)


@pytest.mark.parametrize(
    ("block", "per_step", "tokens", "expected"),
    [(8, 1, FIRST_TOKENS, 1), (32, 4, FIRST_TOKENS // 3, 16), (8, 1, 1, 8), (24, 3, FIRST_TOKENS * 9, 3), (2, 4, 5, 2)],
)
def test_the_first_block_has_enough_tokens_to_measure_and_whole_steps(
    block: int, per_step: int, tokens: int, expected: int
) -> None:
    assert batches_of_first_block(block, per_step, tokens) == expected


def test_peeking_shows_the_block_and_moves_nothing() -> None:
    buffer = ShuffleBuffer(Counting(4, 5), 2, seed=0)
    assert sorted(buffer.peek()["a"][:, 0].tolist()) == list(range(10))
    assert order(buffer) == order(ShuffleBuffer(Counting(4, 5), 2, seed=0))


@pytest.mark.parametrize(
    ("per_step", "size", "expected"), [(1, 2**20, 8), (4, 2**20, 32), (1, 2**28, 4), (1, 2**33, 1)]
)
def test_the_block_is_eight_steps_or_what_fits(per_step: int, size: int, expected: int) -> None:
    assert batches_per_block(per_step, size) == expected


def steps_of(
    batches: int, ranks: int, block: int, step: int, start: int = 0, split: int = 1, first: int | None = None
) -> list[set[int]]:
    """The tokens of each whole step, over so many ranks; the first `start` steps by one rank, in another run."""
    options: dict[str, Any] = {"seed": 0, "step": step, "split": split, "first": first}
    buffers = [ShuffleBuffer(Counting(batches, 6), block, **options, rank=rank, ranks=ranks) for rank in range(ranks)]
    if start:
        before = ShuffleBuffer(Counting(batches, 6), block, **options)
        for _ in range(start * step):
            next(before)
        for buffer in buffers:
            buffer.load_state_dict(before.state_dict())
    steps: list[set[int]] = []
    current: list[int] = []
    while parts := [part for buffer in buffers if (part := next(buffer, None)) is not None]:
        assert len(parts) == ranks  # or some would wait for the others
        assert len({buffer.at_end_of_step for buffer in buffers}) == 1
        assert len({str(buffer.state_dict()) for buffer in buffers}) == 1
        current += [int(n) for part in parts for n in part["a"][:, 0]]
        if buffers[0].at_end_of_step:
            assert len(current) == len(set(current))
            steps.append(set(current))
            current = []
    return steps


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize(("step", "block"), [(4, 32), (4, 8), (4, 4), (4, 2), (4, 1), (2, 4), (6, 3), (1, 8)])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_many_ranks_hand_out_together_in_each_step_what_one_does(ranks: int, step: int, block: int, start: int) -> None:
    """Also when ranks do not divide steps, blocks are smaller than that, and data end within one; from any step on."""
    alone = steps_of(21, 1, block, step)
    assert len(alone) == 21 // step
    assert steps_of(21, ranks, block, step, start) == alone[start:]


@pytest.mark.parametrize("start", [0, 1, 3, 5])
@pytest.mark.parametrize(("step", "block"), [(4, 32), (4, 8), (4, 4), (2, 4), (6, 6), (1, 8)])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_so_do_they_where_batches_are_split(ranks: int, step: int, block: int, start: int) -> None:
    alone = steps_of(21, 1, block, step, split=2)
    assert len(alone) == 21 // step * 2 and {len(one) for one in alone} == {3 * step}
    assert steps_of(21, ranks, block, step, start, split=2) == alone[start:]


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 5])
@pytest.mark.parametrize(("step", "block", "first"), [(4, 32, 4), (4, 16, 8), (2, 4, 2), (1, 8, 1)])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_so_do_they_where_blocks_grow(ranks: int, step: int, block: int, first: int, start: int, split: int) -> None:
    alone = steps_of(21, 1, block, step, split=split, first=first)
    assert steps_of(21, ranks, block, step, start, split, first) == alone[start:]


def cut(sequences: int, size: int, acc: int, ranks: int, steps: int, first: int, split: int) -> list[set[int]]:
    """The tokens of each whole step of sequences of 6, in batches of `size`; blocks are of so many steps."""
    step, tokens = acc * ranks, 6 * size
    buffers = [
        ShuffleBuffer(
            Counting(sequences // size, tokens), steps * step, seed=0, step=step, split=split, first=first * step,
            rank=rank, ranks=ranks,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    looked = sorted(int(n) for buffer in buffers for n in buffer.peek()["a"][:, 0])
    assert looked == list(range(len(looked)))
    found: list[set[int]] = [set(looked), set()]
    while parts := [part for buffer in buffers if (part := next(buffer, None)) is not None]:
        found[-1] |= {int(n) for part in parts for n in part["a"][:, 0]}
        if buffers[0].at_end_of_step:
            found.append(set())
    assert not found.pop(), "no token beside those of whole steps"
    return found


@pytest.mark.parametrize(("steps", "first", "split"), [(8, 1, 1), (2, 2, 1), (100, 100, 1), (8, 2, 4), (1, 1, 2)])
@pytest.mark.parametrize("sequences", [16, *range(48, 57), 67])
def test_each_step_has_the_same_tokens_however_it_is_cut_also_where_the_data_do_not_divide(
    sequences: int, steps: int, first: int, split: int
) -> None:
    whole = cut(sequences, 8, 1, 1, steps, first, split)
    assert len(whole) == 1 + sequences // 8 * split
    assert set().union(*whole) == set(range(sequences // 8 * 8 * 6))
    for size, acc, ranks in ((4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8), (1, 2, 4), (2, 1, 4)):
        assert cut(sequences, size, acc, ranks, steps, first, split) == whole, (size, acc, ranks)


@pytest.mark.parametrize(("block", "first", "split"), [(16, 16, 1), (8, 2, 1), (4, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_more_data_behind_what_was_the_end_are_read_once_wherever_the_run_had_stopped(
    block: int, first: int, split: int, ranks: int
) -> None:
    def buffer(batches: int, rank: int = 0, ranks: int = 1) -> ShuffleBuffer:
        source = Counting(batches, 6)
        return ShuffleBuffer(source, block, seed=0, step=2, split=split, first=first, rank=rank, ranks=ranks)

    for stop in range(1, 11 // 2 * 2 * split + 1):
        before, found = buffer(11), []
        while len(found) < stop:
            found.append(next(before)["a"][:, 0])
        if not before.at_end_of_step:
            continue
        buffers = [buffer(23, rank, ranks) for rank in range(ranks)]
        for after in buffers:
            after.load_state_dict(before.state_dict())
        found += [part["a"][:, 0] for after in buffers for part in after]
        tokens = sorted(torch.cat(found).tolist())
        assert tokens[: 22 * 6] == list(range(22 * 6)), stop


@pytest.mark.parametrize("handed_out", [1, 4])
def test_a_run_of_an_earlier_version_goes_on_with_the_end_of_the_data_mixed_in(handed_out: int) -> None:
    def buffer(step: int) -> ShuffleBuffer:
        return ShuffleBuffer(Counting(7, 6), 8, seed=0, step=step)

    state = {"block_start": {"at": 0}, "index": 0, "handed_out": handed_out}
    resumed = buffer(4)
    resumed.load_state_dict(state)
    assert order(resumed) == order(buffer(1))[6 * handed_out :] and "whole_steps" not in resumed.state_dict()
    assert sorted(order(buffer(4))) == list(range(24)) != order(buffer(1))[:24]


@pytest.mark.parametrize("block", [1, 2, 8])
def test_many_ranks_first_look_at_the_tokens_that_one_looks_at(block: int) -> None:
    looks = []
    for ranks in (1, 2, 3, 4):
        buffers = [
            ShuffleBuffer(Counting(12, 6), block, seed=0, step=4, rank=rank, ranks=ranks) for rank in range(ranks)
        ]
        looks.append(sorted(int(n) for buffer in buffers for n in buffer.peek()["a"][:, 0]))
    assert looks == [list(range(6 * block))] * 4


class Tokens:
    """Token ids that count up, in batches (2, 4)."""

    num_batches: int | None = 3

    def __init__(self) -> None:
        self._at = 0

    def __next__(self) -> torch.Tensor:
        if self._at == 3:
            raise StopIteration
        self._at += 1
        return torch.arange(8).view(2, 4) + 8 * (self._at - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._at = state["at"]


def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"h": tokens[..., None].double().expand(-1, -1, 3)}


def test_live_activations_are_flattened_in_the_order_of_the_tokens() -> None:
    out = torch.cat([batch["h"] for batch in LiveActivations(Tokens(), embed)])
    assert torch.equal(out, torch.arange(24).double()[:, None].expand(-1, 3))


def test_a_skipped_batch_counts_its_tokens_and_is_not_harvested() -> None:
    read: list[torch.Tensor] = []

    def harvest(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        read.append(tokens)
        return embed(tokens)

    live = LiveActivations(Tokens(), harvest, exclude_tokens=[2, 9], exclude_positions=[0])
    assert [live.skip(), len(next(live)["h"]), live.skip()] == [5, 5, 6]
    assert len(read) == 1 and live.batch_index == 3
    with pytest.raises(StopIteration):
        live.skip()


def test_excluded_tokens_and_positions_are_left_out() -> None:
    live = LiveActivations(Tokens(), embed, exclude_tokens=[2, 9], exclude_positions=[0, 3])
    kept = [int(n) for batch in live for n in batch["h"][:, 0]]
    assert kept == [n for n in range(24) if n not in (2, 9) and n % 4 not in (0, 3)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_activation_that_is_not_finite_is_named(bad: float) -> None:
    def harvest(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        acts = {"layers.0": torch.ones(2, 4, 3), "layers.7": torch.ones(2, 4, 3)}
        acts["layers.7"][1, 2, 0] = bad if tokens.max() == 15 else 1
        return acts

    live = LiveActivations(Tokens(), harvest)
    next(live)
    with pytest.raises(
        NonFiniteError, match="layers.7: an activation is not finite in batch 1, sequence 1, position 2"
    ):
        next(live)


def test_large_finite_activations_pass() -> None:
    live = LiveActivations(Tokens(), lambda tokens: {"h": torch.full((2, 4, 64), 3e38)})
    assert len(list(live)) == 3

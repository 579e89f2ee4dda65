"""Who holds what: every autoencoder somewhere, the work even, activations only where they are needed."""

import random

import pytest

from sae.parallel.placement import Placement, placement_of


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 3, 7, 32])
def test_every_autoencoder_has_one_group_and_the_busiest_is_within_a_third_of_the_least_possible(
    count: int, groups: int, shards: int
) -> None:
    draw = random.Random(count)
    costs = {f"layers.{n}": draw.choice([1, 2, 4]) * 1000 for n in range(count)}
    placement = placement_of(
        costs, {name: [name] for name in costs}, size=groups * shards, shards=shards, distribute=True
    )
    holders = {name: [rank for rank in range(groups * shards) if placement.holds(rank, name)] for name in costs}
    assert all(found == placement.members(found[0]) and len(found) == shards for found in holders.values())
    loads = [sum(costs[n] for n in costs if placement.holds(group * shards, n)) for group in range(groups)]
    least = max(max(costs.values()), sum(costs.values()) / groups)
    assert max(loads) <= 4 / 3 * least + (max(costs.values()) if count < 2 * groups else 0)


def test_activations_go_to_who_trains_on_them_and_to_nobody_else() -> None:
    costs = {"layers.0/a": 4, "layers.0/b": 3, "layers.1/a": 4}
    read = {name: name.split("/")[0] for name in costs}
    placement = placement_of(costs, read, size=4, shards=1, distribute=True)
    assert placement.owners == {"layers.0/a": 0, "layers.1/a": 1, "layers.0/b": 2}
    for source in range(4):
        assert [target for target in range(4) if placement.sends(source, target, "layers.0")] == [0, 2]
        assert [target for target in range(4) if placement.sends(source, target, "layers.1")] == [1]
    assert [placement.replicas(rank) for rank in range(4)] == [[0], [1], [2], [3]]


def test_groups_of_shards_see_the_same_tokens_and_copies_of_the_same_part_add_up() -> None:
    placement = placement_of({"a": 1}, {"a": ["a"]}, size=6, shards=2, distribute=False)
    assert [placement.members(rank) for rank in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [placement.replicas(rank) for rank in range(2)] == [[0, 2, 4], [1, 3, 5]]
    assert [target for target in range(6) if placement.sends(3, target, "a")] == [2, 3]
    assert placement.moves and not placement_of({"a": 1}, {"a": ["a"]}, size=6, shards=1, distribute=False).moves


def test_one_rank_holds_all_and_sends_nothing() -> None:
    assert Placement().holds(0, "a") and not Placement().moves and Placement().replicas(0) == [0]
    assert not placement_of({"a": 1}, {"a": ["a"]}, size=1, shards=1, distribute=True).moves

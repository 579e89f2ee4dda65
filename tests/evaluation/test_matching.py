"""Pairs of latents of two dictionaries: the best of all pairings, and what is counted of them."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sae.evaluation import matching
from sae.evaluation.matching import best_pairs, match


@pytest.mark.parametrize(
    ("rows", "columns", "seed"), [(1, 1, 0), (1, 5, 1), (4, 6, 2), (6, 6, 3), (5, 5, 4), (6, 7, 5)]
)
def test_the_pairs_have_the_largest_sum_of_all_pairings(rows: int, columns: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    best = max(sum(similarity[i, j] for i, j in enumerate(order)) for order in permutations(range(columns), rows))
    found = best_pairs(similarity)
    assert len(set(found.tolist())) == rows
    assert similarity[np.arange(rows), found].sum() == pytest.approx(best, abs=1e-6)


def test_ties_and_equal_rows_are_paired_too() -> None:
    assert sorted(best_pairs(np.ones((5, 5), np.float32)).tolist()) == [0, 1, 2, 3, 4]
    integers = np.random.default_rng(0).integers(0, 3, (6, 6)).astype(np.float32)
    best = max(sum(integers[i, j] for i, j in enumerate(order)) for order in permutations(range(6)))
    assert integers[np.arange(6), best_pairs(integers)].sum() == best


def test_the_best_pairs_are_scipys() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    similarity = np.random.default_rng(7).random((60, 83)).astype(np.float32)
    rows, columns = optimize.linear_sum_assignment(similarity, maximize=True)
    found = best_pairs(similarity)
    assert similarity[np.arange(60), found].sum() == pytest.approx(similarity[rows, columns].sum(), abs=1e-4)


def test_a_shuffled_copy_with_other_lengths_and_signs_is_found() -> None:
    rows, order = torch.randn(37, 16), torch.randperm(37)
    other = -3 * rows[order]
    found = match(rows, other)
    assert found.optimal and (order[torch.from_numpy(found.columns)] == torch.arange(37)).all()
    assert found.mean == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sizes", [(12, 30), (30, 12)])
def test_of_two_sizes_each_latent_of_the_smaller_has_a_partner(sizes: tuple[int, int]) -> None:
    one, other = (F.normalize(torch.randn(size, 8), dim=1) for size in sizes)
    found = match(one, other)
    assert len(found.rows) == len(set(found.rows)) == len(set(found.columns)) == 12
    expected = (one[found.rows] * other[found.columns]).sum(1).abs()
    torch.testing.assert_close(torch.from_numpy(found.cosines).float(), expected)


@pytest.mark.parametrize("candidates", [1, 3, 64])
def test_above_the_limit_the_largest_pair_that_is_left_comes_first(
    monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr(matching, "LARGEST_OPTIMAL", 10)
    monkeypatch.setattr(matching, "_CANDIDATES", candidates)
    one, other = torch.randn(40, 8), torch.randn(45, 8)
    cosines = (F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).abs()
    expected = {}
    for flat in cosines.flatten().argsort(descending=True).tolist():
        row, column = divmod(flat, 45)
        if row not in expected and column not in expected.values():
            expected[row] = column
    found = match(one, other)
    assert not found.optimal and found.columns.tolist() == [expected[row] for row in range(40)]


def test_other_widths_and_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="equally wide to be matched, got 4 and 5"):
        match(torch.randn(3, 4), torch.randn(3, 5))
    assert np.isnan(match(torch.zeros(0, 4), torch.randn(3, 4)).mean)
    assert match(torch.zeros(2, 4), torch.randn(3, 4)).mean == 0

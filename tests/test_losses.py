"""Sums merge exactly, and FVU is what its docstring says."""

import pytest
import torch

from sae.losses import VarianceSums, auxk_scale, fvu


@pytest.mark.parametrize("split", [1, 5, 36])
def test_two_parts_merge_to_the_whole(split: int) -> None:
    x = torch.randn(37, 7, dtype=torch.float64) + 5
    merged = VarianceSums.of(x[:split]).merge(VarianceSums.of(x[split:]))
    torch.testing.assert_close(merged.total_variance(), (x - x.mean(0)).square().sum())


def test_no_tokens_are_the_zero_of_merging() -> None:
    sums = VarianceSums.of(torch.randn(5, 3))
    for one, other in zip(VarianceSums.zeros(3, "cpu").merge(sums), sums, strict=True):
        assert torch.equal(one, other)


def test_total_variance_does_not_depend_on_the_shift() -> None:
    x, delta = torch.randn(37, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(VarianceSums.of(x).shifted_by(delta), VarianceSums.of(x + delta))
    torch.testing.assert_close(VarianceSums.of(x + 100).total_variance(), VarianceSums.of(x).total_variance())


def test_fvu_of_the_mean_is_one_and_of_the_truth_is_zero() -> None:
    x = torch.randn(37, 7, dtype=torch.float64)
    variance = VarianceSums.of(x).total_variance()
    assert fvu((x - x.mean(0)).square().sum(), variance).item() == pytest.approx(1.0)
    assert fvu(torch.zeros((), dtype=torch.float64), variance).item() == 0


@pytest.mark.parametrize(("num_dead", "expected"), [(0, 0.0), (12, 0.5), (24, 1.0), (500, 1.0)])
def test_auxk_is_phased_in_with_the_number_of_dead_latents(num_dead: int, expected: float) -> None:
    assert auxk_scale(num_dead, 24) == expected

"""Sums merge exactly, and FVU is what its docstring says."""

import math

import pytest
import torch

from sae.dictionary.losses import VarianceSums, auxk_scale, fvu


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


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("tokens", [2, 37, 5000])
def test_variance_far_from_zero_keeps_its_digits_in_any_split(offset: float, tokens: int) -> None:
    x = torch.randn(tokens, 48) + offset
    exact = (x.double() - x.double().mean(0)).square().sum()
    merged = VarianceSums.of(x[: tokens // 3]).merge(VarianceSums.of(x[tokens // 3 :]))
    for sums in (VarianceSums.of(x), merged, VarianceSums.of(x).shifted_by(torch.full((48,), 1e3))):
        torch.testing.assert_close(sums.total_variance(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 3, 5000])
def test_one_token_and_equal_tokens_have_no_variance_and_fvu_is_nan_or_infinite(
    tokens: int, dtype: torch.dtype
) -> None:
    x = (1e3 * torch.randn(1, 48)).to(dtype).expand(tokens, 48)
    sums = VarianceSums.of(x)
    for each in (sums, VarianceSums.of(x[:1]).merge(sums), sums.shifted_by(-x[0])):
        assert each.total_variance() == 0
    assert fvu(torch.ones(()), sums.total_variance()) == math.inf
    assert fvu(torch.zeros(()), sums.total_variance()).isnan()


def test_sums_of_half_precision_neither_overflow_nor_hide_a_nan() -> None:
    x = torch.full((37, 48), 3e4, dtype=torch.float16)
    x[::2] *= -1
    exact = (x.double() - x.double().mean(0)).square().sum()
    torch.testing.assert_close(VarianceSums.of(x).total_variance(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(VarianceSums.near_mean(x).total_variance(), exact, rtol=1e-5, atol=0)
    x[3, 4] = math.nan
    assert VarianceSums.of(x).total_variance().isnan()


def test_variance_is_differentiable_as_its_formula() -> None:
    x = torch.randn(37, 7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(VarianceSums.of(x + 5).total_variance(), x)
    torch.testing.assert_close(found, 2 * (x - x.mean(0)).detach())

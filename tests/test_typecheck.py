"""The checker of shapes bites: at the first call, and where calls that were right came before."""

import weakref

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from typecheck import checked, jaxtyped

shaped = jaxtyped(typechecker=checked)


@shaped
def rows(x: Float[Tensor, "tokens d"], W: Float[Tensor, "latents d"], more: int = 0) -> Float[Tensor, "tokens latents"]:
    return x.new_zeros(len(x) + more, len(W))


@pytest.mark.parametrize("before", [0, 1, 3])
def test_wrong_arguments_and_results_are_found_after_any_number_of_right_ones(before: int) -> None:
    x, W = torch.zeros(3, 4), torch.zeros(5, 4)
    for _ in range(before):
        assert rows(x, W).shape == (3, 5)
    for wrong in ((x, torch.zeros(5, 6)), (x.int(), W), (x, None), (x[0], W)):
        with pytest.raises(TypeCheckError, match="parameters of"):
            rows(*wrong)
    with pytest.raises(TypeCheckError, match="return value of"):
        rows(x, W, more=1)  # as many rows as no argument has, though the arguments look as before
    assert rows(x[:2], W).shape == (2, 5) and rows(x, W).shape == (3, 5)


def test_nothing_that_was_checked_is_kept() -> None:
    x, W = torch.zeros(3, 4), torch.zeros(5, 4)
    rows(x, W)
    with pytest.raises(TypeCheckError):
        rows(x, W, more=1)

    @shaped
    def halved(x: Float[Tensor, "tokens d"], to: torch.dtype) -> Float[Tensor, "tokens d"]:
        return x.to(to) / 2

    halved(x, torch.float32)
    found = weakref.ref(halved(x, torch.float64))  # looks as no result before
    assert found() is None


def test_dimensions_in_containers_and_types_without_arrays_are_checked() -> None:
    @shaped
    def widths(found: dict[str, Float[Tensor, "tokens _"]], rows: Float[Tensor, "tokens d"]) -> list[int]:
        return [each.shape[1] for each in found.values()]

    @shaped
    def doubled(number: float) -> float:
        return 2 * number

    x = torch.zeros(3, 4)
    assert widths({"a": x}, x) == [4] and widths({"a": x[:, :2]}, x) == [2] and doubled(3) == 6
    with pytest.raises(TypeCheckError):
        widths({"a": x[:2]}, x)
    with pytest.raises(Exception, match="violates type hint"):
        doubled("3")

"""Two language models that read the same tokens, and the names of their places: `a:layers.5` and `b:layers.5`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from .wrappers import unwrapped

A, B = "a:", "b:"
MODELS = (A, B)
"""What the names of the first and the second model's hookpoints begin with."""
MODEL_B = "model_b"
"""The option that names the second model."""


class ModelPair(nn.Module):
    """Two language models, for a crosscoder of both. It only holds them: each is run by itself."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        """Hold two models of transformers.

        Args:
            a: First model, whose tokens both read.
            b: Second model, or another checkpoint of the first.

        Raises:
            ValueError: For a wrapper that changes what a model reads.
        """
        super().__init__()
        self.a, self.b = unwrapped(a), unwrapped(b)


def models_in(model: nn.Module) -> dict[str, nn.Module]:
    """The models, by what the names of their hookpoints begin with; "" for a single one."""
    model = unwrapped(model)
    return {A: model.a, B: model.b} if isinstance(model, ModelPair) else {"": model}


def side_of(hookpoint: str) -> str:
    """The beginning of a hookpoint's name that tells which of two models it is in; "" for a single one's."""
    return next((side for side in MODELS if hookpoint.startswith(side)), "")


def model_at(model: nn.Module, hookpoint: str) -> tuple[nn.Module, str]:
    """The model that a hookpoint is in, and its name there.

    Raises ValueError for one of a single model where there are two, and for one of two where there is one.
    """
    models, side = models_in(model), side_of(hookpoint)
    if len(models) == 1 and side:
        raise ValueError(f"hookpoint {hookpoint} is in one of two models, and one model is given; add --{MODEL_B}")
    if len(models) == 1:
        return models[""], hookpoint
    if not side:
        raise ValueError(f"a hookpoint of two models must begin with {A} or {B}, got {hookpoint}; write {A}{hookpoint}")
    return models[side], hookpoint.removeprefix(side)


def apart(model: nn.Module, hookpoints: Sequence[str]) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Each model with its own of the hookpoints, by their names there, and what these begin with in a pair.

    A model without any is left out, but for a single one. Raises ValueError as `model_at` does.
    """
    for hookpoint in hookpoints:
        model_at(model, hookpoint)
    models = models_in(model)
    for side, one in models.items():
        own = [name.removeprefix(side) for name in hookpoints if not side or side_of(name) == side]
        if own or not side:
            yield side, one, own


def by_option(of_each: Sequence[str]) -> dict[str, str]:
    """Values of each model by the option that names it: `model`, and of a pair `model_b` too."""
    return dict(zip(("model", MODEL_B), of_each, strict=False))


@contextmanager
def of_side(side: str) -> Iterator[None]:
    """A block whose errors are about one of two models: those about the second say so."""
    try:
        yield
    except ValueError as error:
        if side != B:
            raise
        raise ValueError(f"{MODEL_B}: {error}") from error

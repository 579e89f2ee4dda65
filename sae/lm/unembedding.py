"""The linear part of the way from the residual stream to the logits: the final norm's scale and the output matrix."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .forward import as_before, device_of, evaluating, without_cache
from .hookpoints import block_names
from .logits import NoHeadError, full_logits, probe_tokens
from .wrappers import base_model, eagerly, unwrapped

_ALIKE = 0.99
"""Correlation, over the vocabulary, of a model's logits with W h: capping and scaling them leaves it near 1."""


class Unembedding(NamedTuple):
    """What a direction in the residual stream does to the logits, up to a factor that depends on the token."""

    W: Float[Tensor, "vocab d"]
    """The output matrix."""
    scale: Float[Tensor, "d"]
    """The final norm's; ones if there is none."""
    centred: bool
    """Whether the final norm subtracts the mean over d."""

    def matrix(self, device: torch.device) -> Float[Tensor, "vocab d"]:
        """(vocab, d) in float32: logits = matrix · direction."""
        folded = self.W.detach().to(device, torch.float32) * self.scale.to(device, torch.float32)
        return folded - folded.mean(1, keepdim=True) if self.centred else folded


@torch.no_grad()
def find_unembedding(model: nn.Module) -> Unembedding:
    """The unembedding, asked of the model by a forward of a few tokens. Raises NoHeadError if its logits are none."""
    model = unwrapped(model)
    base = base_model(model)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    W = getattr(output, "weight", None)
    if base is model or not isinstance(W, Tensor) or W.ndim != 2 or W.is_meta or not W.is_floating_point():
        raise NoHeadError(f"{type(model).__name__} has no output matrix whose product with a latent could be shown")
    tokens = probe_tokens(model, 8)
    with as_before(model):
        states, norm = _last_states(base, tokens)
        logits = full_logits(model, tokens)[0].float().cpu()
    product = (states.to(W.dtype) @ W.T).float().cpu()
    if product.shape != logits.shape or not _alike(product, logits):
        raise NoHeadError(f"the logits of {type(model).__name__} are no product of hidden states with one matrix")
    scale, centred = (torch.ones(W.shape[1]), False) if norm is None else _scale_of(norm, W.shape[1])
    return Unembedding(W, scale, centred)


def path_to_logits(model: nn.Module, hookpoint: str) -> str:
    """`direct` for the output of a block, which is added to the end; else `direct path only`."""
    try:
        return "direct" if hookpoint in block_names(model) else "direct path only"
    except ValueError:
        return "direct path only"


def _last_states(base: nn.Module, tokens: Tensor) -> tuple[Float[Tensor, "seq d"], nn.Module | None]:
    """The last hidden states of one sequence, and the norm whose output they are."""
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and not list(module.children()) and "norm" in type(module).__name__.lower():
            outputs.append((module, output))

    handles = [module.register_forward_hook(keep) for module in base.modules()]
    try:
        with eagerly(base), evaluating(base):
            found = base(tokens.to(device_of(base)), **without_cache(base))
    finally:
        for handle in handles:
            handle.remove()
    states = found[0] if isinstance(found, tuple) else next(iter(found.values()))
    same = [module for module, output in outputs if output.numel() == states.numel() and _equal(output, states)]
    return states[0], same[-1] if same else None


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.flatten(), other.to(one).flatten())


def _alike(product: Tensor, logits: Tensor) -> bool:
    one, other = (x - x.mean(1, keepdim=True) for x in (product, logits))
    return bool((torch.nn.functional.cosine_similarity(one, other, dim=1) > _ALIKE).all())


def _scale_of(norm: nn.Module, d: int) -> tuple[Float[Tensor, "d"], bool]:
    """What a norm multiplies each dimension by, measured: half the difference of its values at x and -x, over x."""
    x = torch.ones(d)
    x[: d // 2] = -((d - d // 2) / max(1, d // 2))
    x *= d**0.5 / x.norm()  # mean 0, mean square 1: both kinds of norm leave it as it is
    weight = next(norm.parameters(), torch.empty(0))
    device, dtype = (weight.device, weight.dtype) if weight.numel() else (torch.device("cpu"), torch.float32)

    def value(at: Tensor) -> Tensor:
        return norm(at.to(device, dtype)[None, None])[0, 0].float().cpu()

    slope = (value(x) - value(-x)) / (2 * x)
    moved = value(x + 3.0)
    centred = (moved - value(x)).abs().max() < 0.1 * value(x).abs().max()
    return slope, bool(centred)

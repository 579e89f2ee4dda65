"""Which latents stay: rules on one token's pre-activations (tokens, latents) -> values and indices (tokens, width).

A latent with value 0 did not fire. No rule looks at other tokens, so how a step is split changes nothing.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import ops
from sae.config import SaeConfig
from sae.dictionary.spec import Spec
from sae.ops.encode import Select

MOST = 4
"""Most latents of one token that batchtopk keeps, in units of k."""


def selection(cfg: SaeConfig, *, k: int | None = None, threshold: Tensor | None = None) -> Select:
    """The selection that `cfg` asks for, with another `k` if given; `threshold` () belongs to batchtopk.

    TopK: Gao et al. 2024, arXiv:2406.04093, sec. 2.3. BatchTopK: Bussmann et al. 2024, arXiv:2412.06410, with a
    threshold that is known before the batch. GroupMax: EleutherAI's; the groups are k equal ones of neighbouring
    latents.
    """
    k = cfg.k if k is None else k
    if cfg.selection == "groupmax":
        return partial(groupmax, k=k)
    if cfg.selection == "batchtopk":
        assert threshold is not None
        return ops.TopK(MOST * cfg.k, threshold)
    return ops.TopK(k)


def selection_of(spec: Spec, threshold: Tensor | None) -> Select:
    """The selection of a dictionary at inference."""
    if spec.selection == "jumprelu":
        assert threshold is not None
        return partial(jumprelu, threshold=threshold)
    return selection(spec.cfg, threshold=threshold)


def width(cfg: SaeConfig, k: int, num_latents: int) -> int:
    """Latents that a token keeps at most."""
    return min(MOST * cfg.k, num_latents) if cfg.selection == "batchtopk" else k


def groupmax(
    pre_acts: Float[Tensor, "tokens latents"], *, k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The largest of each of k equal groups of neighbouring latents."""
    grouped = pre_acts.unflatten(1, (k, -1))
    values, at = grouped.max(2)
    return values.relu(), at + torch.arange(k, device=at.device) * grouped.shape[2]


def jumprelu(
    pre_acts: Float[Tensor, "tokens latents"], *, threshold: Float[Tensor, "latents"]
) -> tuple[Float[Tensor, "tokens width"], Int[Tensor, "tokens width"]]:
    """The positive latents above their thresholds, as wide as the token with most of them needs.

    Source: Rajamanoharan et al. 2024, arXiv:2407.14435. Waits for the device.
    """
    acts = pre_acts.relu() * (pre_acts > threshold.to(pre_acts.dtype))
    most = max(1, int((acts > 0).sum(1).max())) if len(acts) else 1
    values, indices = acts.topk(most, sorted=False)
    return values, indices

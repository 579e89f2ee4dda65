"""Which latents stay: rules on one token's pre-activations (tokens, latents) -> values and indices (tokens, width).

A latent with value 0 did not fire. No rule looks at other tokens, so how a step is split changes nothing.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae import ops
from sae.config import SaeConfig
from sae.dictionary.shards import WHOLE, Agree, LatentShards, keep_best, keep_best_of_each
from sae.dictionary.spec import Spec
from sae.ops.encode import Select

MOST = 4
"""Most latents of one token that batchtopk keeps, in units of k."""


def selection(
    cfg: SaeConfig, *, k: int | None = None, threshold: Tensor | None = None, shards: LatentShards = WHOLE
) -> Select:
    """The selection that `cfg` asks for, with another `k` if given; `threshold` () belongs to batchtopk.

    Of latents in `shards` it is that among those here, on which all have to agree by `agreement`.

    TopK: Gao et al. 2024, arXiv:2406.04093, sec. 2.3. BatchTopK: Bussmann et al. 2024, arXiv:2412.06410, with a
    threshold that is known before the batch. GroupMax: EleutherAI's; the groups are k equal ones of neighbouring
    latents.
    """
    k = cfg.k if k is None else k
    if cfg.selection == "groupmax":
        return partial(groupmax, k=k, part=shards.part, parts=shards.parts)
    if cfg.selection == "batchtopk":
        assert threshold is not None
        return ops.TopK(MOST * cfg.k, threshold)
    return ops.TopK(k)


def agreement(cfg: SaeConfig, shards: LatentShards) -> Agree:
    """What stays of the latents that the selection of each of the `shards` keeps: what that of all would keep."""
    if cfg.selection == "groupmax":
        return partial(keep_best_of_each, shards=shards)
    return partial(keep_best, shards=shards, most=MOST * cfg.k if cfg.selection == "batchtopk" else 0)


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
    pre_acts: Float[Tensor, "tokens latents"], *, k: int, part: int = 0, parts: int = 1
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The largest of each of k equal groups of neighbouring latents; 0 for groups that have none here.

    The latents are one part, number `part` of `parts` equal ones, whose borders may lie within groups.
    """
    here = pre_acts.shape[1]
    each = here * parts // k
    first, before = divmod(part * here, each)
    after = -(before + here) % each
    if before or after:
        pre_acts = F.pad(pre_acts, (before, after), value=-torch.inf)
    values, at = pre_acts.unflatten(1, (-1, each)).max(2)
    at = at + torch.arange(at.shape[1], device=at.device) * each - before
    others = first, k - first - at.shape[1]
    return F.pad(values.relu(), others), F.pad(at, others)


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

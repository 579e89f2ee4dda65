"""Tokens whose activations are so large that FVU measures them and little else."""

from jaxtyping import Float, Int
from torch import Tensor

FRACTION, SHARE = 0.02, 0.5
"""Warn when this fraction of the tokens carries more than this share of the variance."""


def outlier_warning(
    acts: Float[Tensor, "kept d_in"], tokens: Int[Tensor, "batch seq"], kept: Int[Tensor, "kept"]
) -> str | None:
    """A sentence that says which few tokens carry most of the variance and how to leave them out; None if none do.

    `acts` belongs to the entries `kept` of the flattened `tokens`. Typical are the first token of each sequence (an
    attention sink) and special tokens.
    """
    distances = (acts.float() - acts.float().mean(0)).square().sum(-1)
    top = distances.topk(max(1, int(len(acts) * FRACTION)))
    share = (top.values.sum() / distances.sum()).item()
    if not share > SHARE:
        return None
    # Among them, those that matter: the rest of the fixed fraction may be tokens like all others.
    at = kept[top.indices.cpu()[(top.values > 0.1 * top.values[0]).cpu()]]
    return (
        f"{len(at)} of {len(acts):,} tokens carry {share:.0%} of the variance, so FVU will look better than it is; "
        + _advice(at % tokens.shape[1], tokens.flatten()[at])
    )


def _advice(positions: Int[Tensor, "outliers"], ids: Int[Tensor, "outliers"]) -> str:
    for values, what, option in ((positions, "at position", "exclude_positions"), (ids, "token", "exclude_tokens")):
        value = values.mode().values.item()
        count = int((values == value).sum())
        if 2 * count > len(values):
            return f"{count} of them are {what} {value}: leave it out with --{option} {value}"
    return f"they are at positions {sorted(set(positions.tolist()))[:5]}: see --exclude_positions and --exclude_tokens"

"""Codes with as many entries for each token as it needs, in bags: sums over a bag, and their gradient.

A bag holds a token's entries of one level. Bags are contiguous, by level and then by token; `starts` are their
beginnings.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.native.bags as native

_ENTRIES = 2**16
"""Entries whose rows are gathered together where no operation gathers and multiplies at once."""


class Bags(NamedTuple):
    """The entries of a code that fired, sorted by level and then by token."""

    acts: Float[Tensor, "entries"]
    indices: Int[Tensor, "entries"]
    """Latents."""
    token: Int[Tensor, "entries"]
    bag: Int[Tensor, "entries"]
    """level · tokens + token."""
    starts: Int[Tensor, "bags"]
    place: Int[Tensor, "entries"]
    """Place in the flattened code: token · width + column."""

    @classmethod
    def of(
        cls,
        acts: Float[Tensor, "tokens width"],
        indices: Int[Tensor, "tokens width"],
        level: Int[Tensor, "tokens width"] | None = None,
        levels: int = 1,
    ) -> "Bags":
        """The positive entries; `level` of each is below `levels`. Waits for the device."""
        fired = acts > 0
        found = [(fired if level is None else fired & (level == j)).nonzero() for j in range(levels)]
        at = torch.cat(found)
        bag = torch.cat([each[:, 0] + j * len(acts) for j, each in enumerate(found)])
        starts = torch.searchsorted(bag, torch.arange(levels * len(acts), device=bag.device))
        flat = at[:, 0] * acts.shape[1] + at[:, 1]
        return cls(acts.flatten()[flat], indices.flatten()[flat], at[:, 0], bag, starts, flat)

    @property
    def bounds(self) -> Int[Tensor, "bags_plus_1"]:
        """Where the entries of each bag begin, and where they end."""
        return F.pad(self.starts, (0, 1), value=len(self.indices))


def decode_bags(bags: Bags, W: Float[Tensor, "latents d_out"]) -> Float[Tensor, "bags d_out"]:
    """out[b] = Σ over the entries of bag b of acts · W[indices], without gradients. Twin: `naive.decode`."""
    acts = bags.acts.to(W.dtype)
    if native.covers_decode(acts, bags.indices, W):
        return native.decode(acts, bags.indices, bags.bounds, W)
    with torch.no_grad():
        return F.embedding_bag(bags.indices, W, bags.starts, per_sample_weights=acts, mode="sum")


def gather_dot_bags(
    rows: Float[Tensor, "bags d"], bags: Bags, W: Float[Tensor, "latents d"]
) -> Float[Tensor, "entries"]:
    """out[e] = ⟨rows[bag[e]], W[indices[e]]⟩, without gradients. Twin: `naive.gather_dot`."""
    if native.covers_gather_dot(rows, bags.indices, W, len(bags.starts)):
        return native.gather_dot(rows, bags.indices, bags.bounds, W)
    if rows.is_cpu and rows.dtype == W.dtype and rows.dtype in (torch.float32, torch.float64):
        # The gradient of embedding_bag to its weights is this gather-dot.
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows.contiguous(), W, bags.indices, bags.starts, bags.bag, 0, -1
        )
    parts = zip(bags.bag.split(_ENTRIES), bags.indices.split(_ENTRIES), strict=True)
    dots = [(rows[bag] * W[some].to(rows.dtype)).sum(-1) for bag, some in parts]
    return torch.cat(dots) if dots else rows.new_empty(0)

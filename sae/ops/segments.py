"""Sums over the tokens on which each latent is active: the sparse gradients of encoder and decoder."""

from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.kernels as kernels


class Segments(NamedTuple):
    """Row j of a matrix is Σ weights[e] · rows[tokens[e]] over the entries e from bounds[j] to bounds[j + 1]."""

    bounds: Int[Tensor, "latents_plus_1"]
    tokens: Int[Tensor, "entries"]
    weights: Float[Tensor, "entries"]
    rows: Float[Tensor, "tokens d"]


class SegmentRows:
    """A matrix of sums over segments, (latents, d), whose rows are computed when they are asked for."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._added: list[tuple[Tensor, Tensor]] = []

    @property
    def segments(self) -> Segments | None:
        """What the rows are computed from; None if other rows were added."""
        return None if self._added else self._segments

    def index_add_(self, dim: int, index: Int[Tensor, "some"], source: Float[Tensor, "some d"]) -> None:
        """Add `source` to the rows `index`, which ascend; `dim` is 0. The signature is a tensor's."""
        assert dim == 0
        self._added.append((index, source))

    def __getitem__(self, rows: slice) -> Float[Tensor, "some d"]:
        """These rows, computed now; the slice has no step."""
        bounds, tokens, weights, table = self._segments
        first, end, _ = rows.indices(len(bounds) - 1)
        if first >= end:
            return table[:0]
        begin, stop = int(bounds[first]), int(bounds[end])
        starts, weights = bounds[first:end] - begin, weights[begin:stop]
        with torch.no_grad():
            out = F.embedding_bag(tokens[begin:stop], table, starts, per_sample_weights=weights, mode="sum")
        for index, source in self._added:
            some = slice(*torch.searchsorted(index, torch.tensor([first, end], device=index.device)).tolist())
            out.index_add_(0, index[some] - first, source[some])
        return out


class SummedRows:
    """The sum of two such matrices, whose rows are computed when they are asked for."""

    def __init__(self, first: "MatrixRows", second: "MatrixRows") -> None:
        self._first, self._second = first, second

    def index_add_(self, dim: int, index: Int[Tensor, "some"], source: Float[Tensor, "some d"]) -> None:
        """Add rows, as `SegmentRows.index_add_` does."""
        self._second.index_add_(dim, index, source)

    def __getitem__(self, rows: slice) -> Float[Tensor, "some d"]:
        """These rows, computed now; the slice has no step."""
        return self._first[rows] + self._second[rows]


MatrixRows = Tensor | SegmentRows | SummedRows
"""A matrix (latents, d) that gives some rows at a time."""


class PairSums(NamedTuple):
    """Sums over the entries (n, i) of each latent j, indices[n, i] = j."""

    a: MatrixRows
    """Σ weights_a[n, i] · rows_a[n], (latents, d)."""
    b: MatrixRows
    """Σ weights_b[n, i] · rows_b[n], (latents, d)."""
    weights_b: Float[Tensor, "latents"]
    """Σ weights_b[n, i]."""
    products: Float[Tensor, "latents"]
    """Σ weights_a[n, i] · weights_b[n, i]."""


class LatentSegments:
    """The entries of `indices` (tokens, k), or flat, sorted by latent: segment j lists the tokens that selected it.

    Sums run over each segment in the order of the tokens, so they are bitwise equal from run to run (no atomics).
    """

    def __init__(self, indices: Int[Tensor, "*tokens k"], num_latents: int) -> None:
        """Each flat entry (entries,) has a token of its own; a sum may name other rows (`row_of`)."""
        flat = indices.flatten()
        self._latents, self._order = torch.sort(flat.int(), stable=True)
        self._tokens = self._order if indices.dim() == 1 else self._order // indices.shape[1]
        boundaries = torch.arange(num_latents + 1, device=flat.device, dtype=torch.int32)
        self._bounds = torch.searchsorted(self._latents, boundaries)

    def joined(self, size: int) -> "LatentSegments":
        """The segments of each `size` latents side by side as one."""
        found = copy(self)
        found._latents, found._bounds = self._latents // size, self._bounds[::size]
        return found

    def sum(self, weights: Float[Tensor, "tokens k"], rows: Float[Tensor, "tokens d"]) -> Float[Tensor, "latents d"]:
        """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i] · rows[n]. Twin: `naive.segment_sum`."""
        return self.rows(weights, rows)[:]

    def rows(
        self,
        weights: Float[Tensor, "*tokens k"],
        rows: Float[Tensor, "rows d"],
        row_of: Int[Tensor, "entries"] | None = None,
    ) -> SegmentRows:
        """`sum`, with rows that are computed when they are asked for.

        `row_of` names the row of each flat entry. None: its token's row.
        """
        tokens = self._tokens if row_of is None else row_of[self._order]
        return SegmentRows(Segments(self._bounds, tokens, weights.flatten()[self._order], rows))

    def sum_pair(
        self,
        weights_a: Float[Tensor, "*tokens k"],
        rows_a: Float[Tensor, "rows_a d_a"],
        weights_b: Float[Tensor, "*tokens k"],
        rows_b: Float[Tensor, "rows_b d_b"],
        *,
        row_of: tuple[Int[Tensor, "entries"], Int[Tensor, "entries"]] | None = None,
    ) -> PairSums:
        """Both sums and the sums of their weights; on a GPU in one pass over the entries, added up in float32.

        `row_of` names the row of each flat entry in both tables, which may then differ in size. Without the kernels the
        two matrices are `SegmentRows`. An optimizer, which needs them a few rows at a time, never has them in memory.
        """
        if row_of is None and kernels.usable(weights_a, rows_a, weights_b, rows_b):
            import sae.ops.kernels.segments as fast

            pairs = (weights_a, rows_a, weights_b, rows_b)
            return PairSums(*fast.sum_pair(*pairs, latents=self._latents, order=self._order, bounds=self._bounds))
        row_of_a, row_of_b = (None, None) if row_of is None else row_of
        return PairSums(
            a=self.rows(weights_a, rows_a, row_of_a),
            b=self.rows(weights_b, rows_b, row_of_b),
            weights_b=self.sum_weights(weights_b),
            products=self.sum_weights(weights_a * weights_b),
        )

    def sum_weights(self, weights: Float[Tensor, "*tokens k"]) -> Float[Tensor, "latents"]:
        """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i]."""
        return torch.segment_reduce(weights.flatten()[self._order], "sum", offsets=self._bounds, initial=0)

"""Pairs of latents of two dictionaries, one to one, by the cosine of their rows' directions."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

LARGEST_OPTIMAL = 20_000
"""Largest number of latents for which the pairing is optimal: the time grows with its third power. Above, it is greedy.
"""
_ROWS_AT_ONCE = 2048
_CANDIDATES = 64
"""Partners of a row that the greedy pairing tries before it compares the row with all again."""


class Matching(NamedTuple):
    """Pairs of rows: as many as the smaller dictionary has."""

    rows: NDArray[np.int64]
    """Latents of the first dictionary, increasing."""
    columns: NDArray[np.int64]
    """Latents of the second, each at most once."""
    cosines: NDArray[np.float64]
    """|cosine| of each pair, from 0 to 1."""
    optimal: bool
    """Whether no other pairing has a larger sum; else each pair was the best that was left (greedy)."""

    @property
    def mean(self) -> float:
        """The mean correlation coefficient: the mean |cosine| of the pairs; NaN without any.

        Source: Song et al. 2025, arXiv:2505.20254 (PW-MCC, between two dictionaries); against known features the same
        number is the MCC of O'Neill et al. 2024, arXiv:2411.13117.
        """
        return float(self.cosines.mean()) if len(self.cosines) else float("nan")


@torch.no_grad()
def match(one: Float[Tensor, "rows d"], other: Float[Tensor, "columns other_d"]) -> Matching:
    """Pairs of the rows of two matrices. Optimal where both have at most `LARGEST_OPTIMAL` rows, else greedy.

    Rows of length 0 have cosine 0 with all. Raises ValueError for matrices of different widths.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"dictionaries must be equally wide to be matched, got {one.shape[1]} and {other.shape[1]}")
    if len(one) > len(other):
        swapped = match(other, one)
        order = np.argsort(swapped.columns)
        return Matching(swapped.columns[order], swapped.rows[order], swapped.cosines[order], swapped.optimal)
    a, b = (torch.nn.functional.normalize(each.float().cpu(), dim=1) for each in (one, other))
    optimal = len(other) <= LARGEST_OPTIMAL
    columns = best_pairs((a @ b.T).abs().numpy()) if optimal else _greedy_pairs(a, b)
    cosines = (a * b[torch.from_numpy(columns)]).sum(1).abs().clamp_max(1).double().numpy()
    return Matching(np.arange(len(a)), columns, cosines, optimal)


def best_pairs(similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """The column of each row, all different, with the largest sum of `similarity` (rows, columns); rows <= columns.

    The method is shortest augmenting paths (Jonker and Volgenant 1987, doi:10.1007/BF02278710). Each row in turn finds
    the cheapest way to a free column over the pairs so far. Dijkstra's algorithm finds it on costs that the duals keep
    from being negative.
    """
    rows, columns = similarity.shape
    cost_of_column = np.zeros(columns)
    column_of, row_of = np.full(rows, -1), np.full(columns, -1)
    cost_of_row = np.zeros(rows)
    for start in range(rows):
        least, came_from = np.full(columns, np.inf), np.full(columns, -1)
        open_, visited, row, reached = np.ones(columns, dtype=bool), [], start, 0.0
        while True:
            visited.append(row)
            through = reached - similarity[row] - cost_of_row[row] - cost_of_column
            better = open_ & (through < least)
            least[better], came_from[better] = through[better], row
            column = int(np.where(open_, least, np.inf).argmin())
            reached = float(least[column])
            open_[column] = False
            if row_of[column] < 0:
                break
            row = int(row_of[column])
        cost_of_row[start] += reached
        others = np.array(visited[1:], dtype=np.int64)
        cost_of_row[others] += reached - least[column_of[others]]
        closed = ~open_
        cost_of_column[closed] -= reached - least[closed]
        _augment(column, start, came_from, column_of, row_of)
    return column_of


def _augment(
    column: int,
    start: int,
    came_from: NDArray[np.int64],
    column_of: NDArray[np.int64],
    row_of: NDArray[np.int64],
) -> None:
    """Give the free column to the row that it was reached from, that row's old column to the one before, and so on."""
    row = -1
    while row != start:
        row = int(came_from[column])
        row_of[column] = row
        column_of[row], column = column, column_of[row]


def _greedy_pairs(a: Float[Tensor, "rows d"], b: Float[Tensor, "columns d"]) -> NDArray[np.int64]:
    """The column of each row: the pair with the largest |cosine| first, then the largest among what is left."""
    column_of = torch.full((len(a),), -1)
    free = torch.ones(len(b), dtype=torch.bool)
    while len(left := (column_of < 0).nonzero().flatten()):
        some = min(_CANDIDATES, int(free.sum()))
        parts = [(part @ b.T).abs().masked_fill_(~free, -1).topk(some) for part in a[left].split(_ROWS_AT_ONCE)]
        values, columns = (torch.cat(each) for each in zip(*parts, strict=True))
        # Below a row's last candidate others are unknown: from the highest of these on nobody is paired yet.
        known = values[:, -1].max() if some < int(free.sum()) else -1.0
        order = values.flatten().argsort(descending=True, stable=True)
        order = order[values.flatten()[order] >= known]
        for at, column in zip((order // some).tolist(), columns.flatten()[order].tolist(), strict=True):
            if column_of[left[at]] < 0 and free[column]:
                column_of[left[at]], free[column] = column, False
    return column_of.numpy()

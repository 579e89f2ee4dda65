"""Logistic regression for probes, exact and on a CPU: with an L1 penalty on few columns, with an L2 one on many."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STRENGTHS = np.logspace(5, -5, 10)
"""C, the weight of the likelihood against the penalty, that are tried."""
_STEPS, _SWEEPS, _HALVINGS = 60, 200, 25
_TOLERANCE = 1e-9
_RIDGE = 1e-10


class Fitted(NamedTuple):
    """Linear scores x · weights + intercept, one row of weights for each C."""

    weights: NDArray[np.float64]
    """(strengths, columns)"""
    intercepts: NDArray[np.float64]
    """(strengths,)"""

    def scores(self, x: Array) -> Array:
        """(strengths, rows)"""
        return self.weights @ x.T + self.intercepts[:, None]


def fit_l1(x: Array, y: Array, strengths: Array) -> Fitted:
    """Minimise ‖w‖₁ + C Σ log(1 + exp(−s (x·w + b))), s = ±1 for y = 1 and 0, for each C; b has no penalty.

    x is (rows, columns), of few columns. The method is Newton's (Friedman et al. 2010). Coordinate descent with soft
    thresholds solves each step's quadratic, for all C at once. The step is halved until the objective falls.
    """
    rows, columns = x.shape
    full = np.concatenate([x, np.ones((rows, 1))], 1)
    penalty = np.append(np.ones(columns), 0.0)
    found = np.zeros((len(strengths), columns + 1))
    value = _l1_objective(full, y, strengths, penalty, found)
    for _ in range(_STEPS):
        p = _sigmoid(found @ full.T)
        gradient = strengths[:, None] * ((p - y) @ full)
        hessian = strengths[:, None, None] * np.einsum("cn,ni,nj->cij", p * (1 - p), full, full, optimize=True)
        step = _l1_step(gradient, hessian, penalty, found)
        after, left = found + step, np.ones(len(strengths), dtype=bool)
        for halving in range(_HALVINGS):
            new = _l1_objective(full, y, strengths, penalty, after)
            left = new > value
            if not left.any():
                break
            after[left] = found[left] + step[left] * 0.5 ** (halving + 1)
        after[left], new = found[left], np.where(left, value, new)
        fell, found, value = value - new, after, new
        if (fell <= _TOLERANCE * (1 + np.abs(value))).all():
            break
    return Fitted(found[:, :-1], found[:, -1])


def _l1_objective(full: Array, y: Array, strengths: Array, penalty: Array, w: Array) -> Array:
    return strengths * _loss(w @ full.T, y) + np.abs(w) @ penalty


def _l1_step(gradient: Array, hessian: Array, penalty: Array, w: Array) -> Array:
    """The d that minimises g·d + ½ dᵀHd + Σ penalty |w + d|, for each C, by coordinate descent."""
    size = w.shape[1]
    curvature = np.maximum(np.einsum("cii->ci", hessian), 1e-300) * (1 + _RIDGE) + _RIDGE
    step, slope = np.zeros_like(w), gradient.copy()
    for _ in range(_SWEEPS):
        largest = 0.0
        for j in range(size):
            at = w[:, j] + step[:, j]
            aim = at - slope[:, j] / curvature[:, j]
            new = np.sign(aim) * np.maximum(np.abs(aim) - penalty[j] / curvature[:, j], 0)
            change = new - at
            step[:, j] += change
            slope += hessian[:, j] * change[:, None]
            largest = max(largest, float((np.abs(change) * np.sqrt(curvature[:, j])).max()))
        if largest < 1e-6:
            break
    return step


def fit_l2(x: Array, y: Array, strength: float, start: Fitted | None = None, *, weights: Array | None = None) -> Fitted:
    """Minimise ½‖w‖² + C Σ weight · log(1 + exp(−s (x·w + b))) for one C, by Newton's method; b has no penalty.

    `weights` are those of the rows; None: 1 each.
    """
    each = np.ones(len(y)) if weights is None else weights
    rows, columns = x.shape
    full = np.concatenate([x, np.ones((rows, 1))], 1)
    penalty = np.append(np.ones(columns), _RIDGE)
    w = np.zeros(columns + 1) if start is None else np.append(start.weights[0], start.intercepts[0])

    def objective(w: Array) -> float:
        return float(strength * _loss(full @ w, y, each) + 0.5 * (penalty * w) @ w)

    value = objective(w)
    for _ in range(_STEPS):
        p = _sigmoid(full @ w)
        gradient = strength * (full.T @ (each * (p - y))) + penalty * w
        hessian = strength * (full.T * (each * p * (1 - p))) @ full
        hessian[np.diag_indices(columns + 1)] += penalty
        step = -np.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := objective(w + size * step)) > value and size > 0.5**_HALVINGS:
            size /= 2
        if new > value:
            break
        w, fell, value = w + size * step, value - new, new
        if fell <= _TOLERANCE * (1 + abs(value)):
            break
    return Fitted(w[None, :-1], w[None, -1])


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _loss(z: Array, y: Array, weights: Array | float = 1.0) -> Array:
    """Σ over rows of weight · (log(1 + exp(z)) − y z), (…, rows) → (…)."""
    return np.asarray((weights * (np.logaddexp(0, z) - y * z)).sum(-1))


class Auc(NamedTuple):
    """The probability that a positive has a higher score than a negative, ties counting half, and its error."""

    value: float
    error: float
    """Its standard error: DeLong et al. 1988, doi:10.2307/2531595."""

    @classmethod
    def of(cls, scores: Array, y: Array) -> "Auc":
        """The area under the ROC curve of scores (rows,) for classes y, 0 or 1, both there."""
        positive, negative = scores[y == 1], scores[y == 0]
        above, below = _share_below(positive, negative), 1 - _share_below(negative, positive)
        terms = [each.var(ddof=1) / len(each) if len(each) > 1 else 0.0 for each in (above, below)]
        return cls(float(above.mean()), math.sqrt(sum(terms)))


def _share_below(values: Array, others: Array) -> Array:
    """For each value the share of the others that are less, equal ones counting half."""
    others = np.sort(others)
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))

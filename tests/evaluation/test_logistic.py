"""The probes' regressions reach the optimum, by its conditions; the AUC and its error are those of all pairs."""

import numpy as np
import pytest

from sae.evaluation.logistic import STRENGTHS, Auc, fit_l1, fit_l2


def data(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(rows, columns)) * rng.uniform(0.1, 5, columns), 0)
    y = (x @ rng.normal(size=columns) + rng.normal(size=rows) > 0.2).astype(float)
    y[:2] = 0, 1
    return x, y


@pytest.mark.parametrize(("rows", "columns", "seed"), [(60, 1, 0), (400, 5, 1), (924, 16, 2), (37, 3, 3)])
def test_the_l1_fit_meets_the_conditions_of_the_optimum_at_every_strength(rows: int, columns: int, seed: int) -> None:
    x, y = data(rows, columns, seed)
    found = fit_l1(x, y, STRENGTHS)
    for strength, weights, scores in zip(STRENGTHS, found.weights, found.scores(x), strict=True):
        residual = 1 / (1 + np.exp(-scores)) - y
        gradient = strength * residual @ x
        scale = 1 + strength * np.abs(x).sum(0)
        assert abs(strength * residual.sum()) < 1e-4 * strength * rows
        for j in range(columns):
            wanted = -np.sign(weights[j]) if weights[j] else np.clip(gradient[j], -1, 1)
            assert abs(gradient[j] - wanted) < 1e-4 * scale[j], (strength, j)


@pytest.mark.parametrize("strength", [1e-4, 1.0, 1e3])
def test_the_l2_fit_has_no_gradient_left(strength: float) -> None:
    x, y = data(300, 40, 5)
    found = fit_l2(x, y, strength)
    residual = 1 / (1 + np.exp(-found.scores(x)[0])) - y
    gradient = strength * residual @ x + found.weights[0]
    assert np.abs(gradient).max() < 1e-4 * (1 + strength * np.abs(x).sum(0).max())
    assert abs(residual.sum()) < 1e-4 * 300


def test_the_auc_is_the_share_of_all_pairs_and_its_error_that_of_resampling() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(150) < 0.4).astype(float)
    scores = np.round(rng.normal(size=150) + y, 1)
    found = Auc.of(scores, y)
    pairs = scores[y == 1][:, None] - scores[y == 0][None]
    assert found.value == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    drawn = []
    for _ in range(600):
        at = np.concatenate([rng.choice(np.flatnonzero(y == c), (y == c).sum()) for c in (0, 1)])
        drawn.append(Auc.of(scores[at], y[at]).value)
    assert found.error == pytest.approx(np.std(drawn), rel=0.15)


def test_no_information_and_all_of_it() -> None:
    y = np.array([0.0, 1.0] * 20)
    assert Auc.of(np.zeros(40), y).value == 0.5
    assert Auc.of(y, y) == Auc(1.0, 0.0)
    assert not fit_l1(y[:, None], 1 - y, np.array([1e-6])).weights.any()

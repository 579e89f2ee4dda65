"""Detectors of known features, the pursuit, and encoders fitted to it (`benchmarks/quality/linear_limit.py`)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor


def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    from benchmarks.quality import known_features

    monkeypatch.setattr(known_features, "FITTED", 4000)
    return known_features.World(2, 2048, num_features=40, width=64, batch=512)


def orthonormal(rows: int, width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, rows, generator=torch.Generator().manual_seed(0))).Q.T.contiguous()


def test_a_pursuit_on_orthonormal_rows_finds_the_code() -> None:
    from benchmarks.quality.linear_limit import MOST, pursuit

    rows = orthonormal(20, 32)
    indices = torch.tensor([[3, 17, 5, 11], [0, 1, 2, 19]])
    values = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 4.0, 3.0, 2.0]])
    assert indices.shape[1] == MOST
    found, which = pursuit(torch.einsum("tk,tkd->td", values, rows[indices]), rows)
    order = values.argsort(1, descending=True)
    assert torch.equal(which, indices.gather(1, order))
    torch.testing.assert_close(found, values.gather(1, order), atol=1e-3, rtol=1e-3)  # the ridge of 1e-4


def test_a_pursuit_chooses_what_explains_most_of_the_rest_where_rows_overlap() -> None:
    from benchmarks.quality.linear_limit import pursuit

    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    values, which = pursuit(torch.tensor([[2.0, 0.1, 1.0]]), rows)
    assert which[0, :3].tolist() == [0, 2, 1]
    code = torch.zeros(3).index_add(0, which[0], values[0])
    torch.testing.assert_close(code @ rows, torch.tensor([2.0, 0.1, 1.0]), atol=1e-2, rtol=0)


def test_detectors_find_features_that_are_far_apart_and_a_fit_makes_others_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.quality.linear_limit import detectors, fisher, fitted_to_pursuit, logistic, with_encoder
    from sae.evaluation.recovery import recovery

    here = world(tmp_path, monkeypatch)
    features, test = here.store.features, here.store.held_out_sample()
    known = recovery(detectors(features.directions, here), features.directions, *test)
    assert known.f1 > 0.9 and known.mcc == pytest.approx(1)
    torch.testing.assert_close((fisher(features) * features.directions).sum(1), torch.ones(40))
    fitted = recovery(detectors(logistic(features, 60), here), features.directions, *test)
    assert fitted.f1 > known.f1 + 0.02

    noisy = features.directions + 0.3 * torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    sae = with_encoder(features.directions, features.mean, noisy, torch.zeros(40), 0.3)
    better = fitted_to_pursuit(sae, features, 40, 0.3, with_decoder=False)
    torch.testing.assert_close(better.W_dec, sae.W_dec)
    before, after = (recovery(one, features.directions, *test).f1 for one in (sae, better))
    assert after > before + 0.05

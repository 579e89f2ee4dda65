"""The explicit gradients of the training loss equal autograd over dense float64 tensors, AuxK included."""

import pytest
import torch
from oracle import dense_gradients, make_sae

from sae import Sae
from sae.dictionary.gradients import (
    Gradients,
    Objective,
    Weights,
    add_auxk_gradients_,
    encoded,
    pullback,
    token_shares,
)
from sae.dictionary.losses import auxk_scale
from sae.dictionary.selection import selection

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def explicit(
    sae: Sae,
    x: torch.Tensor,
    *,
    scale: float,
    auxk: float,
    dead: torch.Tensor,
    parts: int = 1,
    limit: float | None = None,
) -> Gradients:
    weights, total = Weights.of(sae, sae.dtype), None
    for part in x.tensor_split(parts):
        code = encoded(weights, part, selection(sae.cfg))
        grads, recon = pullback(weights, code, None, Objective(scale, limit))
        if len(dead):
            add_auxk_gradients_(grads, weights, recon, dead, scale=auxk)
        total = grads if total is None else total.plus(grads)
    assert total is not None
    return Gradients(*total.dense())


@pytest.mark.parametrize("num_dead", [0, 1, 7, 23, 24, 25, 60, 96], ids=lambda n: f"{n} dead")
@pytest.mark.parametrize("tokens", [1, 37])
def test_every_gradient_equals_the_oracle(tokens: int, num_dead: int) -> None:
    sae = make_sae()
    x, dead = torch.randn(tokens, 48, dtype=torch.float64) * 3 + 1, torch.randperm(96)[:num_dead].sort().values
    grads = explicit(sae, x, scale=0.7, auxk=0.2, dead=dead)
    oracle = dense_gradients(sae, x, scale=0.7, auxk_scale=0.2 * auxk_scale(num_dead, 24), dead=dead)
    for name in NAMES:
        torch.testing.assert_close(getattr(grads, name), getattr(oracle, name), msg=lambda t, n=name: f"{n}: {t}")
    torch.testing.assert_close(grads.radial, (oracle.W_dec * sae.W_dec).sum(1))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("limit", [1e-3, 300.0, 1e9])
def test_a_limited_token_counts_with_its_share(limit: float, parts: int) -> None:
    sae, dead = make_sae(), torch.arange(0, 96, 4)
    x = torch.randn(37, 48, dtype=torch.float64) + 1
    x[5] *= 100
    recon = sae(x).recon
    shares = token_shares(x - sae.b_dec, recon - x, limit)
    assert {1e-3: shares.max() < 1e-3, 300.0: shares[5] < 0.1 < 1.0 == shares.max(), 1e9: shares.min() == 1}[limit]
    grads = explicit(sae, x, scale=0.7, auxk=0.2, dead=dead, parts=parts, limit=limit)
    oracle = dense_gradients(sae, x, scale=0.7, limit=limit, auxk_scale=0.2 * auxk_scale(len(dead), 24), dead=dead)
    for name in NAMES:
        torch.testing.assert_close(getattr(grads, name), getattr(oracle, name), msg=lambda t, n=name: f"{n}: {t}")
    torch.testing.assert_close(grads.radial, (oracle.W_dec * sae.W_dec).sum(1))


def test_a_token_that_is_reconstructed_exactly_has_its_whole_share() -> None:
    zero = torch.zeros(2, 3)
    assert token_shares(zero, torch.ones(2, 3), 0.5).tolist() == token_shares(zero, zero, 0.5).tolist() == [1.0, 1.0]


def test_auxk_trains_encoder_and_decoder_rows_of_dead_latents_and_no_others() -> None:
    sae, x = make_sae(), torch.randn(37, 48, dtype=torch.float64)
    dead = torch.tensor([3, 50, 90])
    with torch.no_grad():
        sae.encoder.bias[dead] = -100.0  # They are never selected by the main code, so only AuxK can reach them.
    without = explicit(sae, x, scale=1.0, auxk=0.0, dead=dead[:0])
    assert without.W_enc[dead].abs().max() == without.W_dec[dead].abs().max() == 0
    with torch.no_grad():
        sae.encoder.bias[dead] = 0.0
        alive = torch.ones(96, dtype=torch.bool).index_fill(0, dead, False)
    main, both = (explicit(sae, x, scale=1.0, auxk=a, dead=dead) for a in (0.0, 1.0))
    for name in ("W_enc", "b_enc", "W_dec"):
        change = (getattr(both, name) - getattr(main, name)).reshape(96, -1).abs().amax(1)
        assert (change[dead] > 0).all(), name
        assert change[alive].max() == 0, name


@pytest.mark.parametrize("parts", [2, 3, 37])
def test_gradients_of_any_split_of_the_tokens_add_up_to_the_whole(parts: int) -> None:
    sae, x, dead = make_sae(), torch.randn(37, 48, dtype=torch.float64), torch.arange(0, 96, 2)
    whole, split = (explicit(sae, x, scale=0.7, auxk=0.2, dead=dead, parts=p) for p in (1, parts))
    for name in Gradients._fields:
        torch.testing.assert_close(getattr(split, name), getattr(whole, name))


def test_all_latents_kept_is_a_dense_autoencoder() -> None:
    sae, x = make_sae(d_in=7, num_latents=31, k=31), torch.randn(13, 7, dtype=torch.float64)
    dense = ((x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias).relu() @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae(x).recon, dense)


def test_bf16_gradients_stay_close_to_float64() -> None:
    sae, x = make_sae(dtype=torch.float32), torch.randn(256, 48)
    weights = Weights.of(sae, torch.bfloat16)
    grads, _ = pullback(weights, encoded(weights, x, selection(sae.cfg)), None, Objective(1.0))
    oracle = dense_gradients(sae, x)
    for name in NAMES:
        one, other = getattr(grads, name)[:].double(), getattr(oracle, name)
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99, name

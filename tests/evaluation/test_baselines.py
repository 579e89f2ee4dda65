"""What stands beside a dictionary: random rows and principal components of the same L0."""

import pytest
import torch

from sae import Sae, SaeConfig
from sae.evaluation.baselines import baselines, check_can_have_baselines

D, TOKENS = 10, 3000


@pytest.fixture
def x() -> torch.Tensor:
    """Tokens whose dimensions differ in variance and are mixed, about a mean."""
    scales = torch.linspace(0.2, 3, D)
    return torch.randn(TOKENS, D) * scales @ torch.linalg.qr(torch.randn(D, D)).Q + 5 * torch.randn(D)


def trained(k: int = 3, **options: object) -> Sae:
    return Sae(D, SaeConfig(num_latents=40, k=k, **options))  # type: ignore[arg-type]


def error(sae: Sae, x: torch.Tensor) -> float:
    return (sae(x).recon - x).square().sum().item()


def test_pca_keeps_the_largest_projections_of_each_token(x: torch.Tensor) -> None:
    pca = baselines(["pca"], {"layers.0": trained()}, {"layers.0": x})["PCA"]["layers.0"]
    mean = x.double().mean(0)
    _, _, components = torch.linalg.svd(x.double() - mean, full_matrices=False)
    projections = (x.double() - mean) @ components.T
    kept = torch.zeros_like(projections).scatter(1, projections.abs().topk(3).indices, 1.0) * projections
    torch.testing.assert_close(pca(x).recon.double(), kept @ components + mean, atol=1e-3, rtol=1e-3)
    assert (pca.encode(x).top_acts > 0).sum(1).float().mean() == 3 and pca.num_latents == 2 * D


def test_random_rows_are_as_many_of_unit_length_and_scaled_to_reconstruct_best(x: torch.Tensor) -> None:
    made = baselines(["random"], {"layers.0": trained()}, {"layers.0": x})["random rows"]["layers.0"]
    assert made.num_latents == 40 and made.cfg.k == 3
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(40))
    W, mean = made.W_dec.detach().double(), x.double().mean(0)
    pre_acts = (x.double() - mean) @ W.T
    code = pre_acts.relu() * torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(3).indices, 1.0)
    recon, centred = code @ W, x.double() - mean
    scale = (recon * centred).sum() / recon.square().sum()
    torch.testing.assert_close(made(x).recon.double(), scale * recon + mean, atol=1e-3, rtol=1e-3)
    found = error(made, x)
    for factor in (0.9, 1.1):
        made.encoder.weight.data.mul_(factor)
        assert error(made, x) > found
        made.encoder.weight.data.div_(factor)


def test_the_l0_is_what_fires_and_not_what_is_allowed(x: torch.Tensor) -> None:
    few = trained(k=8)
    few.encoder.bias.data.fill_(-1e6)
    few.encoder.bias.data[:2] = 1e6  # two that always fire
    made = baselines(["random", "pca"], {"layers.0": few}, {"layers.0": x})
    assert [each["layers.0"].cfg.k for each in made.values()] == [2, 2] and list(made) == ["random rows", "PCA"]


def test_every_hookpoint_has_rows_of_its_own_and_the_same_each_time(x: torch.Tensor) -> None:
    saes, activations = {name: trained() for name in "ab"}, dict.fromkeys("ab", x)
    one, two = (baselines(["random"], saes, activations)["random rows"] for _ in range(2))
    assert torch.equal(one["a"].W_dec, two["a"].W_dec) and not torch.equal(one["a"].W_dec, one["b"].W_dec)


def test_massive_tokens_do_not_count(x: torch.Tensor) -> None:
    sinks = torch.cat([x, torch.full((3, D), 1e4)])
    clean, spoiled = (baselines(["pca"], {"a": trained()}, {"a": each})["PCA"]["a"] for each in (x, sinks))
    torch.testing.assert_close(clean.b_dec, spoiled.b_dec)
    assert error(spoiled, x) == pytest.approx(error(clean, x), rel=1e-3)


def test_what_does_not_write_what_it_reads_has_none() -> None:
    with pytest.raises(ValueError, match="got a transcoder at layers.1.mlp; leave out --baselines"):
        check_can_have_baselines({"layers.0": trained(), "layers.1.mlp": trained(transcode=True)})

"""The few tokens that outweigh thousands: what is remembered of them, and that they are reconstructed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import make_sae
from torch.nn import functional as F

from sae.dictionary.autoencoder import Sae
from sae.dictionary.gradients import Weights
from sae.dictionary.losses import Spread, spread
from sae.dictionary.selection import selection
from sae.training.learner import SaeLearner
from sae.training.massive_tokens import MassiveTokens
from sae.training.recipe import Recipe

D, N = 48, 64
MASSIVE = Recipe(token_grad_limit_variances=1.0, spare_massive=True)
LONG = 3000 * F.normalize(torch.linspace(-1, 2, D), dim=0)


def ordinary(tokens: int = N) -> torch.Tensor:
    return torch.randn(tokens, D) * torch.linspace(0.1, 3, D)


def learner_with(recipe: Recipe) -> SaeLearner:
    torch.manual_seed(0)
    learner = SaeLearner(
        make_sae(dtype=torch.float32),
        tokens_per_step=N,
        auxk_alpha=1 / 32,
        dead_feature_threshold=10**6,
        compute_dtype=torch.float32,
        recipe=recipe,
    )
    learner.initialise(ordinary(512))
    return learner


def train(learner: SaeLearner, steps: int, *, every: int = 6) -> None:
    """Steps on ordinary tokens, of which one now and then has a massive one among them."""
    torch.manual_seed(1)
    for step in range(steps):
        x = ordinary()
        if step % every == 0:
            x[7] = LONG + torch.randn(D)
        for part in x.split(N // 2):
            learner.accumulate(part)
        learner.update(1e-2)


def error_of(learner: SaeLearner, x: torch.Tensor) -> float:
    """‖x̂ − x‖ / ‖x‖."""
    return error_of_sae(learner.sae, x)


def error_of_sae(sae: Sae, x: torch.Tensor) -> float:
    """The same."""
    return ((sae(x.unsqueeze(0)).recon - x).norm() / x.norm()).item()


@pytest.mark.parametrize("every", [16, 100])
@pytest.mark.parametrize("length", [40, 200, 10_000])
def test_ordinary_tokens_are_told_from_massive_ones(every: int, length: float) -> None:
    """Lengths in root mean squares of the ordinary tokens' distance, for one token in so many."""
    torch.manual_seed(0)
    x = ordinary(4 * every) + 5
    massive = torch.arange(len(x)) % every == 0
    scale = (x - x.mean(0)).square().sum(1).mean().sqrt()
    x[massive] = x[massive] + length * scale * F.normalize(torch.ones(D), dim=0)
    found = spread(x, x)
    assert found.everything.tokens == len(x)
    assert torch.equal(found.rule.counts(x) == 0, massive)
    torch.testing.assert_close(found.ordinary.mean(), x[~massive].double().mean(0), rtol=1e-5, atol=1e-5)


def test_tokens_that_are_merely_long_are_ordinary() -> None:
    """At early layers of SmolLM2 one token in a hundred is 80 variances away: they are what is to be learned."""
    torch.manual_seed(0)
    x = ordinary(1000)
    x[::100] *= 8
    found = spread(x, x)
    assert found.ordinary is found.everything


def test_what_is_massive_does_not_depend_on_how_tokens_are_shared() -> None:
    torch.manual_seed(0)
    x = ordinary(512) + 5
    x[::50] = LONG
    alone, barrier, given = spread(x, x[:128]), threading.Barrier(2), {}

    def shared(part: int) -> Spread:
        """As one of two processes."""

        def add_up(tensors: list[torch.Tensor]) -> None:
            given[part] = [tensor.clone() for tensor in tensors]
            barrier.wait()
            for tensor, other in zip(tensors, given[1 - part], strict=True):
                tensor.add_(other)
            barrier.wait()

        return spread(x[part::2], x[:128][part::2], add_up)

    with ThreadPoolExecutor(2) as pool:
        together, _ = pool.map(shared, range(2))
    torch.testing.assert_close(together.ordinary.mean(), alone.ordinary.mean())
    assert together.ordinary.tokens == alone.ordinary.tokens


def test_neither_normaliser_nor_start_are_about_massive_tokens_but_in_the_papers_recipe() -> None:
    torch.manual_seed(0)
    x = ordinary(640) + 2
    others = torch.arange(640) % 64 != 0
    variance = (x[others] - x[others].mean(0)).square().sum(1).mean().item()
    x[~others] = LONG
    spared, paper = learner_with(MASSIVE), learner_with(Recipe())
    for learner in (spared, paper):
        learner.initialise(x)
    assert spared.variance == pytest.approx(variance, rel=1e-4) and paper.variance > 20 * variance
    torch.testing.assert_close(spared.sae.b_dec.detach(), x[others].mean(0))
    torch.testing.assert_close(paper.sae.b_dec.detach(), x.mean(0), rtol=1e-4, atol=1e-4)


def test_the_fvu_of_a_step_is_of_the_ordinary_tokens() -> None:
    with_, without = learner_with(MASSIVE), learner_with(MASSIVE)
    x = ordinary()
    without.accumulate(x)
    with_.accumulate(torch.cat([x, LONG.unsqueeze(0)]))
    for learner in (with_, without):
        learner.update(0.0)
    assert with_.read_metrics().fvu == pytest.approx(without.read_metrics().fvu, rel=1e-4)


def test_the_mean_is_of_the_massive_tokens_alone_and_forgets_a_tenth_with_each_step_that_has_some() -> None:
    tokens, b_dec = MassiveTokens(D, torch.device("cpu")), torch.full((D,), 2.0)
    x = ordinary()
    for longs in ([1.0], [], [2.0, 4.0]):
        step = x.clone()
        for place, long in enumerate(longs):
            step[place] = long * LONG
        for part in step.split(20):
            tokens.add(part - b_dec, b_dec, ((part - b_dec).norm(dim=1) > 1000).float())
        tokens.end_step(count=True)
    torch.testing.assert_close(tokens.total, torch.cat([(0.9 + 6) * LONG, torch.tensor([0.9 + 2])]))


def test_a_step_that_does_not_count_leaves_no_trace() -> None:
    tokens = MassiveTokens(D, torch.device("cpu"))
    tokens.add(torch.full((1, D), torch.inf), torch.zeros(D), torch.ones(1))
    tokens.end_step(count=False)
    assert not tokens.some() and not tokens.total.any() and not tokens.step_total.any()


@pytest.mark.parametrize("length", [0.05, 3.0])
def test_rows_of_unit_length_reach_the_mean_although_the_code_was_too_short_or_too_long(length: float) -> None:
    torch.manual_seed(0)
    sae = make_sae(dtype=torch.float32)
    sae.set_decoder_norm_to_unit_norm()
    sae.encoder.weight.data.copy_(length * sae.W_dec)
    tokens = MassiveTokens(D, torch.device("cpu"))
    tokens.add(LONG.unsqueeze(0), torch.zeros(D), torch.ones(1))
    tokens.end_step(count=True)
    used = sae.encode(LONG.unsqueeze(0)).top_indices[0]
    before = sae.encoder.weight.detach().clone()
    for _ in range(20):
        weights = Weights.of(sae, torch.bfloat16)
        tokens.reconstruct_(weights, selection(sae.cfg), unit_norm=True)
        assert torch.equal(weights.W_enc_compute, sae.encoder.weight.bfloat16())
    assert (sae(LONG.unsqueeze(0)).recon - LONG).norm() / LONG.norm() < 0.01
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.num_latents))
    moved = (sae.encoder.weight - before).norm(dim=1)
    assert not moved.index_fill(0, used, 0).any()


def test_latents_that_are_nearly_used_are_kept_apart_so_that_rounding_exchanges_none() -> None:
    torch.manual_seed(0)
    sae = make_sae(dtype=torch.float32)
    sae.set_decoder_norm_to_unit_norm()
    direction = F.normalize(LONG, dim=0)
    near = torch.arange(30, 60)
    alike = torch.full((30,), 2.0)
    alike[10:15] = 2.02  # a little more than the others, so that it is not arbitrary which are used
    sae.encoder.weight.data[near] += direction * (alike - sae.encoder.weight[near] @ direction).unsqueeze(1)
    before = sae.encoder.weight.detach().clone()
    tokens = MassiveTokens(D, torch.device("cpu"))
    tokens.add(LONG.unsqueeze(0), torch.zeros(D), torch.ones(1))
    tokens.end_step(count=True)
    tokens.reconstruct_(Weights.of(sae, torch.bfloat16), selection(sae.cfg), unit_norm=True)
    pre_acts = (sae.encoder.weight @ (LONG - sae.b_dec) + sae.encoder.bias).sort(descending=True).values
    k = sae.cfg.k
    assert pre_acts[k] < 0.92 * pre_acts[k - 1]
    for factor in (0.5, 1.0, 1.2):
        x = factor * LONG.unsqueeze(0)
        used = sae.encode(x).top_indices.sort().values
        low = (x.bfloat16() @ sae.encoder.weight.bfloat16().T).float().topk(k).indices.sort().values
        assert torch.equal(used, low) and error_of_sae(sae, x[0]) < 0.02
    moved = (sae.encoder.weight - before).norm(dim=1)
    assert 0 < moved[near].max() < 0.4 and not moved[60:].any()


@pytest.mark.parametrize("unit_norm", [False, True])
def test_the_rows_that_the_mean_uses_add_up_to_it_and_others_stay(unit_norm: bool) -> None:
    torch.manual_seed(0)
    sae = make_sae(dtype=torch.float32)
    sae.set_decoder_norm_to_unit_norm()
    before = sae.W_dec.detach().clone()
    tokens = MassiveTokens(D, torch.device("cpu"))
    tokens.total.copy_(torch.cat([3 * LONG, torch.tensor([3.0])]))
    first = ((sae(LONG.unsqueeze(0)).recon - LONG).norm() / LONG.norm()).item()
    for _ in range(20 if unit_norm else 1):
        tokens.reconstruct_(Weights.of(sae, torch.float32), selection(sae.cfg), unit_norm=unit_norm)
    out = sae(LONG.unsqueeze(0))
    assert first > 0.3 > 1e-2 > ((out.recon - LONG).norm() / LONG.norm()).item()
    moved = (sae.W_dec.detach() - before).norm(dim=1) > 0
    assert set(moved.nonzero().flatten().tolist()) <= set(out.top_indices.flatten().tolist())
    if unit_norm:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)))


def test_a_massive_token_stays_reconstructed_while_ordinary_ones_train() -> None:
    without, with_ = learner_with(MASSIVE._replace(spare_massive=False)), learner_with(MASSIVE)
    for learner in (without, with_):
        train(learner, 40)
    assert error_of(with_, LONG) < 0.03 < error_of(without, LONG)


def test_without_massive_tokens_nothing_differs() -> None:
    without, with_ = learner_with(MASSIVE._replace(spare_massive=False)), learner_with(MASSIVE)
    for learner in (without, with_):
        torch.manual_seed(1)
        for _ in range(5):
            learner.accumulate(ordinary())
            learner.update(1e-2)
    for name, tensor in without.sae.state_dict().items():
        assert torch.equal(tensor, with_.sae.state_dict()[name])


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    learner = learner_with(MASSIVE)
    train(learner, 7)
    before = {name: tensor.clone() for name, tensor in learner.sae.state_dict().items()}
    remembered = learner.state_dict()["massive"].clone()
    learner.accumulate(torch.full((N, D), torch.inf))
    learner.update(1e-2)
    for name, tensor in learner.sae.state_dict().items():  # rows of unit length are divided by it once more
        torch.testing.assert_close(tensor, before[name], rtol=3e-7, atol=3e-7)
    assert torch.equal(learner.state_dict()["massive"], remembered) and remembered[-1] > 0


def test_a_restart_in_between_changes_nothing() -> None:
    through, first = learner_with(MASSIVE), learner_with(MASSIVE)
    train(first, 3)
    again = learner_with(MASSIVE)
    again.sae.load_state_dict(first.sae.state_dict())
    again.load_state_dict(first.state_dict())
    train(through, 3)
    for learner in (through, again):
        train(learner, 4, every=10**6)
    for name, tensor in through.sae.state_dict().items():
        assert torch.equal(tensor, again.sae.state_dict()[name])

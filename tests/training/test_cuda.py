"""On a GPU: the same results as on a CPU, and the same from run to run. Skipped where there is none."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import dense_gradients, make_sae
from tiny_models import VOCAB_SIZE, tiny_model
from whole_runs import stop_after

from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, ops
from sae.dictionary.gradients import Objective, Weights, add_auxk_gradients_, encoded, pullback
from sae.dictionary.losses import auxk_scale
from sae.dictionary.selection import selection
from sae.ops import eight_bit, naive
from sae.training import cuda_graphs as graphs
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe, firings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

D, LATENTS, K, TOKENS = 48, 512, 8, 256
RECIPES = ("default", "gao2024")


def activations(seed: int, tokens: int = TOKENS) -> torch.Tensor:
    """Few directions a token, a mean, and dimensions of unequal variance; a token of every hundred is far longer."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(200, D, generator=torch.Generator().manual_seed(99))
    code = torch.rand(tokens, 200, generator=generator).pow(30)
    x = code @ directions * torch.linspace(0.3, 2, D) + 1
    x[::100] *= 40
    return x


def learner_on(device: str, recipe: str, compute_dtype: torch.dtype, latents: int = LATENTS) -> SaeLearner:
    sae = Sae(D, SaeConfig(num_latents=latents, k=K), device=device, generator=torch.Generator().manual_seed(0))
    learner = SaeLearner(
        sae,
        tokens_per_step=TOKENS,
        auxk_alpha=1 / 32,
        dead_feature_threshold=5 * TOKENS,
        recipe=Recipe.named(recipe, 40, firings(TOKENS, K, latents)),
        compute_dtype=compute_dtype,
    )
    learner.initialise(activations(0, 1024).to(device))
    return learner


def train(learner: SaeLearner, first: int, end: int) -> None:
    for step in range(first, end):
        learner.accumulate(activations(step).to(learner.sae.device))
        learner.update(3e-3)


def everything(learner: SaeLearner) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in (learner.state_dict() | learner.sae.state_dict()).items()}


@pytest.mark.parametrize("num_dead", [0, 23, 60])
def test_gradients_are_the_oracles(num_dead: int) -> None:
    sae, dead = make_sae(dtype=torch.float32), torch.randperm(96)[:num_dead].sort().values
    x = torch.randn(37, 48) * 3 + 1
    oracle = dense_gradients(sae.double(), x.double(), scale=0.7, auxk_scale=0.2 * auxk_scale(num_dead, 24), dead=dead)
    sae = sae.float().to("cuda")
    weights = Weights.of(sae, torch.float32)
    code = encoded(weights, x.to("cuda"), selection(sae.cfg))
    grads, recon = pullback(weights, code, None, Objective(0.7))
    if num_dead:
        add_auxk_gradients_(grads, weights, recon, dead.to("cuda"), scale=0.2)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        found, expected = getattr(grads, name)[:].cpu().double(), getattr(oracle, name)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_in_float32_is_that_of_a_cpu(recipe: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        learner = learner_on(device, recipe, torch.float32)
        train(learner, 0, 4)
        found[device] = learner.sae.state_dict()
    for name, expected in found["cpu"].items():
        difference = (found["cuda"][name].cpu() - expected).norm() / expected.norm()
        assert difference < 1e-3, (name, difference)


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_in_bfloat16_learns_as_well(recipe: str) -> None:
    fvus = []
    for dtype in (torch.float32, torch.bfloat16):
        learner = learner_on("cuda", recipe, dtype)
        train(learner, 0, 40)
        learner.read_metrics()
        held_out = activations(1000, 2048).to("cuda")
        fvus.append(learner.sae(held_out).fvu.item())
    assert fvus[1] == pytest.approx(fvus[0], rel=0.05)
    assert fvus[0] < 0.9


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_is_bitwise_the_same_twice_and_when_continued(recipe: str) -> None:
    straight, again, stopped = (learner_on("cuda", recipe, torch.bfloat16) for _ in range(3))
    train(straight, 0, 12)
    train(again, 0, 12)
    train(stopped, 0, 7)
    continued = learner_on("cuda", recipe, torch.bfloat16)
    continued.sae.load_state_dict(stopped.sae.state_dict())
    continued.load_state_dict(everything(stopped))
    train(continued, 7, 12)
    expected = everything(straight)
    for other in (again, continued):
        assert all(torch.equal(t, expected[name]) for name, t in everything(other).items())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recorded_step_is_bitwise_what_it_was_recorded_from(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between parts of steps and steps of other sizes, which are not recorded, and with dead latents."""

    def run() -> tuple[dict[str, torch.Tensor], list[int]]:
        learner, dead = learner_on("cuda", recipe, torch.bfloat16), []
        for step in range(16):
            x = activations(step, TOKENS - 10 if step in (6, 11) else TOKENS).to("cuda")
            for part in [x, *x.split(100)] if step in (8, 9) else [x]:
                learner.accumulate(part)
            learner.update(3e-3 / (step + 1))
            dead.append(len(learner.dead.indices))
        return everything(learner), dead

    recorded, dead = run()
    monkeypatch.setattr(graphs, "WARM_UP", 10**9)
    plain, _ = run()
    assert max(dead) > 0 == min(dead)
    for name, expected in plain.items():
        assert torch.equal(recorded[name], expected), name


def test_recorded_steps_of_two_sizes_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger one comes when the smaller one is recorded, and is gone before the smaller one ends."""

    def run() -> dict[str, torch.Tensor]:
        small = learner_on("cuda", "default", torch.bfloat16)
        train(small, 0, 6)
        large = learner_on("cuda", "default", torch.bfloat16, latents=4 * LATENTS)
        for step in range(6, 14):
            train(small, step, step + 1)
            train(large, step, step + 1)
        found = everything(small) | {f"large.{name}": t for name, t in everything(large).items()}
        del large
        train(small, 14, 18)
        return found | {f"end.{name}": t for name, t in everything(small).items()}

    recorded = run()
    monkeypatch.setattr(graphs, "WARM_UP", 10**9)
    for name, expected in run().items():
        assert torch.equal(recorded[name], expected), name


def test_copies_in_low_precision_follow_every_step() -> None:
    learner = learner_on("cuda", "default", torch.bfloat16)
    train(learner, 0, 3)
    weights = learner._weights
    assert weights.W_enc_compute.dtype == weights.W_dec_compute.dtype == torch.bfloat16
    assert torch.equal(weights.W_enc_compute, learner.sae.encoder.weight.bfloat16())
    assert torch.equal(weights.W_dec_compute, learner.sae.W_dec.bfloat16())
    torch.testing.assert_close(learner.sae.W_dec.norm(dim=1), torch.ones(LATENTS, device="cuda"))


def test_a_step_that_is_not_finite_changes_nothing_and_is_told() -> None:
    learner = learner_on("cuda", "default", torch.bfloat16)
    train(learner, 0, 2)
    before = {name: t.clone() for name, t in learner.sae.state_dict().items()}
    broken = activations(2)
    broken[3, 4] = torch.nan
    learner.accumulate(broken.to("cuda"))
    learner.update(3e-3)
    assert all(torch.equal(t, before[name]) for name, t in learner.sae.state_dict().items())
    with pytest.raises(FloatingPointError):
        learner.read_metrics()


def test_candidates_in_fp8_are_nearly_all_of_the_largest() -> None:
    try:
        eight_bit.check_has_product(torch.device("cuda"))
    except ValueError as reason:
        pytest.skip(str(reason))
    x, W = activations(0).to("cuda"), torch.nn.functional.normalize(torch.randn(LATENTS, D, device="cuda"), dim=1)
    b = torch.randn(LATENTS, device="cuda") * 0.1
    assert eight_bit.recall(x, W, b, K) > 0.99
    values, indices = eight_bit.encode(x, W, b, partial(ops.topk, k=K), k=K)
    exact = (x.double() @ W.double().T + b).relu()
    torch.testing.assert_close(values.double(), exact.gather(1, indices), rtol=1e-4, atol=1e-3)
    assert naive.topk(x @ W.T + b, K)[0].sum().item() == pytest.approx(values.sum().item(), rel=1e-3)


def test_a_stopped_trainer_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    tokens = torch.randint(3, VOCAB_SIZE, (52, 16), generator=torch.Generator().manual_seed(5))

    def trainer(name: str, **options: Any) -> SaeTrainer:
        cfg = TrainConfig(
            SaeConfig(num_latents=64, k=4),
            save_dir=str(tmp_path / name),
            batch_size=4,
            layers=[0, 2],
            run_name="run",
            log_to_wandb=False,
            **options,
        )
        return SaeTrainer(cfg, tokens, tiny_model("gpt_neox").to("cuda"))

    trainer("straight").fit()
    stop_after(trainer("stopped"), 5)
    trainer("stopped", resume=True).fit()
    ends = [Sae.load_many(tmp_path / name / "run") for name in ("straight", "stopped")]
    for hookpoint, sae in ends[0].items():
        assert all(torch.equal(t, ends[1][hookpoint].state_dict()[name]) for name, t in sae.state_dict().items())

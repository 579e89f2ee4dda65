"""Trainers in threads of one process, and what they share."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_model
from torch import nn
from whole_runs import weights_only

from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, evaluate
from sae.lm import graft, harvest

pytestmark = pytest.mark.usefixtures("no_picture")


def train(folder: Path, model: nn.Module, seed: int, loss_fn: Any = "fvu") -> dict[str, bytes]:
    """The weights of a run on a layer of its own, and tokens of its own."""
    torch.set_num_threads(1)  # a thread's own
    tokens = torch.randint(3, VOCAB_SIZE, (36, 16), generator=torch.Generator().manual_seed(seed))
    cfg = TrainConfig(SaeConfig(num_latents=64, k=4), batch_size=2, layers=[seed], save_dir=str(folder),
                      run_name=f"run{seed}", log_to_wandb=False, lr=3e-3, loss_fn=loss_fn,
                      reconstruct_first=0.0 if loss_fn == "kl" else None)  # fmt: skip
    return weights_only(SaeTrainer(cfg, tokens, model).fit())


@pytest.mark.parametrize("loss_fn", ["fvu", "kl"])
def test_two_trainers_in_two_threads_on_one_model_learn_what_each_learns_alone(tmp_path: Path, loss_fn: str) -> None:
    model = tiny_model("gpt_neox", causal_lm=True)
    with ThreadPoolExecutor(2) as pool:
        alone = [pool.submit(train, tmp_path / "alone", model, seed, loss_fn).result() for seed in (0, 2)]
        both = [pool.submit(train, tmp_path / "both", model, seed, loss_fn) for seed in (0, 2)]
        assert [each.result() for each in both] == alone


def test_two_threads_measure_on_one_model_what_each_measures_alone() -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), torch.randint(3, VOCAB_SIZE, (24, 16))
    saes = {f"layers.{layer}": Sae(32, SaeConfig(num_latents=64, k=4)) for layer in (0, 2)}

    def measured(hookpoint: str) -> dict[str, float]:
        torch.set_num_threads(1)
        return evaluate(model, tokens, {hookpoint: saes[hookpoint]}, batch_size=2)[hookpoint].metrics

    with ThreadPoolExecutor(2) as pool:
        alone = [pool.submit(measured, hookpoint).result() for hookpoint in saes]
        both = [pool.submit(measured, hookpoint) for hookpoint in saes]
        assert [each.result() for each in both] == alone


def test_a_thread_that_harvests_waits_until_another_ones_graft_is_gone() -> None:
    model, tokens = tiny_model("gpt_neox"), torch.randint(3, VOCAB_SIZE, (2, 7))
    clean = harvest(model, tokens, ["layers.2"])["layers.2"]
    with ThreadPoolExecutor(1) as pool:
        with graft(model, {"layers.0": Sae(32, SaeConfig(num_latents=64, k=4))}):
            waiting = pool.submit(harvest, model, tokens, ["layers.2"])
            own = harvest(model, tokens, ["layers.2"])["layers.2"]
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert torch.equal(waiting.result()["layers.2"], clean) and not torch.equal(own, clean)


def test_a_graft_that_another_thread_ends_is_gone_for_all() -> None:
    """As a server does it that goes on with a generator in whatever thread is free."""
    model, tokens = tiny_model("gpt_neox"), torch.randint(3, VOCAB_SIZE, (2, 7))
    clean = harvest(model, tokens, ["layers.2"])["layers.2"]
    with ThreadPoolExecutor(1) as pool:
        grafted = graft(model, {"layers.0": Sae(32, SaeConfig(num_latents=64, k=4))})
        grafted.__enter__()
        assert pool.submit(grafted.__exit__, None, None, None).result() is not True
        assert pool.submit(harvest, model, tokens, ["layers.2"]).result(timeout=60)["layers.2"].equal(clean)
    assert harvest(model, tokens, ["layers.2"])["layers.2"].equal(clean)


def test_a_graft_that_stays_in_another_thread_is_an_error_and_not_a_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sae.lm.forward.PATIENCE", 0.1)
    model, tokens = tiny_model("gpt_neox"), torch.randint(3, VOCAB_SIZE, (2, 7))
    clean = harvest(model, tokens, ["layers.2"])["layers.2"]
    with ThreadPoolExecutor(1) as pool:
        with graft(model, {"layers.0": Sae(32, SaeConfig(num_latents=64, k=4))}):
            waiting = pool.submit(harvest, model, tokens, ["layers.2"])
            with pytest.raises(RuntimeError, match="grafted in another thread, for 0 seconds now; leave that graft"):
                waiting.result(timeout=60)
        assert pool.submit(harvest, model, tokens, ["layers.2"]).result()["layers.2"].equal(clean)

"""Whatever has a state_dict goes on from it, at every step, as if nothing had happened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from oracle import make_sae
from tiny_models import tiny_tokenizer
from torch import Tensor

from sae.activations.shuffle import ShuffleBuffer
from sae.activations.source import LiveActivations
from sae.data import MemmapTokens, TokenBatches, chunk_and_tokenize
from sae.training.adam import Adam
from sae.training.dead_latents import DeadLatents
from sae.training.learner import GAO2024, SaeLearner
from sae.training.recipe import Recipe

TOKENS = torch.randint(0, 300, (50, 8), generator=torch.Generator().manual_seed(2))
TEXTS = [f"number {number} of {number**2} texts about {number**3}" for number in range(90)]


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


def through_copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


class Case:
    """`make` gives the object anew, `step` moves it on and says what came out, `carry` is the way over the disk."""

    def __init__(self, make: Callable[[], Any], step: Callable[[Any, int], Any], carry: Callable[[Any], Any]) -> None:
        self.make, self.step, self.carry = make, step, carry


def rows() -> Any:
    return Dataset.from_dict({"input_ids": TOKENS.tolist()})


def texts() -> Any:
    return chunk_and_tokenize(Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), tiny_tokenizer(), max_seq_len=8)


class Twice:
    """Starts anew at each iter, and has no state_dict."""

    def __iter__(self) -> Any:
        return iter({"input_ids": row} for row in TOKENS.tolist())


def token_file(folder: Path) -> MemmapTokens:
    TOKENS.numpy().astype(np.uint16).tofile(folder / "tokens.bin")
    return MemmapTokens(folder / "tokens.bin", 8, 320)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda folder: TOKENS,
    "token file": token_file,
    "rows": lambda folder: rows(),
    "stream": lambda folder: rows().to_iterable_dataset(),
    "shards": lambda folder: rows().to_iterable_dataset(num_shards=4),
    "shuffled stream": lambda folder: rows().to_iterable_dataset().shuffle(seed=3, buffer_size=6),
    "text": lambda folder: texts(),
    "iterable": lambda folder: Twice(),
}


def batches(data: Any) -> TokenBatches:
    return TokenBatches(data, 2, seed=4, held_out=3, max_batches=9)


def live(data: Any) -> LiveActivations:
    return LiveActivations(batches(data), lambda ids: {"a": ids.float().unsqueeze(-1)}, exclude_positions=[0])


def trained(recipe: Recipe) -> SaeLearner:
    sae = make_sae(8, 32, 3, dtype=torch.float32)
    sae.b_dec.data.zero_()
    options: dict[str, Any] = {"auxk_alpha": 1 / 32, "dead_feature_threshold": 40, "compute_dtype": torch.float32}
    learner = SaeLearner(sae, tokens_per_step=16, recipe=recipe, **options)
    learner.initialise(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    return learner


class WithWeights:
    """A learner and its weights, which the checkpoint keeps in another file."""

    def __init__(self, recipe: Recipe = GAO2024) -> None:
        torch.manual_seed(0)
        self.learner = trained(recipe)

    def state_dict(self) -> dict[str, Tensor]:
        weights = {f"sae.{name}": t for name, t in self.learner.sae.state_dict().items()}
        return weights | self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.learner.sae.load_state_dict({n[4:]: t for n, t in state.items() if n.startswith("sae.")})
        self.learner.load_state_dict(state)

    def step(self, number: int) -> Any:
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(number))
        self.learner.accumulate(x[:9])
        self.learner.accumulate(x[9:])
        self.learner.update(1e-2)
        metrics = self.learner.read_metrics() if number % 3 == 2 else None
        return metrics, [t.clone() for t in self.learner.sae.state_dict().values()]


def dead_step(dead: DeadLatents, number: int) -> Any:
    fired = torch.rand(20, generator=torch.Generator().manual_seed(number)) < 0.2
    dead.update(fired, 5)
    return dead.indices.clone(), dead.tokens_since_fired.clone()


class AdamAlone:
    def __init__(self) -> None:
        self.weights = {"w": torch.ones(5)}
        self.adam = Adam(self.weights, beta2=0.999)

    def state_dict(self) -> dict[str, Tensor]:
        return self.adam.state_dict() | {"weights": self.weights["w"]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def step(self, number: int) -> Tensor:
        grad = torch.randn(5, generator=torch.Generator().manual_seed(number))
        self.adam.step({"w": grad}, 0.1, skip=torch.tensor(float(number == 3)))
        return self.weights["w"].clone()


def case_of(owner: str, source: str, folder: Path) -> Case:
    data = SOURCES[source]
    makers: dict[str, Callable[[], Any]] = {
        "batches": lambda: batches(data(folder)),
        "activations": lambda: live(data(folder)),
        "shuffled blocks": lambda: ShuffleBuffer(live(data(folder)), 3, seed=5),
        "blocks of one": lambda: ShuffleBuffer(live(data(folder)), 1, seed=5),
    }
    return Case(makers[owner], lambda made, number: next(made, None), through_json)


STATES = {
    "learner": Case(WithWeights, WithWeights.step, through_copies),
    "learner by the default recipe": Case(
        lambda: WithWeights(Recipe.named("default", 20, 1.5)), WithWeights.step, through_copies
    ),
    "dead latents": Case(lambda: DeadLatents(20, 12), dead_step, through_copies),
    "optimizer": Case(AdamAlone, AdamAlone.step, through_copies),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_goes_on_at_every_step(case: Case, steps: int) -> None:
    straight = case.make()
    expected, states = [], [case.carry(straight.state_dict())]
    for number in range(steps):
        expected.append(case.step(straight, number))
        states.append(case.carry(straight.state_dict()))
    assert any(not same(expected[0], other) for other in expected[1:])
    for start, state in enumerate(states):
        resumed = case.make()
        resumed.load_state_dict(state)
        assert same(case.carry(resumed.state_dict()), state), start
        for number in range(start, steps):
            assert same(case.step(resumed, number), expected[number]), (start, number)


@pytest.mark.parametrize(
    ("owner", "source"),
    [("shuffled blocks", source) for source in SOURCES]
    + [(owner, "shards") for owner in ("batches", "activations", "blocks of one")],
)
def test_a_source_goes_on_at_every_step(owner: str, source: str, tmp_path: Path) -> None:
    assert_goes_on_at_every_step(case_of(owner, source, tmp_path), 10)


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_training_goes_on_at_every_step(name: str) -> None:
    assert_goes_on_at_every_step(STATES[name], 14)

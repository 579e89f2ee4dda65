"""`sae selftest`: the features are what they are said to be, the numbers are those of a dense count, and it repeats."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sae.__main__
from sae import Sae, SaeConfig
from sae.activations.store import ActivationStore
from sae.activations.synthetic import CHILDREN, HAS_CHILD, ZIPF, Features, SyntheticStore
from sae.commands.parser import field_docs
from sae.commands.selftest import random_rows, recoveries
from sae.commands.table import COMMANDS
from sae.config import SelftestConfig, SelftestSaeConfig
from sae.evaluation.recovery import recovery

OPTIONS = {
    "num_features", "width", "max_tokens", "num_latents", "k", "selection", "inference_l0", "prefixes", "budgets",
    "normalize_decoder",
    "batch_size", "grad_acc_steps", "steps_per_batch", "lr", "lr_warmup_steps", "auxk_alpha", "dead_feature_threshold",
    "recipe", "seed", "out", "device", "encode_in_8bit",
}  # fmt: skip
SMALL = ["--num_features", "40", "--width", "24", "--max_tokens", "200000"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sae", "selftest", *arguments])
        return (sae.__main__.main(), *capsys.readouterr())

    return run_command


def dense(world: Features, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations and the size of every feature, (tokens, features)."""
    sample = world.sample(tokens, seed)
    return sample.x, torch.zeros(tokens, len(world.directions)).scatter_add_(1, sample.features, sample.acts)


# The features


def test_activations_are_the_mean_the_features_that_fire_and_a_little_noise() -> None:
    world = Features(100, 32, seed=3)
    x, sizes = dense(world, 4000, seed=5)
    rest = x - world.mean - sizes @ world.directions
    assert rest.std().item() == pytest.approx(0.02, rel=0.02) and rest.mean().abs() < 1e-3
    torch.testing.assert_close(world.directions.norm(dim=1), torch.ones(100))
    assert 1.8 < (sizes > 0).sum(1).float().mean() < 2.3


def test_a_child_fires_only_with_its_parent_and_never_with_its_siblings() -> None:
    world = Features(100, 32, seed=3)
    _, sizes = dense(world, 50_000, seed=5)
    fires, roots = sizes > 0, world.num_roots
    assert roots == 40 and 60 == len(world.directions) - roots
    parents = (world._first_child >= 0).nonzero().flatten()
    assert len(parents) == 20
    for parent in parents.tolist():
        children = fires[:, world._first_child[parent] :][:, :CHILDREN]
        assert children.any(0).all() and children.sum(1).max() == 1
        assert not (children.any(1) & ~fires[:, parent]).any()
        assert children.sum() / fires[:, parent].sum() == pytest.approx(HAS_CHILD, abs=0.06)


def test_frequencies_fall_by_zipfs_law_and_features_of_a_topic_go_together() -> None:
    world = Features(200, 32, seed=1)
    _, sizes = dense(world, 100_000, seed=2)
    fires = (sizes[:, : world.num_roots] > 0).double()
    often, ranks = fires.mean(0), torch.arange(1.0, 81.0).double()
    slope, _ = torch.linalg.lstsq(torch.stack([ranks.log(), torch.ones_like(ranks)], 1), often.log()[:, None]).solution
    assert slope.item() == pytest.approx(-ZIPF, abs=0.1)
    lift = (fires.T @ fires / len(fires)) / torch.outer(often, often)
    same = world.topics[:, None] == world.topics
    apart = ~torch.eye(80, dtype=torch.bool)
    assert lift[same & apart].median() > 1.3 > 1.05 > lift[~same].median()


def test_the_feed_is_one_and_its_batches_are_drawn_by_place_and_seed() -> None:
    cfg = SelftestConfig(num_features=40, width=16, max_tokens=10_000, batch_size=2)
    store, again = SyntheticStore(cfg, torch.device("cpu")), SyntheticStore(cfg, torch.device("cpu"))
    assert isinstance(store, ActivationStore)
    batches = [batch["synthetic"] for batch in store.source]
    assert len(batches) == 10_000 // 512 == store.num_batches and batches[0].shape == (512, 16)
    again.source.skip()
    position = again.source.state_dict()
    assert torch.equal(next(again.source)["synthetic"], batches[1])
    again.source.load_state_dict(position)
    assert torch.equal(next(again.source)["synthetic"], batches[1])
    other = SyntheticStore(SelftestConfig(num_features=40, width=16, seed=43), torch.device("cpu"))
    assert not torch.equal(other.features.directions, store.features.directions)
    (held_out,) = store.held_out_batches()
    assert not any(torch.equal(held_out.activations["synthetic"][:512], batch) for batch in batches)


# The numbers


def test_the_numbers_are_those_of_a_dense_count() -> None:
    world = Features(60, 24, seed=0)
    trained = Sae(24, SaeConfig(num_latents=50, k=3))
    with torch.no_grad():  # latents of features in another order, some of them wrong
        order = torch.randperm(60)[:50]
        trained.W_dec.copy_(world.directions[order] + 0.02 * torch.randn(50, 24))
        trained.encoder.weight.copy_(trained.W_dec)
        trained.b_dec.copy_(world.mean)
        trained.encoder.bias[7] = -100
    sample = world.sample(5000, seed=9)
    found = recovery(trained, world.directions, *sample)

    pre_acts = (sample.x - trained.b_dec) @ trained.encoder.weight.T + trained.encoder.bias
    code = pre_acts.relu() * torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(3).indices, 1.0)
    recon = (code @ trained.W_dec + trained.b_dec).detach()
    _, sizes = dense(world, 5000, seed=9)
    latent = {feature: place for place, feature in enumerate(order.tolist())}
    f1 = []
    for feature in (sizes > 0).any(0).nonzero().flatten().tolist():
        true = sizes[:, feature] > 0
        said = code[:, latent[feature]] > 0 if feature in latent else torch.zeros(5000, dtype=torch.bool)
        precision = (said & true).sum() / said.sum().clamp_min(1)
        recall = (said & true).sum() / true.sum()
        f1.append((2 * precision * recall / (precision + recall).clamp_min(1e-9)).item())
    assert found.f1 == pytest.approx(sum(f1) / len(f1), abs=1e-5)
    assert found.found == pytest.approx(sum(each > 0.5 for each in f1) / len(f1))
    cosines = torch.nn.functional.cosine_similarity(trained.W_dec, world.directions[order])
    assert found.mcc == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert found.dead == ((code > 0).sum(0) == 0).double().mean().item() >= 1 / 50
    assert found.l0 == pytest.approx((code > 0).sum().item() / 5000)
    errors, variance = (sample.x - recon).square().sum(), (sample.x - sample.x.mean(0)).square().sum()
    assert found.fvu == pytest.approx((errors / variance).item(), rel=1e-4)


def test_the_true_features_score_one_and_random_rows_do_not() -> None:
    world = Features(20, 200, seed=0)
    perfect = Sae(200, SaeConfig(num_latents=20, k=8))
    with torch.no_grad():
        perfect.W_dec.copy_(world.directions)
        perfect.encoder.weight.copy_(torch.linalg.pinv(world.directions).T)
        perfect.encoder.bias.fill_(-0.1 * 0.9)
        perfect.b_dec.copy_(world.mean)
    sample = world.sample(20_000, seed=1)
    found = recovery(perfect, world.directions, *sample)
    assert found.mcc == pytest.approx(1, abs=1e-6) and found.f1 > 0.97
    random = recovery(random_rows(perfect, 0), world.directions, *sample)
    assert random.mcc < 0.4 and random.f1 < 0.3


def test_training_finds_features_that_random_rows_do_not_and_the_same_seed_the_same_ones() -> None:
    cfg = SelftestConfig(
        sae=[SelftestSaeConfig(), SelftestSaeConfig(selection="batchtopk")],
        num_features=40, width=32, max_tokens=300_000,
    )  # fmt: skip
    found = recoveries(cfg, torch.device("cpu"))
    assert list(found) == ["topk", "batchtopk"]
    for trained, random, true in found.values():
        assert min(trained.f1, true.f1) > 0.45 > 0.35 > random.f1
        assert trained.mcc > 0.65 > 0.55 > random.mcc and true.mcc > 0.9999
        assert trained.dead < 0.3
    assert recoveries(cfg, torch.device("cpu")) == found


# The command


def test_the_command_prints_each_recipe_beside_random_rows_and_writes_what_was_asked(run: Callable[..., tuple]) -> None:
    status, out, err = run(*SMALL, "--k", "2", "3", "--out", "numbers.json")
    assert status == 0, err
    document = json.loads(Path("numbers.json").read_text())
    assert list(document["results"]) == ["k2", "k3"] and document["options"]["num_features"] == 40
    for label, rows in document["results"].items():
        (line,) = [line for line in out.splitlines() if line.strip().startswith(label)]
        assert f"{rows['trained']['f1']:.3f}" in line and f"{rows['trained']['mcc']:.3f}" in line
    assert (
        out.count("random rows") == out.count("true features") == 2
        and "40 known features in 24 dimensions, 200,000 tokens" in out
    )
    assert [path.name for path in Path().iterdir()] == ["numbers.json"]


BAD = [
    (["--num_features", "5"], "num_features must be between 20 and 100000, got 5"),
    (["--width", "1"], "width must be at least 2, got 1"),
    (["--k", "50", "--num_features", "40"], "k must be between 1 and num_latents=40, got 50"),
    (
        ["--max_tokens", "1000"],
        "max_tokens must be at least a step of batch_size × 256 × grad_acc_steps = 2,048",
    ),
    (["--max_tokens", "0"], "max_tokens must be greater than 0, got 0"),
    (["--out", "taken"], "out must be a new file, got taken"),
    (["--out", "new/../taken"], "out must be a new file, got new/../taken"),
    (["--layers", "3"], "there is no option --layers"),
    (["--device", "abacus"], "abacus"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[arguments[0] for arguments, _ in BAD])
def test_bad_input_is_one_line(run: Callable[..., tuple], arguments: list[str], words: str) -> None:
    Path("taken").touch()
    status, out, err = run(*arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
    assert status == 2 and out == "" and words in line
    assert [path.name for path in Path().iterdir()] == ["taken"]


def test_the_list_of_options_is_frozen_and_each_is_documented() -> None:
    offered = [name for names in COMMANDS["selftest"].groups.values() for name in names]
    assert len(offered) == len(OPTIONS) and set(offered) == OPTIONS
    docs = field_docs(SelftestConfig) | field_docs(SelftestSaeConfig)
    assert all(len(docs[name]) > 15 and docs[name].endswith(".") for name in OPTIONS)

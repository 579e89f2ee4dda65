"""Several processes: the data decide the result, not how many they are or who holds what. Nobody waits for ever."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_jobs
import torch
from rank_jobs import WIDTHS
from safetensors.torch import load_file
from several import Launcher, launcher
from test_cache import text

import sae.__main__
from sae import Sae, checkpoint
from sae.log import read_records
from sae.placement import place


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launcher(tmp_path_factory.mktemp("processes")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.report.training.draw_curves", lambda records, path: None)


def alone(folder: Path, name: str, **changes: Any) -> None:
    """The run in this process."""
    rank_jobs.train(str(folder), {name: changes})


def newest(run: Path) -> Path:
    return max(run.glob("step_*"), key=lambda path: int(path.name[5:]))


def assert_same_result(run: Path, other: Path) -> None:
    """Weights, state, position, metrics and evaluation are the same, but for rounding."""
    one, two = newest(run), newest(other)
    assert one.name == two.name and (run / "config.json").exists()
    positions = [json.loads((step / "trainer.json").read_text()) for step in (one, two)]
    for position in positions:
        del position["source"]["index"]  # of the permutation: where nothing is mixed, blocks are as many as ranks read
    assert positions[0] == positions[1]
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors")) != []
    for file in files:
        tensors, twins = load_file(one / file), load_file(two / file)
        assert tensors.keys() == twins.keys()
        for key, tensor in tensors.items():
            assert_close(tensor, twins[key], f"{file}: {key}")
    for record, twin in zip(records(run), records(other), strict=True):
        assert record == pytest.approx(twin, rel=2e-3)
    evaluations = [json.loads((path / "evaluation.json").read_text()) for path in (run, other)]
    assert list(evaluations[0]) == list(evaluations[1])
    for name, metrics in evaluations[0].items():
        assert metrics == pytest.approx(evaluations[1][name], rel=2e-3)


def assert_close(tensor: torch.Tensor, twin: torch.Tensor, what: str) -> None:
    assert tensor.dtype == twin.dtype and tensor.shape == twin.shape, what
    if "tokens" in what:
        assert torch.equal(tensor, twin), what
    else:
        difference = (tensor - twin).double().norm() / twin.double().norm().clamp_min(1e-12)
        assert difference < (1e-3 if "exp_avg" in what else 2e-4), f"{what}: {difference}"


def records(run: Path) -> list[dict[str, float]]:
    return [{key: v for key, v in r.items() if key != "tokens_per_second"} for r in read_records(run / "metrics.jsonl")]


TWO_RANKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"grad_acc_steps": 2, "micro_acc_steps": 3},
    "little_room": {"grad_acc_steps": 2, "fitting": 2},
    "no_room": {"grad_acc_steps": 2, "fitting": 0},
    "distributed": {"distribute_layers": True, "hookpoints": WIDTHS, "max_tokens": 512},
    "distributed_uneven": {"distribute_layers": True, "exclude_positions": [0], "exclude_tokens": list(range(3, 80))},
    "uneven": {"exclude_positions": [0], "exclude_tokens": list(range(3, 80))},
    "does_not_divide": {"sequences": 61},
    "stream": {"sequences": 61, "stream": True, "max_tokens": 10**6},
    "sharded": {"shard_latents": 2, "hookpoints": WIDTHS, "dead_feature_threshold": 100},
    "sweep": {"lr": [1e-3, 1e-2], "layers": [0, 2], "max_tokens": 512},
    "distributed_sweep": {"lr": [1e-3, 1e-2], "layers": [0, 2], "max_tokens": 512, "distribute_layers": True},
    "sharded_few_dead": {"shard_latents": 2, "layers": [1], "dead_feature_threshold": 300, "max_tokens": 512},
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "more_ranks_than_autoencoders": {"distribute_layers": True, "layers": [0, 1]},
    "mesh": {"shard_latents": 2, "layers": [0, 2], "dead_feature_threshold": 100},
    "distributed_and_sharded": {"shard_latents": 2, "distribute_layers": True, "layers": [0, 1, 2]},
}
LAYOUT = ("distribute_layers", "shard_latents")


@pytest.fixture(scope="module")
def two(processes: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    processes.succeed("train", 2, timeout=120, save_dir=str(folder), runs=TWO_RANKS)
    return folder


@pytest.fixture(scope="module")
def four(processes: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    processes.succeed("train", 4, timeout=120, save_dir=str(folder), runs=FOUR_RANKS)
    return folder


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_equal_one_with_twice_the_accumulation(tmp_path: Path, two: Path, name: str) -> None:
    changes = {option: value for option, value in TWO_RANKS[name].items() if option not in LAYOUT}
    alone(tmp_path, name, **changes | {"grad_acc_steps": 2 * changes.get("grad_acc_steps", 1)})
    assert_same_result(two / name, tmp_path / name)


@pytest.mark.parametrize("name", FOUR_RANKS)
def test_four_ranks_equal_one_with_four_times_the_accumulation(tmp_path: Path, four: Path, name: str) -> None:
    changes = {option: value for option, value in FOUR_RANKS[name].items() if option not in LAYOUT}
    alone(tmp_path, name, **changes | {"grad_acc_steps": 4})
    assert_same_result(four / name, tmp_path / name)


CACHED: dict[str, dict[str, Any]] = {
    "shuffled": {"cache": "shuffled"},
    "in_a_live_runs_order": {"cache": "in_order", "grad_acc_steps": 2},
    "distributed": {"cache": "in_order", "distribute_layers": True, "max_tokens": 512},
    "sharded": {"cache": "shuffled", "shard_latents": 2, "max_tokens": 512},
}


def test_two_ranks_train_from_one_cache_as_one_does_with_twice_the_accumulation(
    processes: Launcher, tmp_path: Path
) -> None:
    caches = {
        "shuffled": rank_jobs.write_cache(tmp_path / "a"),
        "in_order": rank_jobs.write_cache(tmp_path / "b", shuffle=False, exclude_positions=[0]),
    }
    runs = {name: {**changes, "cache": caches[changes["cache"]]} for name, changes in CACHED.items()}
    processes.succeed("train", 2, timeout=120, save_dir=str(tmp_path / "two"), runs=runs)
    for name, changes in runs.items():
        same = {option: value for option, value in changes.items() if option not in LAYOUT}
        alone(tmp_path / "one", name, **same | {"grad_acc_steps": 2 * changes.get("grad_acc_steps", 1)})
        assert_same_result(tmp_path / "two" / name, tmp_path / "one" / name)


# On another number of ranks, after a stop


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4), (4, 2), (2, 3)])
def test_resuming_on_another_number_of_ranks_equals_not_stopping(
    processes: Launcher, tmp_path: Path, before: int, after: int
) -> None:
    options: dict[str, Any] = {"grad_acc_steps": 4 // before if before < 4 else 1, "layers": [0, 2]}
    begin = {"run": options | {"stop_after": 2}}
    rest = {"run": options | {"resume": True, "distribute_layers": True}}
    for ranks, runs in ((before, begin), (after, rest)):
        if ranks == 1:
            rank_jobs.train(str(tmp_path), runs)
        else:
            processes.succeed("train", ranks, save_dir=str(tmp_path), runs=runs)
    alone(tmp_path, "straight", **options | {"grad_acc_steps": 4})
    assert (tmp_path / "run" / "step_2" / "manifest.json").is_file()
    assert_same_result(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("layout", [{}, {"distribute_layers": True}, {"shard_latents": 2}], ids=str)
def test_resuming_on_the_same_number_of_ranks_is_bit_for_bit(
    processes: Launcher, tmp_path: Path, layout: dict[str, Any]
) -> None:
    options = {"layers": [0, 2], **layout}
    processes.succeed(
        "train", 2, save_dir=str(tmp_path), runs={"straight": options, "run": {**options, "stop_after": 3}}
    )
    processes.succeed("train", 2, save_dir=str(tmp_path), runs={"run": {**options, "resume": True}})
    straight, resumed = newest(tmp_path / "straight"), newest(tmp_path / "run")
    files = sorted(path.relative_to(straight) for path in straight.rglob("*.safetensors"))
    assert files and all((straight / file).read_bytes() == (resumed / file).read_bytes() for file in files)
    assert records(tmp_path / "straight") == records(tmp_path / "run")


def test_a_sharded_checkpoint_is_the_same_files_and_loads_in_one_process(four: Path) -> None:
    saes = Sae.load_many(four / "mesh")
    assert {one.num_latents for one in saes.values()} == {128}
    names = ("adam.W_dec.exp_avg", "adam.encoder.bias.exp_avg_sq", "dead.tokens_since_fired")
    state = load_file(newest(four / "mesh") / "layers.0" / "state.safetensors")
    assert {len(state[name]) for name in names} == {128}


# What is sent


def test_the_bytes_sent_are_those_of_the_formulas(two: Path) -> None:
    """docs/scaling.md, "Traffic": d_in 32, 128 latents, k 4, steps of 2 batches of 4 × 8 tokens in float32.

    The last two runs are one block of the shuffle, which they look at twice before they train on it: for
    the mean, and, at its first 4096 tokens, for the length of W_enc.
    """
    d_in, latents, k, tokens = 32, 128, 4, 32
    for rank in range(2):
        sent = {name: json.loads((two / name / f"sent_{rank}.json").read_text()) for name in TWO_RANKS}
        replicas = 8 * d_in * latents + 12 * latents + 12 * d_in + 48
        first = 8 * d_in + 24
        plain = sent["plain"]
        assert plain == {"steps": plain["steps"], "replicas": 3 * (plain["steps"] * replicas + first)}
        assert sent["distributed"] == {"steps": 8, "exchange": 4 * tokens * elsewhere_of(rank) * (8 + 8 + 8)}
        sharded = sent["sharded_few_dead"]
        assert sharded.keys() == {"steps", "exchange", "shards"}
        assert sharded["exchange"] == 4 * tokens * d_in * (8 + 8 + 8)
        code, recon = 2 * tokens * k * 4, 2 * tokens * d_in * 4
        # each step one micro-batch; AuxK, once latents are dead, sends b_dec's gradient and its reconstruction
        small = 4 * d_in + 8
        first = 8 * (code + recon)
        assert 8 * (code + recon + small) <= sharded["shards"] - first <= 8 * (code + 2 * recon + small + 4 * d_in)


def elsewhere_of(rank: int) -> int:
    """The widths, together, of the hookpoints that the other rank trains on."""
    widths = {name: 48 if name.endswith("4h") else 32 for name in WIDTHS}
    placement = place(widths, {name: name for name in widths}, size=2, shards=1, distribute=True)
    return sum(width for name, width in widths.items() if not placement.holds(rank, name))


# What is measured


def numbers(document: Any, place: str = "") -> dict[str, Any]:
    """The numbers of a JSON document, by their place in it; NaN for null."""
    if not isinstance(document, dict | list):
        return {place: math.nan if document is None else document}
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    return {at: value for key, part in pairs for at, value in numbers(part, f"{place}/{key}").items()}


def test_several_ranks_measure_what_one_does(
    processes: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks with two batches each; and four, of which one has nothing to measure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.lm.compute_dtype", lambda device: torch.float32)
    monkeypatch.setattr("sae.report.evaluation.draw_all", lambda evaluation, out: {})
    model, tokens = text(tmp_path)
    options = ["--ctx_len", "16", "--layers", "0", "2", "--exclude_positions", "0", "--batch_size", "8", "--lr", "0.01"]
    options += ["--expansion_factor", "4", "--k", "4", "--no_log_to_wandb", "--save_dir", "runs", "--run_name", "run"]
    assert sae.__main__.main([model, tokens, *options]) == 0
    for ranks, few in ((2, ["--batch_size", "2"]), (4, ["--max_tokens", "80"])):
        arguments = ["eval", "runs/run", "--compare", "runs/run/step_14/layers.2", *few]
        assert sae.__main__.main([*arguments, "--out", f"one_{ranks}"]) == 0
        order = [*arguments, "--out", f"several_{ranks}"]
        processes.succeed("command", ranks, folder=str(tmp_path), arguments=order)
        one, several = (json.loads(Path(f"{who}_{ranks}/eval.json").read_text()) for who in ("one", "several"))
        assert one["data"] == several["data"] and one["data"]["sequences"] == (8 if ranks == 2 else 5)
        assert one["about"]["tokens"] == several["about"]["tokens"]
        for part in ("results", "variance"):
            assert numbers(several[part]) == pytest.approx(numbers(one[part]), rel=1e-4, abs=1e-6, nan_ok=True)


def test_a_rank_that_cannot_measure_ends_all(processes: Launcher) -> None:
    outcome = processes.run("measure_with_a_nan", 2)
    assert outcome.codes == [1, 1] and max(outcome.seconds) < 30
    assert "PeerFailed: another process failed" in outcome.errors[0]
    assert "NonFiniteError: layers.1: an activation is not finite" in outcome.errors[1]


# What ends


def test_a_rank_that_is_killed_ends_the_others_at_once_and_the_last_checkpoint_is_good(
    processes: Launcher, tmp_path: Path
) -> None:
    outcome = processes.run("die", 4, save_dir=str(tmp_path), step=3)
    assert outcome.codes == [1, 1, 1, -9] and max(outcome.seconds) < 30
    assert "PeerFailed: the connection to another process broke" in outcome.errors[0]
    assert "not saved; the last checkpoint is" in outcome.errors[0]
    assert checkpoint.newest_undamaged(tmp_path / "run")[0] == tmp_path / "run" / "step_2"


def test_an_activation_that_is_not_finite_on_one_rank_stops_all_and_the_last_good_state_is_saved(
    processes: Launcher, tmp_path: Path
) -> None:
    outcome = processes.run("poison", 2, save_dir=str(tmp_path), batch=21)
    assert outcome.codes == [1, 1] and max(outcome.seconds) < 30
    assert "NonFiniteError: layers.0: an activation is not finite in batch 21" in outcome.errors[1]
    assert "PeerFailed: another process failed" in outcome.errors[0]
    saved = checkpoint.newest_undamaged(tmp_path / "run")[0]
    assert saved is not None and f"the state before is saved in {saved}" in outcome.errors[1]
    assert 0 < int(saved.name[5:]) <= 10

"""Several processes: the data decide the result, not how many they are or who holds what. Nobody waits for ever."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_jobs
import torch
from command_inputs import text
from rank_jobs import WIDTHS
from safetensors.torch import load_file
from same_result import assert_same_result, newest, records
from several import Launcher, launcher

import sae.__main__
from sae import Sae, TrainConfig
from sae.parallel.placement import placement_of
from sae.parallel.world import World
from sae.runs import checkpoint
from sae.training.launch import check_processes

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launcher(tmp_path_factory.mktemp("processes")) as found:
        yield found


def alone(folder: Path, name: str, **changes: Any) -> None:
    """The run in this process."""
    rank_jobs.train(str(folder), {name: changes})


TWO_RANKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"grad_acc_steps": 2, "micro_acc_steps": 3},
    "little_room": {"grad_acc_steps": 2, "fitting": 2},
    "no_room": {"grad_acc_steps": 2, "fitting": 0},
    "distributed": {"distribute_layers": True, "hookpoints": WIDTHS, "max_tokens": 512},
    "distributed_uneven": {"distribute_layers": True, "exclude_positions": [0], "exclude_tokens": list(range(3, 80))},
    "massive": {"massive": 2.0},
    "massive_sharded": {"massive": 2.0, "shard_latents": 2, "layers": [0, 1]},
    "uneven": {"exclude_positions": [0], "exclude_tokens": list(range(3, 80))},
    "does_not_divide": {"sequences": 61},
    "several_steps": {"sequences": 61, "grad_acc_steps": 2, "steps_per_batch": 2, "exclude_positions": [0]},
    "stream": {"sequences": 61, "stream": True, "max_tokens": 10**6},
    "sweep": {"lr": [1e-3, 1e-2], "layers": [0, 2], "max_tokens": 512},
    "distributed_sweep": {"lr": [1e-3, 1e-2], "layers": [0, 2], "max_tokens": 512, "distribute_layers": True},
    "sharded": {"shard_latents": 2, "hookpoints": WIDTHS, "dead_feature_threshold": 64},
    "sharded_few_dead": {"shard_latents": 2, "layers": [1], "dead_feature_threshold": 128, "max_tokens": 512},
    "sharded_batchtopk": {"shard_latents": 2, "layers": [0, 2], "selection": "batchtopk", "max_tokens": 512},
    "sharded_groupmax": {"shard_latents": 2, "layers": [0, 2], "selection": "groupmax", "massive": 2.0},
    "sharded_groups_over_the_border": {
        "shard_latents": 2, "layers": [1], "selection": "groupmax", "num_latents": 138, "k": 3, "max_tokens": 512,
    },
    "sharded_prefixes": {"shard_latents": 2, "hookpoints": WIDTHS, "prefixes": [16, 40, 100], "max_tokens": 512},
    "sharded_prefixes_batchtopk": {
        "shard_latents": 2, "layers": [0], "prefixes": [16, 72], "selection": "batchtopk", "crosscode": True,
    },
    "sharded_budgets": {
        "shard_latents": 2, "hookpoints": WIDTHS, "budgets": [1, 2, 5], "k": 8, "dead_feature_threshold": 64,
    },
    "sharded_transcoders": {
        "shard_latents": 2, "hookpoints": ["layers.0.mlp", "layers.1->layers.2.mlp.dense_h_to_4h"], "transcode": True,
        "dead_feature_threshold": 64,
    },
    "sharded_skip_transcoders": {
        "shard_latents": 2, "hookpoints": ["layers.*.mlp"], "transcode": True, "skip_connection": True,
        "prefixes": [24], "micro_acc_steps": 3,
    },
    "crosscoder": {"crosscode": True, "layers": [0, 2], "micro_acc_steps": 3},
    "batchtopk": {"selection": "batchtopk", "layers": [0, 2]},
    "crosscoder_batchtopk": {"crosscode": True, "selection": "batchtopk", "layers": [0, 2]},
    "two_models": {"crosscode": True, "two_models": True, "layers": [0, 2], "max_tokens": 512},
    "cross_layer": {"cross_layer": True, "hookpoints": ["layers.*.mlp"], "micro_acc_steps": 3, "max_tokens": 512},
    "cross_layer_tied": {"cross_layer": True, "tie_decoders": True, "hookpoints": ["layers.*.mlp"], "max_tokens": 512},
    "cross_layer_distributed": {
        "cross_layer": True, "hookpoints": ["layers.*.mlp"], "distribute_layers": True, "max_tokens": 512,
        "micro_acc_steps": 3,
    },
    "cross_layer_tied_distributed": {
        "cross_layer": True, "tie_decoders": True, "hookpoints": ["layers.*.mlp"], "distribute_layers": True,
        "max_tokens": 512,
    },
    "cross_layer_tied_by_target": {
        "cross_layer": True, "tie_decoders": "target", "hookpoints": ["layers.*.mlp"], "micro_acc_steps": 3,
        "max_tokens": 512,
    },
    "cross_layer_tied_by_target_distributed": {
        "cross_layer": True, "tie_decoders": "target", "hookpoints": ["layers.*.mlp"], "distribute_layers": True,
        "max_tokens": 512,
    },
    "cross_layer_sharded": {
        "cross_layer": True, "shard_latents": 2, "hookpoints": ["layers.*.mlp"], "micro_acc_steps": 3,
        "dead_feature_threshold": 64,
    },
    "cross_layer_sharded_none_dead": {
        "cross_layer": True, "shard_latents": 2, "hookpoints": ["layers.*.mlp"], "max_tokens": 512,
        "dead_feature_threshold": 10**6,
    },
    "cross_layer_sharded_prefixes_batchtopk": {
        "cross_layer": True, "shard_latents": 2, "hookpoints": ["layers.*.mlp"], "prefixes": [24, 80],
        "selection": "batchtopk", "skip_connection": True, "max_tokens": 512,
    },
    "cross_layer_tied_sharded": {
        "cross_layer": True, "shard_latents": 2, "tie_decoders": True, "hookpoints": ["layers.*.mlp"],
        "budgets": [1, 3], "skip_connection": True, "dead_feature_threshold": 64,
    },
    "crosscoder_sharded": {"crosscode": True, "shard_latents": 2, "hookpoints": WIDTHS, "max_tokens": 512},
    "crosscoder_distributed": {"crosscode": True, "distribute_layers": True, "lr": [1e-3, 1e-2], "max_tokens": 512},
    "kl": {"loss_fn": "kl", "layers": [0, 2], "exclude_positions": [0], "exclude_tokens": list(range(3, 80))},
    "ce": {"loss_fn": "ce", "layers": [1], "sequences": 61, "stream": True, "max_tokens": 10**6, "grad_acc_steps": 2,
           "micro_acc_steps": 3},
}  # fmt: skip
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "more_ranks_than_autoencoders": {"distribute_layers": True, "layers": [0, 1]},
    "mesh": {"shard_latents": 2, "layers": [0, 2], "dead_feature_threshold": 100},
    "distributed_and_sharded": {"shard_latents": 2, "distribute_layers": True, "layers": [0, 1, 2]},
    "cross_layer_mesh": {
        "cross_layer": True,
        "shard_latents": 2,
        "hookpoints": ["layers.*.mlp"],
        "max_tokens": 512,
    },
    "cross_layer_distributed_and_sharded": {
        "cross_layer": True,
        "shard_latents": 2,
        "distribute_layers": True,
        "tie_decoders": True,
        "hookpoints": ["layers.*.mlp"],
        "max_tokens": 512,
        "skip_connection": True,
    },
    "several_steps": {"steps_per_batch": 4, "micro_acc_steps": 2, "layers": [0, 1]},
    "kl": {"loss_fn": "kl", "layers": [1]},
}
LAYOUT = ("distribute_layers", "shard_latents")
DISTRIBUTED = {"distribute_layers": True}


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


@pytest.mark.parametrize("layout", [{"distribute_layers": True}, {"shard_latents": 2}], ids=str)
def test_autoencoders_to_start_from_come_to_who_trains_them(
    processes: Launcher, tmp_path: Path, two: Path, layout: dict[str, Any]
) -> None:
    source = shutil.copytree(two / "plain", tmp_path / "source")
    options: dict[str, Any] = {"finetune": str(source), "max_tokens": 512}
    processes.succeed("train", 2, save_dir=str(tmp_path / "two"), runs={"run": options | layout})
    options["grad_acc_steps"] = 2
    alone(tmp_path, "alone", **options)
    assert_same_result(tmp_path / "two" / "run", tmp_path / "alone")
    rank_jobs.train(str(tmp_path), {"stopped": options | {"stop_after": 2}})
    shutil.rmtree(source)  # what is resumed has them
    processes.succeed("train", 2, save_dir=str(tmp_path), runs={"stopped": options | layout | {"resume": True}})
    assert_same_result(tmp_path / "stopped", tmp_path / "alone")


# On another number of ranks, after a stop


@pytest.mark.parametrize(("before", "after", "loss_fn"), [(2, 1, "fvu"), (1, 4, "fvu"), (4, 2, "fvu"), (2, 3, "fvu"),
                                                          (2, 3, "kl")])  # fmt: skip
def test_resuming_on_another_number_of_ranks_equals_not_stopping(
    processes: Launcher, tmp_path: Path, before: int, after: int, loss_fn: str
) -> None:
    options: dict[str, Any] = {"grad_acc_steps": 4 // before if before < 4 else 1, "layers": [0, 2], "loss_fn": loss_fn}
    begin = {"run": options | {"stop_after": 2}}
    rest = {"run": options | {"resume": True, "distribute_layers": loss_fn == "fvu"}}
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


WIDTH_OF = {name: 48 if name.endswith("4h") else 32 for name in WIDTHS}
STEPS, TOKENS = 8, 32
"""Of the short runs: steps, and tokens that one rank reads in each: 4 sequences of 8, in float32."""


@pytest.mark.parametrize(("name", "expected"), [("massive", True), ("massive_sharded", True), ("plain", False)])
def test_massive_tokens_are_there_where_they_are_to_be_the_same(two: Path, name: str, expected: bool) -> None:
    states = [load_file(path)["massive"] for path in newest(two / name).rglob("state.safetensors")]
    assert len(states) >= 2 and all((state[-1] > 0) == expected for state in states)


def sent_by(rank: int, run: Path) -> dict[str, int]:
    return json.loads((run / f"sent_{rank}.json").read_text())


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize(("name", "autoencoders"), [("plain", 3), ("accumulated", 3), ("ce", 1)])
def test_the_bytes_of_averaged_gradients_are_those_of_the_formula_however_much_is_accumulated(
    two: Path, name: str, autoencoders: int, rank: int
) -> None:
    """docs/scaling.md, "Traffic": d_in 32, 128 latents; and, end to end, the loss and its tokens."""
    sent, loss = sent_by(rank, two / name), 16 if name == "ce" else 0
    replicas, first = 8 * 32 * 128 + 12 * 128 + 16 * 32 + 52, 72 * 32 + 132
    steps = sent.pop("steps")
    assert steps >= 3 and sent == {"replicas": autoencoders * (steps * replicas + first) + steps * loss}


@pytest.mark.parametrize("rank", range(4))
def test_the_bytes_of_averaged_gradients_of_a_part_are_those_of_the_formula(four: Path, rank: int) -> None:
    sent, half = sent_by(rank, four / "mesh"), 128 // 2
    replicas, first = 8 * 32 * half + 12 * half + 16 * 32 + 52, 72 * 32 + 132
    assert sent["replicas"] == 2 * (sent["steps"] * replicas + first)


@pytest.mark.parametrize("rank", range(2))
def test_the_bytes_of_distributed_autoencoders_are_those_of_the_formula(two: Path, rank: int) -> None:
    """The run is one block of the shuffle, which it looks at twice before it trains on it: for the mean, and, at its
    first 4096 tokens, for the length of W_enc."""
    assert sent_by(rank, two / "distributed") == {
        "steps": STEPS,
        "exchange": 4 * TOKENS * elsewhere_of(rank) * 3 * STEPS,
    }


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", ["sharded_few_dead", "sharded"])
def test_the_bytes_of_split_latents_are_those_of_the_formula(two: Path, name: str, rank: int) -> None:
    """Some latents are dead, and more than d_in / 2, in some steps: the records say in which."""
    sent, found = sent_by(rank, two / name), records(two / name)
    widths = {"layers.1": 32} if name == "sharded_few_dead" else WIDTH_OF
    steps, expected = sent["steps"], 0
    for hookpoint, d_in in widths.items():
        dead = [0, *(round(128 * record[f"{hookpoint}/dead_fraction"]) for record in found[:-1])]
        assert any(dead) and (name == "sharded") == any(count > d_in // 2 for count in dead)
        code, recon = 2 * TOKENS * 4 * 4, 2 * TOKENS * 4 * d_in
        # a block of the shuffle for the length of W_enc, every step, and what is held out, a step's worth of tokens
        expected += (8 + steps + 1) * (code + recon) + steps * (4 * d_in + 8) + 24
        followed = d_in // 4  # by the optimizer: of each matrix their products, lengths, and its length
        expected += steps * 2 * 4 * (d_in * followed + followed + 1)
        expected += sum((count > 0) * (recon + 4 * d_in) for count in dead)
        expected += sum((count > d_in // 2) * 2 * TOKENS * 2 * d_in for count in dead)
    assert sent["shards"] == expected
    assert sent["exchange"] == 4 * TOKENS * sum(widths.values()) * (16 + steps)


@pytest.mark.parametrize("rank", range(2))
def test_the_bytes_of_a_split_cross_layer_transcoder_are_those_of_the_formula(two: Path, rank: int) -> None:
    """Three modules of width 32, of which each writes its own output and those of the later ones."""
    sent, code = sent_by(rank, two / "cross_layer_sharded_none_dead"), 2 * TOKENS * 4 * 4
    expected = 0
    for written in (96, 64, 32):
        # a block of the shuffle for the start, every step, and what is held out
        expected += (2 * 8 + STEPS + 1) * code + (8 + STEPS + 1) * 2 * TOKENS * 4 * written
        expected += 8 * STEPS + 24 + 4 * 64
        expected += STEPS * sum(4 * (width * (width // 4) + width // 4 + 1) for width in (32, written))
    assert sent["shards"] == expected and sent["steps"] == STEPS


def elsewhere_of(rank: int) -> int:
    """The widths, together, of the hookpoints that the other rank trains on."""
    placement = placement_of(WIDTH_OF, {name: name for name in WIDTHS}, size=2, shards=1, distribute=True)
    return sum(width for name, width in WIDTH_OF.items() if not placement.holds(rank, name))


# What goes on meanwhile


def test_the_gradients_of_an_autoencoder_are_on_their_way_while_the_next_one_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "has_replicas", True)
    trainer, happened = rank_jobs.make_trainer(tmp_path, layers=[0, 1], grad_acc_steps=2), list[str]()
    trainer.initialise()

    def told(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (happened.append(what), function(*arguments))[1]

    for layer, learner in enumerate(trainer.learners.values()):
        for name in ("accumulate", "sums", "update"):
            setattr(learner, name, told(f"{name} {layer}", getattr(learner, name)))
    trainer.world.add_up = lambda sums: told("wait", lambda: None)  # type: ignore[method-assign, assignment]
    trainer.train_step()
    first, last = ["accumulate 0", "accumulate 1"], ["accumulate 0", "sums 0", "accumulate 1", "sums 1"]
    assert happened == [*first, *last, "wait", "update 0", "wait", "update 1"]


def test_a_sum_is_waited_for_only_when_it_is_needed(processes: Launcher, tmp_path: Path) -> None:
    processes.succeed("add_up_late", 2, save_dir=str(tmp_path), seconds=1.0)
    first = json.loads((tmp_path / "sum_0.json").read_text())
    assert first["went_on"] < 0.6 < 0.9 < first["had_it"] and first["sum"] == [3.0] * 3


def test_one_process_prepares_the_data_and_the_others_wait_with_a_message(processes: Launcher, tmp_path: Path) -> None:
    message = "the other processes wait until the first one has prepared the data, 12 hours at most"
    outcome = processes.run("prepare", 3, save_dir=str(tmp_path))
    assert outcome.codes == [0, 0, 0] and [message in error for error in outcome.errors] == [False, True, False]
    (tmp_path / "prepared").unlink()
    outcome = processes.run("prepare", 3, save_dir=str(tmp_path), fail=True)
    assert outcome.codes == [1, 1, 1] and max(outcome.seconds) < 30
    assert "there are no data" in outcome.errors[0]
    assert all("PeerFailed: the connection to another process broke" in error for error in outcome.errors[1:])


@pytest.mark.slow
def test_who_waits_for_a_checkpoint_to_be_written_waits_longer_than_for_a_step(
    processes: Launcher, tmp_path: Path
) -> None:
    processes.succeed("save_slowly", 2, save_dir=str(tmp_path), patience=5, seconds=8)
    assert checkpoint.newest_undamaged(tmp_path / "run")[0] == tmp_path / "run" / "step_2"


# What needs all autoencoders


@pytest.mark.parametrize("layout", [DISTRIBUTED, {"shard_latents": 2}], ids=str)
@pytest.mark.parametrize(("option", "value", "default"), [("loss_fn", "kl", "fvu"), ("eval_every", 5, "0")])
def test_what_grafts_all_autoencoders_is_refused_where_no_process_holds_all(
    layout: dict[str, Any], option: str, value: Any, default: str
) -> None:
    rule = f"{option} must be {default} where no process holds all autoencoders, got {value}; leave out --{option}, or "
    with pytest.raises(ValueError, match=rule):
        check_processes(TrainConfig(**{option: value}, **layout), 2)
    check_processes(TrainConfig(**{option: value}), 2)
    check_processes(TrainConfig(**{option: value}, **DISTRIBUTED), 1)


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


@pytest.mark.parametrize("what", ["model", "held_out"])
def test_ranks_with_other_data_or_another_model_do_not_begin(processes: Launcher, tmp_path: Path, what: str) -> None:
    outcome = processes.run("differ", 2, save_dir=str(tmp_path), what=what)
    assert outcome.codes == [1, 1] and not any(tmp_path.iterdir())
    assert all(
        f"ValueError: all processes must read the same model and data, but {what} of" in e for e in outcome.errors
    )


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

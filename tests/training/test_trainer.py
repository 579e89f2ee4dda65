"""The trainer on whole runs of tiny models: what it writes is the same however the work is cut, stopped or watched."""

import contextlib
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from oracle import dense_code
from safetensors.torch import load_file
from tiny_models import CTX_LEN, FAMILIES, VOCAB_SIZE, save_tiny, tiny_model
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from whole_runs import SEQ, evaluation, losses, make_tokens, weights, weights_only

import sae.lm
from sae import Sae, SaeConfig, SaeTrainer, TrainConfig
from sae.activations.live import LiveStore
from sae.data import MemmapTokens
from sae.data.prefetch import ReadAhead
from sae.dictionary.gradients import Gradients
from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.ops import eight_bit
from sae.ops.segments import SegmentRows
from sae.report.training import read_records
from sae.runs import checkpoint, log
from sae.runs.stop_signals import STOPPING
from sae.training import progress
from sae.training.run_plan import RunPlan, report_dead_after

pytestmark = pytest.mark.usefixtures("no_picture")

LAYERS = {"gpt_neox": "layers", "gpt2": "h", "llama": "layers", "gemma3": "layers", "bert": "encoder.layer"}


Make = Callable[..., SaeTrainer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A trainer of 128 latents per block on 44 sequences, in steps of 4, that writes into the test's folder."""

    def make_trainer(data: Any = None, model: Any = None, sae: SaeConfig | None = None, **changes: Any) -> SaeTrainer:
        options = {"batch_size": 4, "save_dir": str(tmp_path), "log_to_wandb": False, "lr": 3e-3} | changes
        cfg = TrainConfig(sae or SaeConfig(expansion_factor=4, k=4), **options)
        return SaeTrainer(cfg, make_tokens() if data is None else data, model or tiny_model("gpt_neox"))

    return make_trainer


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoders compute in float32, so that rounding is small."""
    monkeypatch.setattr(sae.lm, "compute_dtype", lambda device: torch.float32)


def held_out(trainer: SaeTrainer) -> Tensor:
    return torch.cat(list(trainer.store.tokens.held_out_batches()))


def test_the_look_at_held_out_tokens_is_short_and_takes_more_where_these_are_all_excluded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.activations.live.LOOK", 2 * SEQ)
    trainer = make()
    whole = next(trainer.store.held_out_batches())
    few = trainer.store.first_held_out()
    assert torch.equal(few.tokens, whole.tokens[:2]) and len(whole.tokens) == 4
    for name, acts in few.activations.items():
        torch.testing.assert_close(acts, whole.activations[name][: 2 * SEQ], rtol=1e-4, atol=1e-4)
    tokens = make_tokens()
    first = held_out(trainer)[:2].flatten().unique().tolist()
    other = [row for row in held_out(trainer)[2:4].flatten().tolist() if row not in first]
    assert other, "some token stands in the later sequences alone"
    excluding = make(tokens, exclude_tokens=first)
    assert len(excluding.store.first_held_out().kept) == len(next(excluding.store.held_out_batches()).kept) > 0


def dense_fvu(one: Sae, x: Tensor) -> float:
    """FVU of the activations x, by the dense formula in float64."""
    x, (W_enc, b_enc, W_dec, b_dec) = x.double(), (p.detach().double() for p in parameters(one))
    recon = dense_code(x, W_enc, b_enc, b_dec, one.cfg.k) @ W_dec + b_dec
    return ((x - recon).square().sum() / (x - x.mean(0)).square().sum()).item()


def parameters(one: Sae) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return one.encoder.weight, one.encoder.bias, one.W_dec, one.b_dec


def test_the_speed_of_a_run_counts_the_first_look_which_reads_a_block_of_activations(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, waited = SaeTrainer.initialise, 0.5
    monkeypatch.setattr(SaeTrainer, "initialise", lambda self: time.sleep(waited) or own(self))
    trainer = make()
    trainer.fit()
    for record in read_records(trainer.folder.path / "metrics.jsonl"):
        assert record["tokens"] / record["tokens_per_second"] >= waited


def test_every_record_tells_how_fast_each_autoencoder_alone_is(make: Make) -> None:
    trainer = make(log_every=1)
    trainer.fit()
    records = read_records(trainer.folder.path / "metrics.jsonl")
    assert len(records) == trainer.total_steps
    for record in records:
        seconds = [record["tokens"] / record[f"{name}/tokens_per_second"] for name in trainer.learners]
        assert min(seconds) > 0 and sum(seconds) < record["tokens"] / record["tokens_per_second"]


# Every model, every layer


@pytest.mark.parametrize(
    ("family", "head"),
    [(family, head) for family in FAMILIES for head in (False, True) if (family, head) != ("bert", True)],
)
def test_every_family_trains_every_layer_by_default_and_the_fvu_falls(make: Make, family: str, head: bool) -> None:
    trainer = make(make_tokens(164), tiny_model(family, causal_lm=head), lr=1e-2)
    before = trainer.held_out_quality()
    saved = trainer.fit()
    after = evaluation(trainer.folder.path)
    assert list(after) == [f"{LAYERS[family]}.{layer}" for layer in range(3)]
    for name, one in Sae.load_many(saved).items():
        assert after[name]["fvu"] < 0.95 * before[name].fvu
        assert after[name]["l0"] <= one.cfg.k == 4
        torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(one.num_latents))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_of_any_dtype_trains_float32_weights_and_is_not_changed(make: Make, dtype: torch.dtype) -> None:
    model = tiny_model("llama", causal_lm=True).to(dtype).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    saved = make(model=model).fit()
    assert all(one.dtype == torch.float32 for one in Sae.load_many(saved).values())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"layers": [2, 0]}, ["layers.0", "layers.2"]),
        ({"layer_stride": 2}, ["layers.0", "layers.2"]),
        ({"hookpoints": ["layers.[01].mlp", "layers.2.input"]}, ["layers.0.mlp", "layers.1.mlp", "layers.2.input"]),
    ],
)
def test_a_choice_of_hookpoints_is_what_is_trained_saved_and_reported(
    make: Make, choice: dict[str, Any], names: list[str]
) -> None:
    trainer = make(**choice)
    saved = trainer.fit()
    assert list(Sae.load_many(saved)) == list(evaluation(trainer.folder.path)) == names
    assert {key.split("/")[0] for key in losses(trainer.folder.metrics)[0] if "/" in key} == set(names)


@pytest.mark.parametrize("given", [True, False])
def test_the_seeds_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae.data import chunk_and_tokenize

    monkeypatch.chdir(tmp_path)
    MODEL = str(save_tiny(tmp_path / "model", "gpt_neox"))
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind. "
    dataset = Dataset.from_list([{"text": f"{number} {text * 8}"} for number in range(60)])
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenized = chunk_and_tokenize(dataset, tokenizer)
    gpt = AutoModelForCausalLM.from_pretrained(MODEL, device_map={"": "cpu"}, dtype=torch.bfloat16)
    cfg = TrainConfig(SaeConfig(gpt.config.hidden_size) if given else SaeConfig(), batch_size=16)
    trainer = SaeTrainer(cfg, tokenized, gpt)
    trainer.fit()
    saes = Sae.load_many(tmp_path / "checkpoints" / "model")
    assert {name: (one.d_in, one.num_latents) for name, one in saes.items()} == {
        f"layers.{layer}": (32, 32 * 32) for layer in range(3)
    }


def test_a_d_in_that_is_not_the_models_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="d_in must be the width of the activations, 32, got 31; leave d_in out"):
        make(sae=SaeConfig(31))


# What changes memory, speed or the log does not change the result


@pytest.mark.parametrize(("fitting", "sequences"), [(64, 204), (3, 204), (64, 212)])
def test_accumulating_gradients_equals_larger_batches(
    make: Make, float32: None, monkeypatch: pytest.MonkeyPatch, fitting: int, sequences: int
) -> None:
    """Also when no more than 3 batches of 4 sequences fit into a block of the shuffle, or the data end within one."""
    monkeypatch.setattr("sae.activations.shuffle.BYTES", fitting * 4 * SEQ * 3 * 32 * 4)
    once = make(make_tokens(sequences), batch_size=8, run_name="once").fit()
    twice = make(make_tokens(sequences), batch_size=4, grad_acc_steps=2, run_name="twice").fit()
    assert once.name == twice.name == f"step_{(sequences - 8) // 8}"
    assert_close(once, twice)


def test_dividing_accumulated_batches_equals_dividing_larger_ones(make: Make, float32: None) -> None:
    once = make(make_tokens(204), batch_size=8, steps_per_batch=4, run_name="once").fit()
    twice = make(make_tokens(204), batch_size=4, grad_acc_steps=2, steps_per_batch=4, run_name="twice").fit()
    assert once.name == twice.name == "step_96"
    assert_close(once, twice, flipped=1)


def test_micro_batches_change_no_weight_beyond_rounding(make: Make, float32: None) -> None:
    assert_close(make(run_name="whole").fit(), make(micro_acc_steps=5, run_name="parts").fit())


def assert_close(one: Path, other: Path, *, flipped: int = 0) -> None:
    """The saved weights are the same but for the rounding of float32, which Adam amplifies where gradients are tiny.

    In `flipped` autoencoders rounding may decide which of two equal latents a token takes, and a little follows.
    """
    saes, others = Sae.load_many(one), Sae.load_many(other)
    assert list(saes) == list(others)
    differences = {
        name: max(
            ((parameter - twin).norm() / parameter.norm()).item()
            for parameter, twin in zip(parameters(trained), parameters(others[name]), strict=True)
        )
        for name, trained in saes.items()
    }
    in_order = sorted(differences.values())
    assert in_order[-1 - flipped] < 1e-4 and in_order[-1] < 0.05, differences


def test_the_same_seed_gives_the_same_checkpoint_to_the_bit_and_another_seed_another(make: Make) -> None:
    first, again, other = (make(run_name=name, seed=seed).fit() for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert weights(first) == weights(again)
    assert losses(first.parent / "metrics.jsonl") == losses(again.parent / "metrics.jsonl")
    assert all(weights(other)[name] != content for name, content in weights(first).items())


def test_an_autoencoder_does_not_depend_on_what_is_trained_beside_it(make: Make) -> None:
    together, alone = make(run_name="together").fit(), make(layers=[1], run_name="alone").fit()
    assert {f"layers.1/{name}": content for name, content in weights(alone / "layers.1").items()}.items() <= weights(
        together
    ).items()


def test_logging_evaluating_and_saving_change_no_weight(make: Make) -> None:
    plain = make(run_name="plain").fit()
    busy = make(run_name="busy", log_every=7, save_every=3)
    for learner in busy.learners.values():
        learner.read_metrics()
    busy.held_out_quality()
    assert weights_only(busy.fit()) == weights_only(plain)


def test_a_compiled_language_model_trains_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make(run_name="plain", layers=[0, 1]).fit()
    compiler = CompileCounter()  # counts, and runs what it was given as it is
    monkeypatch.setattr(sae.lm, "compile_blocks", partial(sae.lm.compile_blocks, backend=compiler))
    compiled = make(run_name="compiled", layers=[0, 1], compile_lm=True).fit()
    assert compiler.frame_count > 0
    assert weights_only(compiled) == weights_only(plain)


def test_a_stream_trains_to_the_same_bit_whether_read_ahead_or_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.data.tokens.HELD_OUT_TOKENS_STREAM", 4 * SEQ)
    ahead = make(stream_of(make_tokens()), run_name="ahead", max_tokens=40 * SEQ)
    assert isinstance(ahead.store, LiveStore) and isinstance(ahead.store.batches, ReadAhead)
    monkeypatch.setattr("sae.activations.live.ReadAhead", lambda batches: batches)
    assert weights(make(stream_of(make_tokens()), run_name="now", max_tokens=40 * SEQ).fit()) == weights(ahead.fit())


def test_a_record_covers_all_steps_since_the_one_before(make: Make) -> None:
    every = make(run_name="every")
    every.fit()
    third = make(run_name="third", log_every=3)
    third.fit()
    l0 = [record["layers.1/l0"] for record in losses(every.folder.metrics)]
    records = losses(third.folder.metrics)
    assert [record["step"] for record in records] == [3, 6, 9, 10]
    expected = [sum(l0[start : start + 3]) / len(l0[start : start + 3]) for start in (0, 3, 6, 9)]
    assert [record["layers.1/l0"] for record in records] == pytest.approx(expected)


def test_k_grows_from_eight_and_not_where_it_has_been_learned_or_another_loss_is_asked_for(
    make: Make, tmp_path: Path
) -> None:
    def l0(name: str, **options: Any) -> list[float]:
        trainer = make(sae=SaeConfig(num_latents=128, k=16), run_name=name, layers=[1], **options)
        saved = trainer.fit()
        assert Sae.load_from_disk(saved / "layers.1").cfg.k == 16
        return [record["layers.1/l0"] for record in losses(trainer.folder.metrics)]

    assert l0("grows") == pytest.approx([8, 12, *[16] * 8], abs=0.5)
    model = tiny_model("gpt_neox", causal_lm=True)
    for options in (
        {"recipe": "gao2024"},
        {"loss_fn": "kl", "reconstruct_first": 0.0},
        {"finetune": str(tmp_path / "grows")},
    ):
        assert l0(next(iter(options)), model=model, **options) == pytest.approx([16] * 10, abs=0.5)


def test_a_run_that_is_resumed_while_k_grows_ends_as_one_that_did_not_stop(make: Make) -> None:
    straight, first, then = (
        make(sae=SaeConfig(num_latents=128, k=16), run_name=name, layers=[1]) for name in ("straight", "first", "then")
    )
    expected = straight.fit()
    first.initialise()
    first.train_step()
    then.load(first.save())
    assert weights(then.fit()) == weights(expected)


def test_a_short_run_makes_several_steps_of_a_batch_and_a_long_one_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sae.training.recipe.FEWEST_TOKENS", 8)

    def steps(name: str, enough: int = 1000, **options: Any) -> tuple[int, int]:
        monkeypatch.setattr("sae.training.recipe.ENOUGH_STEPS", enough)
        trainer = make(run_name=name, layers=[1], **options)
        records = losses(trainer.fit().parent / "metrics.jsonl")
        derived = json.loads((trainer.folder.path / "config.json").read_text())["derived"]
        assert [r["tokens"] for r in records] == [derived["tokens_per_step"] * n for n in range(1, len(records) + 1)]
        assert derived["total_steps"] == len(records)
        return derived["steps_per_batch"], len(records)

    assert steps("short") == (4, 40)  # of 32 tokens, which is four times the fewest
    assert steps("longer", enough=20) == (2, 20)
    assert steps("long", enough=19) == (1, 10)
    assert steps("chosen", steps_per_batch=16) == (16, 160)
    assert steps("as_asked", steps_per_batch=1) == steps("paper", recipe="gao2024") == (1, 10)
    assert steps("whole", model=tiny_model("gpt_neox", causal_lm=True), loss_fn="kl") == (1, 10)
    monkeypatch.setattr("sae.activations.shuffle.BYTES", 4 * SEQ * 32 * 4)  # of two batches no more than one is mixed
    assert steps("large", grad_acc_steps=2) == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_batch": 3}, "steps_per_batch must divide .* = 32 tokens, got 3; choose a divisor"),
        ({"steps_per_batch": 2, "grad_acc_steps": 2}, "steps_per_batch must be 1 where 64 activations are too large"),
    ],
)
def test_a_number_of_steps_that_a_batch_cannot_be_divided_into_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("sae.activations.shuffle.BYTES", 4 * SEQ * 3 * 32 * 4)
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("stop", [1, 7, 30])
def test_a_run_that_is_resumed_within_a_batch_ends_as_one_that_did_not_stop(make: Make, stop: int) -> None:
    options: dict[str, Any] = {"layers": [1], "steps_per_batch": 4}
    straight, first = (make(run_name=name, **options) for name in ("straight", "first"))
    expected = straight.fit()
    first.initialise()
    for _ in range(stop):
        first.train_step()
    then = make(run_name="then", **options)
    then.load(first.save())
    resumed = then.fit()
    assert resumed.name == expected.name == "step_40"
    assert weights(resumed) == weights(expected)


def test_a_run_that_goes_on_for_longer_keeps_the_size_of_its_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.training.recipe.FEWEST_TOKENS", 8)
    monkeypatch.setattr("sae.training.recipe.ENOUGH_STEPS", 20)
    options: dict[str, Any] = {"run_name": "run", "layers": [1]}
    assert make(max_tokens=5 * 32, **options).fit().name == "step_20"
    longer = make(resume=True, resume_changed=["max_tokens"], max_tokens=10 * 32, **options)
    assert longer.fit().name == "step_40"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_per_batch": 0}, "config.json says what was derived, .* as positive numbers, but that of"),
        ({"steps_per_batch": "2"}, "config.json says what was derived"),
        ({"batches_per_step": 1.5}, "config.json says what was derived"),
        ({"steps_per_batch": 10**6}, "steps_per_batch must divide .* = 32 tokens, got 1000000"),
        (None, "config.json says what was derived"),
    ],
)
def test_a_run_whose_step_has_no_size_is_not_resumed(make: Make, changes: dict[str, Any] | None, message: str) -> None:
    path = make(run_name="run", layers=[1]).fit().parent / "config.json"
    document = json.loads(path.read_text())
    document["derived"] = document["derived"] | changes if changes else []
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        make(run_name="run", layers=[1], resume=True)


# Stopping and going on


def stream_of(tokens: Tensor) -> IterableDataset:
    return Dataset.from_dict({"input_ids": tokens.tolist()}).to_iterable_dataset()


def long_run(streamed: bool) -> dict[str, Any]:
    """Data for 24 steps, in blocks of 8, after what is held out."""
    if not streamed:
        return {"data": make_tokens(100)}
    return {"data": stream_of(make_tokens(2048 + 100)), "max_tokens": 24 * 4 * SEQ}


@pytest.mark.parametrize(
    ("stop", "streamed"),
    [(0, False), (1, False), (7, False), (8, False), (13, False), (1, True), (8, True), (13, True)],
)
def test_stopping_and_resuming_equals_not_stopping_to_the_bit(
    make: Make, monkeypatch: pytest.MonkeyPatch, stop: int, streamed: bool
) -> None:
    monkeypatch.setattr("sae.data.tokens.HELD_OUT_TOKENS_STREAM", 4 * SEQ)
    options = {"log_every": 2, "dead_feature_threshold": 60, "layers": [0, 2], "grad_acc_steps": 1}
    straight = make(**long_run(streamed), **options, run_name="straight")
    expected = straight.fit()

    first = make(**long_run(streamed), **options, run_name="first")
    first.initialise()
    while first.step < stop:
        first.train_step()
        if first.step % 2 == 0:
            first.metrics(tokens_per_second=0)
    then = make(**long_run(streamed), **options, run_name="then")
    then.load(first.save())
    resumed = then.fit()

    assert resumed.name == expected.name == "step_24"
    assert weights(resumed) == weights(expected)
    assert (resumed / "trainer.json").read_text() == (expected / "trainer.json").read_text()
    assert losses(then.folder.metrics) == losses(straight.folder.metrics)[stop // 2 :]
    assert evaluation(then.folder.path) == evaluation(straight.folder.path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_between_two_steps_and_says_where(
    make: Make, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    trainer = make(make_tokens(100))
    before = signal.getsignal(number)
    after_steps(trainer, 3, lambda: signal.raise_signal(number))
    saved = trainer.fit()
    assert trainer.stop and saved == trainer.folder.path / "step_4"
    assert f"stopped at step 4 of 24; saved in {saved}" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert not (trainer.folder.path / "evaluation.json").exists()

    then, straight = make(make_tokens(100), run_name="then"), make(make_tokens(100), run_name="straight")
    then.load(saved)
    assert weights(then.fit()) == weights(straight.fit())


@pytest.fixture
def own_ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the tests were started in the background, with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("save_every", "left"), [(3, "--resume continues from {}/step_3"), (100, "no checkpoint is in {} yet")]
)
def test_the_first_signal_says_at_once_what_it_does_and_the_second_does_not_wait(
    make: Make, capfd: pytest.CaptureFixture[str], number: signal.Signals, save_every: int, left: str
) -> None:
    trainer = make(make_tokens(100), save_every=save_every)
    before, said = signal.getsignal(number), []

    def press_twice() -> None:
        trainer.persistence.settle()
        capfd.readouterr()
        signal.raise_signal(number)
        said.append(capfd.readouterr().err)
        signal.raise_signal(number)

    after_steps(trainer, 3, press_twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert said == [f"\n{STOPPING}\n"] and capfd.readouterr().err.count(STOPPING) == 0
    assert trainer.what_resumes().startswith(left.format(trainer.folder.path))
    assert signal.getsignal(number) == before
    straight, resumed = make(make_tokens(100), run_name="straight"), make(make_tokens(100), resume=True)
    assert weights(resumed.fit()) == weights(straight.fit())


@pytest.mark.usefixtures("own_ctrl_c")
def test_ctrl_c_while_the_last_checkpoint_is_written_waits_for_it_and_skips_what_comes_after(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = checkpoint.write_part
    trainer = make(make_tokens(100))
    main = threading.get_ident()

    def pressed(*args: Any) -> None:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        write(*args)

    monkeypatch.setattr(checkpoint, "write_part", pressed)
    saved = trainer.fit()
    checkpoint.check(saved)
    assert saved.name == "step_24" and trainer.stopped
    assert f"stopped at step 24 of 24; saved in {saved}" in capsys.readouterr().err
    assert not (trainer.folder.path / "evaluation.json").exists()


@pytest.mark.parametrize(("ends_at_once", "seconds"), [(True, 0), (False, 0.3)])
def test_who_ends_a_run_at_once_does_not_wait_for_a_service(
    make: Make, monkeypatch: pytest.MonkeyPatch, ends_at_once: bool, seconds: float
) -> None:
    monkeypatch.setattr(log, "PATIENCE", 0.3)
    trainer = make()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        monkeypatch.setattr(progress, "why_no_wandb", lambda: None)
        monkeypatch.setattr(progress, "WandbSink", lambda **kwargs: time.sleep(60))
        trainer.folder.path.mkdir()
        assert len(progress.open_sinks(trainer.folder, {}, stack, step=0, wandb=True)) == 2
        begun = time.monotonic()
        if ends_at_once:
            raise KeyboardInterrupt
    assert seconds <= time.monotonic() - begun < seconds + 0.25


def after_steps(trainer: SaeTrainer, steps: int, act: Callable[[], None]) -> None:
    """Let something happen in the middle of the step after `steps` steps."""
    learner = list(trainer.learners.values())[1]
    update, calls = learner.update, iter(range(10**6))

    def update_then_act(lr: float) -> None:
        update(lr)
        if next(calls) == steps:
            act()

    learner.update = update_then_act  # type: ignore[method-assign]


# Which data


def test_held_out_sequences_are_never_trained_on_and_the_others_once(make: Make) -> None:
    """Seen at the embedding, where an activation tells which token it is of."""
    trainer = make(hookpoints=["embed_in"])
    learner, rows = trainer.learners["embed_in"], trainer.store.model.get_input_embeddings().weight.detach()
    accumulate, read = learner.accumulate, []

    def recognise_then_accumulate(x: Tensor, y: Tensor | None) -> None:
        read.extend(torch.cdist(x, rows).argmin(1).tolist())
        accumulate(x)

    learner.accumulate = recognise_then_accumulate  # type: ignore[method-assign]
    trainer.initialise()
    while trainer.train_step():
        pass
    kept_apart = held_out(trainer).flatten().tolist()
    assert len(kept_apart) == 4 * SEQ
    assert sorted(read + kept_apart) == sorted(make_tokens().flatten().tolist())


def test_max_tokens_ends_the_run_and_its_learning_rate(make: Make) -> None:
    trainer = make(max_tokens=5 * 4 * SEQ + 1, lr=1.0, lr_warmup_steps=2)
    assert trainer.total_steps == 5
    rates = []
    trainer.initialise()
    while trainer.step < trainer.total_steps:
        rates.append(trainer.learning_rate("layers.0"))
        trainer.train_step()
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])


def test_the_learning_rate_follows_the_law_unless_it_is_given(make: Make) -> None:
    wide = SaeConfig(num_latents=2**12)
    rare = 2**-0.5  # few firings a step
    assert make(sae=wide, lr=None, lr_warmup_steps=0).learning_rate("layers.0") == pytest.approx(rare * 6.4e-3)
    paper = make(sae=wide, lr=None, lr_warmup_steps=0, recipe="gao2024")
    assert paper.learning_rate("layers.0") == pytest.approx(4e-4)
    assert make(sae=wide, lr=0.5, lr_warmup_steps=0).learning_rate("layers.0") == 0.5


@pytest.mark.parametrize(
    ("chosen", "recipe", "tokens", "expected"),
    [(None, "default", 10**6, 50_000), (None, "default", 10**10, 10**7), (None, "gao2024", 10**6, 10**7),
     (7, "default", 10**6, 7), (None, "default", 3, 1)],
)  # fmt: skip
def test_when_a_latent_is_dead_follows_the_runs_length(
    chosen: int | None, recipe: Any, tokens: int, expected: int
) -> None:
    assert report_dead_after(TrainConfig(dead_feature_threshold=chosen, recipe=recipe), tokens) == expected


def test_a_stream_trains_to_max_tokens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.data.tokens.HELD_OUT_TOKENS_STREAM", 4 * SEQ)
    saved = make(stream_of(make_tokens()), max_tokens=6 * 4 * SEQ).fit()
    assert saved.name == "step_6"


def test_a_stream_without_max_tokens_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="max_tokens must be given for a stream, .*; .* give --max_tokens"):
        make(stream_of(make_tokens()))


def test_a_token_file_trains_as_the_tokens_in_it(make: Make, tmp_path: Path) -> None:
    make_tokens().numpy().astype(np.uint16).tofile(tmp_path / "tokens.bin")
    from_file = make(MemmapTokens(tmp_path / "tokens.bin", SEQ, VOCAB_SIZE), run_name="file").fit()
    assert weights(from_file) == weights(make(run_name="tensor").fit())


@pytest.mark.parametrize("excluded", [{"exclude_positions": [0]}, {"exclude_tokens": list(range(100))}])
def test_excluded_activations_do_not_matter_in_training_or_evaluation(make: Make, excluded: dict[str, Any]) -> None:
    """The first token of a sequence is at position 0 and has an id below 100; its activations are made huge here."""
    results = []
    for name, factor in (("as_is", 1.0), ("huge", 1e4)):
        trainer = make(**excluded, layers=[0], run_name=name)
        scale_first_activation(trainer, factor)
        results.append((weights(trainer.fit()), evaluation(trainer.folder.path)))
        num_held_out = trainer.store.tokens.held_out
    assert results[0] == results[1]
    assert results[0][1]["layers.0"]["tokens"] == num_held_out * (SEQ - 1)


def scale_first_activation(trainer: SaeTrainer, factor: float) -> None:
    harvest = trainer.store.source._harvest

    def scaled(tokens: Tensor) -> dict[str, Tensor]:
        activations = dict(harvest(tokens))
        for acts in activations.values():
            acts[:, 0] *= factor
        return activations

    trainer.store.source._harvest = scaled


def test_a_sequence_longer_than_the_model_reads_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="ctx_len must be at most the model's limit=64, got 65"):
        make(make_tokens(44, CTX_LEN + 1), tiny_model("gpt2"))


def test_excluding_every_token_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="--exclude_positions must leave some tokens"):
        make(exclude_positions=list(range(SEQ))).fit()
    of_one_token_each = torch.arange(44)[:, None].repeat(1, SEQ)
    of_held_out = held_out(make(of_one_token_each))[:, 0].tolist()
    with pytest.raises(ValueError, match="to hold out, got none"):
        make(of_one_token_each, exclude_tokens=of_held_out).fit()


def test_activations_that_are_all_the_same_are_refused_by_name(make: Make) -> None:
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.get_submodule("layers.1.mlp.dense_4h_to_h").weight.zero_()
    trainer = make(model=model, hookpoints=["layers.0", "layers.1.mlp"])
    with pytest.raises(ValueError, match="activations at layers.1.mlp must differ between tokens"):
        trainer.fit()
    assert not trainer.folder.path.exists()


# Where it starts


def test_a_new_autoencoder_starts_at_the_mean_of_the_data(make: Make) -> None:
    trainer = make(layers=[1])
    trainer.initialise()
    seen = trainer.source.peek()["layers.1"]
    torch.testing.assert_close(trainer.saes["layers.1"].b_dec.detach(), seen.mean(0))
    variance = (seen - seen.mean(0)).square().sum().item() / len(seen)
    assert trainer.learners["layers.1"].variance == pytest.approx(variance, rel=1e-5)


def test_finetuning_starts_from_the_given_weights_and_keeps_b_dec(make: Make, tmp_path: Path) -> None:
    saved = make(run_name="first").fit()
    for source in (saved, saved.parent):
        trainer = make(finetune=str(source), layers=[0, 2], seed=7)
        trainer.initialise()
        assert list(trainer.saes) == ["layers.0", "layers.2"]
        for name, one in trainer.saes.items():
            expected = load_file(saved / name / "sae.safetensors")
            assert all(torch.equal(t, expected[key]) for key, t in one.state_dict().items())
    fine = trainer.fit()
    assert evaluation(fine.parent)["layers.0"]["fvu"] < 1.05 * evaluation(saved.parent)["layers.0"]["fvu"]


@pytest.mark.parametrize("loss_fn", ["fvu", "kl"])
def test_a_few_steps_at_the_derived_rate_do_not_undo_what_was_learned(
    make: Make, tmp_path: Path, loss_fn: str, float32: None
) -> None:
    data = torch.randint(3, VOCAB_SIZE, (640, 16), generator=torch.Generator().manual_seed(5))
    model = tiny_model("gpt_neox", causal_lm=True)
    train = partial(make, data, model, layers=[1], lr=None, batch_size=8)
    source = train(run_name="first").fit().parent
    trainer = train(finetune=str(source), max_tokens=2048, loss_fn=loss_fn)
    trainer.initialise()

    def quality() -> float:
        if loss_fn == "kl":
            return trainer.evaluate_grafted()["layers.1/eval_kl_div_with_sae"]
        return trainer.held_out_quality()["layers.1"].fvu

    before = quality()
    trainer.fit()
    assert trainer.total_steps == 16 and quality() < before


@pytest.mark.parametrize(("lengths", "stays_unit"), [("one", True), ("several", False)])
def test_finetuning_starts_from_the_function_that_was_loaded_whatever_the_rows_lengths(
    make: Make, tmp_path: Path, lengths: str, stays_unit: bool, float32: None
) -> None:
    source = make(run_name="first", layers=[1]).saes["layers.1"]
    with torch.no_grad():
        source.encoder.bias.add_(0.1 * torch.randn(source.num_latents))
        scale = torch.full((128, 1), 3.0) if lengths == "one" else 0.5 + torch.rand(128, 1)
        source.W_dec.mul_(scale)
    source.save_to_disk(tmp_path / "foreign" / "layers.1")
    trainer = make(finetune=str(tmp_path / "foreign"), layers=[1], lr=1e-12, auxk_alpha=0.0)
    x = trainer.source.peek()["layers.1"]
    expected = source(x).recon
    torch.testing.assert_close(trainer.saes["layers.1"](x).recon, expected)
    trainer.initialise()
    assert trainer.train_step()
    torch.testing.assert_close(trainer.saes["layers.1"](x).recon, expected, rtol=1e-4, atol=1e-5)
    saved = Sae.load_from_disk(trainer.save() / "layers.1")
    assert saved.cfg.normalize_decoder == stays_unit
    torch.testing.assert_close(saved(x).recon, expected, rtol=1e-4, atol=1e-5)
    if stays_unit:
        torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(128))


def test_finetuning_takes_one_seed_and_the_first_versions_layers(make: Make, tmp_path: Path) -> None:
    saved = make(layers=[1], run_name="first").fit() / "layers.1"
    for place in ("seeds/layers.1/seed0", "seeds/layers.1/seed1", "2024/layer_1.pt"):
        shutil.copytree(saved, tmp_path / place)
    assert list(make(finetune=str(tmp_path / "seeds" / "seed1"), layers=[1]).saes) == ["layers.1"]
    assert list(make(finetune=str(tmp_path / "2024"), hookpoints=["layers.1.input"]).saes) == ["layers.1.input"]
    with pytest.raises(ValueError, match="must hold one autoencoder of layers.1, but holds seed0/layers.1, seed1/"):
        make(finetune=str(tmp_path / "seeds"), layers=[1])


def test_finetuning_takes_one_group_of_a_sweep_by_the_name_that_is_told(make: Make, tmp_path: Path) -> None:
    sweep = make(run_name="sweep", layers=[1], sae=[SaeConfig(num_latents=n, k=4) for n in (96, 128)], save_best=True)
    sweep.fit()
    run = tmp_path / "sweep"
    for folder in (run, run / "best"):
        with pytest.raises(
            ValueError, match=r"must hold one autoencoder of layers.1, but holds n96/layers.1, n128"
        ) as told:
            make(sae=SaeConfig(), finetune=str(folder), layers=[1])
        named = str(told.value).rpartition("such as ")[2]
        assert make(sae=SaeConfig(), finetune=named, layers=[1]).saes["layers.1"].num_latents == 96
        assert Sae.load_many(folder / "n128")["layers.1"].num_latents == 128
        assert list(Sae.load_many(folder / "n128" / "layers.1")) == ["layers.1"]
        with pytest.raises(ValueError, match="must be a folder or a repository on the hub"):
            make(sae=SaeConfig(), finetune=str(folder / "n64"), layers=[1])


def test_finetuning_from_what_does_not_fit_is_refused(make: Make) -> None:
    saved = make(layers=[0], run_name="first").fit()
    with pytest.raises(ValueError, match=r"layers.1.* but holds .*layers.0"):
        make(finetune=str(saved), layers=[1])
    with pytest.raises(ValueError, match="finetune: layers.0 in .* must be 40 wide, as the model is, got 32"):
        make(finetune=str(saved), layers=[0], model=tiny_model("gemma3"))
    with pytest.raises(ValueError, match="nowhere must be a folder or a repository on the hub"):
        make(finetune="nowhere")


def test_a_file_that_names_no_hookpoint_starts_one_and_not_one_in_each_process(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, file = torch.randn(64, 32), tmp_path / "a-k3.overcomplete.pt"
    encoder = {"encoder.final_block.0.weight": rows, "encoder.final_block.0.bias": torch.zeros(64)}
    torch.save({"dictionary._weights": rows, "dictionary.multiplier": torch.tensor(0.3)} | encoder, file)
    assert list(make(sae=SaeConfig(), finetune=str(file), layers=[1]).saes) == ["layers.1"]
    held = RunPlan.held_by
    monkeypatch.setattr(RunPlan, "held_by", lambda plan, rank: {"layers.1": held(plan, rank)["layers.1"]})
    with pytest.raises(ValueError, match=r"must hold .*layers\.1"):
        make(sae=SaeConfig(), finetune=str(file), layers=[0, 1])


# What it writes


def test_checkpoints_come_every_save_every_steps_and_at_the_end(make: Make) -> None:
    saved = make(save_every=4).fit()
    assert saved.name == "step_10"
    steps = {path.name for path in saved.parent.glob("step_*") if checkpoint.check(path) is None}
    assert steps == {"step_4", "step_8", "step_10"}


def test_the_reported_fvu_is_that_of_the_saved_weights_on_the_held_out_tokens(make: Make) -> None:
    trainer = make()
    saved = trainer.fit()
    activations = sae.lm.harvest(trainer.store.model, held_out(trainer), list(trainer.store.widths))
    for name, one in Sae.load_many(saved).items():
        reported = ReconstructionMetrics(**evaluation(trainer.folder.path)[name])
        assert reported.tokens == 4 * SEQ
        assert reported.fvu == pytest.approx(dense_fvu(one, activations[name].flatten(0, 1)), rel=1e-5)


def test_the_reported_fvu_of_a_step_is_that_of_the_weights_before_it(make: Make, float32: None) -> None:
    trainer = make(make_tokens(100), layers=[1])
    trainer.initialise()
    for _ in range(3):
        part = next(trainer.source)["layers.1"]
        expected = dense_fvu(trainer.saes["layers.1"], part)
        trainer.learners["layers.1"].accumulate(part)
        trainer.learners["layers.1"].update(1e-3)
        record = trainer.metrics(tokens_per_second=1.0)
        assert record["layers.1/fvu"] == pytest.approx(expected, rel=1e-5)


def test_dead_latents_are_counted_in_tokens(make: Make) -> None:
    trainer = make(dead_feature_threshold=3 * 4 * SEQ, lr=1e-9, layers=[0])
    trainer.fit()
    dead = [record["layers.0/dead_fraction"] for record in losses(trainer.folder.metrics)]
    assert dead[:2] == [0, 0] and dead[2] > 0


def test_auxk_revives_latents_that_the_rest_of_the_loss_leaves_dead(make: Make) -> None:
    final = {}
    for alpha in (0.0, 1.0):
        trainer = make(make_tokens(320), layers=[0], auxk_alpha=alpha, dead_feature_threshold=640, recipe="gao2024")
        trainer.saes["layers.0"].encoder.bias.data[:64] -= 3
        trainer.learners["layers.0"].load_state_dict(trainer.learners["layers.0"].state_dict())
        trainer.fit()
        final[alpha] = losses(trainer.folder.metrics)[-1]
    assert final[0.0]["layers.0/auxk"] == 1 > final[1.0]["layers.0/auxk"]
    assert final[0.0]["layers.0/dead_fraction"] > 0.4
    assert final[1.0]["layers.0/dead_fraction"] < 0.85 * final[0.0]["layers.0/dead_fraction"]


# What is not finite


def poisoned(token: int) -> Any:
    """A model for which one token's embedding is not a number."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan
    return model


def place_of(token: int, trainer: SaeTrainer) -> tuple[int, int]:
    """The batch that holds a sequence of `make_tokens`, and the sequence's number in it."""
    for number, batch in enumerate(trainer.store.tokens):
        rows = batch[:, 0].tolist()
        if token in rows:
            return number, rows.index(token)
    raise AssertionError(f"sequence {token} is held out")


def test_a_nan_in_activations_stops_with_its_place_after_saving(make: Make) -> None:
    order = list(make(make_tokens(100)).store.tokens)
    token = order[20][2, 0].item()
    batch, sequence = place_of(token, make(make_tokens(100)))
    trainer = make(make_tokens(100), poisoned(token), layers=[1, 2])
    with pytest.raises(FloatingPointError) as stopped:
        trainer.fit()
    assert (batch, sequence) == (20, 2)
    assert str(stopped.value) == "h.1: an activation is not finite in batch 20, sequence 2, position 0"
    saved = checkpoint.latest(trainer.folder.path)
    assert saved is not None and f"stopped at step {trainer.step}; the state before is saved in {saved}" in (
        stopped.value.__notes__
    )
    assert trainer.step > 0 and saved.name == f"step_{trainer.step}"
    straight = make(make_tokens(100), tiny_model("gpt2"), layers=[1, 2], run_name="straight")
    straight.initialise()
    for _ in range(trainer.step):
        straight.train_step()
        straight.metrics(tokens_per_second=1.0)
    assert weights(saved) == weights(straight.save())


def test_a_nan_in_the_middle_of_a_step_leaves_the_state_before_that_step(make: Make) -> None:
    """With two batches a step and no mixing, the second of step 5 is bad: what is saved is the end of step 4."""
    options = {"grad_acc_steps": 2, "layers": [0], "log_every": 3}
    token = list(make(make_tokens(100), **options).store.tokens)[9][0, 0].item()

    def unmixed(model: Any, name: str) -> SaeTrainer:
        trainer = make(make_tokens(100), model, run_name=name, **options)
        trainer.source._block = 1
        return trainer

    bad = unmixed(poisoned(token), "bad")
    with pytest.raises(FloatingPointError, match="batch 9, sequence 0"):
        bad.fit()
    good = unmixed(tiny_model("gpt2"), "good")
    good.initialise()
    for _ in range(4):
        good.train_step()
        if good.step == 3:
            good.metrics(tokens_per_second=1.0)
    assert bad.step == 4
    expected, saved = good.save(), bad.folder.path / "step_4"
    assert weights(saved) == weights(expected)
    assert (saved / "trainer.json").read_text() == (expected / "trainer.json").read_text()


@pytest.mark.parametrize("frequency", [1, 5])
def test_a_loss_that_diverges_stops_by_name_and_saves_finite_weights(make: Make, frequency: int) -> None:
    trainer = make(lr=1e30, log_every=frequency)
    with pytest.raises(FloatingPointError, match=r"layers.0: the loss is not finite at step \d+, .*; try a lower --lr"):
        trainer.fit()
    saved = checkpoint.latest(trainer.folder.path)
    assert saved is not None
    for path in saved.rglob("sae.safetensors"):
        assert all(t.isfinite().all() for t in load_file(path).values()), path


def fail(*_: Any) -> None:
    raise RuntimeError("the machine is on fire")


def test_an_error_before_the_weights_change_saves_and_passes_on(make: Make) -> None:
    trainer = make()
    after_steps(trainer, 4, lambda: setattr(list(trainer.learners.values())[1], "accumulate", fail))
    with pytest.raises(RuntimeError, match="on fire") as failed:
        trainer.fit()
    (note,) = failed.value.__notes__
    assert note == f"stopped at step 5; the state before is saved in {trainer.folder.path / 'step_5'}"


def test_an_error_when_some_weights_have_changed_saves_nothing_and_names_the_last_checkpoint(make: Make) -> None:
    trainer = make(save_every=3)
    after_steps(trainer, 4, fail)
    with pytest.raises(RuntimeError, match="on fire") as failed:
        trainer.fit()
    (note,) = failed.value.__notes__
    assert note == f"stopped at step 4, not saved; the last checkpoint is {trainer.folder.path / 'step_3'}"


@pytest.mark.parametrize("option", ["k", "num_latents"])
def test_what_comes_with_finetune_cannot_be_chosen_otherwise(make: Make, tmp_path: Path, option: str) -> None:
    make(layers=[1], run_name="first").fit()
    with pytest.raises(ValueError, match=f"{option} comes with finetune, and layers.1 in .* has (4|128), got 8"):
        make(sae=SaeConfig(**({"k": 4} | {option: 8})), layers=[1], finetune=str(tmp_path / "first"))


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 45}, "at least one batch of batch_size=45 sequences after the 4 held out, got 40"),
        ({"grad_acc_steps": 11}, "one step of .* = 352 tokens beside the 4 held-out sequences, got 40 sequences of 8"),
        ({"max_tokens": 31}, "one step of .* = 32 tokens .* raise --max_tokens"),
        ({"layers": [3]}, "between 0 and 2 .the model has 3 layers., got 3"),
        ({"hookpoints": ["layer.*"]}, "'layer.*' matches nothing; near names: layers"),
        ({"shard_latents": 2}, "shard_latents must divide the number of processes, 1, got 2"),
        ({"sae": SaeConfig(k=200, expansion_factor=4)}, "k must be between 1 and num_latents=128, got 200"),
    ],
)
def test_a_choice_that_does_not_fit_model_or_data_is_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_run_that_holds_something_is_never_touched(make: Make) -> None:
    saved = make(run_name="mine").fit()
    before = contents(saved.parent)
    with pytest.raises(ValueError, match="the run's folder must be new or empty, but .*mine already holds a run"):
        make(run_name="mine")
    assert make().fit().parent != make().fit().parent
    assert contents(saved.parent) == before


def test_a_folder_taken_between_planning_and_training_is_not_touched(make: Make) -> None:
    first, second = make(run_name="mine"), make(run_name="mine")
    before = contents(first.fit().parent)
    with pytest.raises(ValueError, match="already holds a run"):
        second.fit()
    assert contents(first.folder.path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stream_that_ends_before_max_tokens_is_reported_to_its_last_step(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sae.data.tokens.HELD_OUT_TOKENS_STREAM", 4 * SEQ)
    trainer = make(stream_of(make_tokens()), max_tokens=10**6, log_every=7)
    saved = trainer.fit()
    assert saved.name == "step_10"
    assert [record["step"] for record in losses(trainer.folder.metrics)] == [7, 10]
    assert "the data ended at step 10 of 31250" in capsys.readouterr().err
    before = trainer.folder.metrics.read_bytes()
    again = make(
        stream_of(make_tokens()), max_tokens=10**6, log_every=7, run_name=trainer.folder.path.name, resume=True
    )
    assert again.fit() == saved
    assert again.folder.metrics.read_bytes() == before


@pytest.fixture(autouse=True)
def no_signal_handler_is_left_behind() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("changes", "min_tokens", "expected"),
    [
        ({}, 32, True),
        ({"micro_acc_steps": 2}, 32, False),
        ({"micro_acc_steps": 2}, 16, True),
        ({"micro_acc_steps": 2, "encode_in_8bit": True}, 32, True),
        ({"encode_in_8bit": False}, 32, False),
        ({"loss_fn": "kl"}, 32, False),
    ],
)
def test_candidates_are_found_in_8_bits_where_that_pays(
    make: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], min_tokens: int, expected: bool
) -> None:
    try:
        eight_bit.check_has_product(torch.device("cpu"))
    except ValueError as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(eight_bit, "MIN_LATENTS", 128)
    monkeypatch.setattr(eight_bit, "MIN_TOKENS", min_tokens)
    monkeypatch.setattr(eight_bit, "MIN_LATENTS_COMPILED", 128)
    monkeypatch.setattr(eight_bit, "MIN_PRE_ACTS_COMPILED", 128 * min_tokens)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    trainer = make(model=tiny_model("gpt_neox", causal_lm="loss_fn" in changes), **changes)
    trainer.initialise()
    trainer.train_step()
    assert all((learner.read_recall() is not None) == expected for learner in trainer.learners.values())


@pytest.mark.parametrize("micro_acc_steps", [1, 2])
def test_with_one_process_no_gradient_of_a_step_is_ever_a_whole_matrix(
    make: Make, micro_acc_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dense(self: Gradients) -> list[Tensor]:
        raise AssertionError("a gradient became a whole matrix")

    def some_rows(self: SegmentRows, rows: slice) -> Tensor:
        assert len(range(*rows.indices(512))) < 512, "a gradient became a whole matrix"
        return getitem(self, rows)

    getitem = SegmentRows.__getitem__
    monkeypatch.setattr(Gradients, "dense", dense)
    monkeypatch.setattr(SegmentRows, "__getitem__", some_rows)
    monkeypatch.setattr("sae.training.adam._ROWS_BYTES", {"cpu": 2048, "cuda": 2048})
    trainer = make(sae=SaeConfig(k=4, num_latents=512), micro_acc_steps=micro_acc_steps)
    trainer.initialise()
    before = {name: one.W_dec.detach().clone() for name, one in trainer.saes.items()}
    assert trainer.train_step() and trainer.train_step()
    assert all(not torch.equal(before[name], one.W_dec) for name, one in trainer.saes.items())


@pytest.mark.parametrize(("num_latents", "told"), [(800, True), (80, False)])
def test_a_run_too_short_for_its_latents_says_how_many_can_fire(
    make: Make, num_latents: int, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make(sae=SaeConfig(k=4, num_latents=num_latents))
    tokens = trainer.total_steps * trainer.tokens_per_step
    trainer.fit()
    err = capsys.readouterr().err
    assert (f"in {tokens:,} tokens at most {tokens:,} of them can fire k times" in err) == told
    assert (f"--num_latents {tokens} or fewer" in err) == told


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, None),
        ({"batch_size": 7}, "5 of the 40 "),
        ({"grad_acc_steps": 3}, "4 of the 40 "),
        ({"batch_size": 1, "grad_acc_steps": 7}, "5 of the 40 "),
        ({"batch_size": 7, "max_tokens": 40 * SEQ}, "5 of the 40 "),
        ({"batch_size": 7, "max_tokens": 35 * SEQ}, None),
    ],
)
def test_sequences_that_fill_no_step_are_told_unless_the_run_ends_before(
    make: Make, options: dict[str, int], left: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    make(**options).initialise()
    told = [line for line in capsys.readouterr().err.splitlines() if "are left out" in line]
    assert [line[: line.index("sequences")] for line in told] == ([] if left is None else [left])
    assert all(("--grad_acc_steps" if "grad_acc_steps" in options else "--batch_size") in line for line in told)


@pytest.mark.parametrize(("recipe", "told"), [("default", True), ("gao2024", False)])
def test_a_run_without_a_compiler_says_what_would_make_it_faster(
    make: Make,
    recipe: Literal["default", "gao2024"],
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sae.ops.native.library", lambda: None)
    make(recipe=recipe).initialise()
    said = capsys.readouterr()
    assert ("install gcc or clang" in said.out + said.err) == told

"""The command line from end to end: what it writes, what it says, and one line for every wrong input."""

import ast
import atexit
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from importlib.metadata import entry_points, version
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
import transformers
from command_inputs import some_texts
from datasets import Dataset, config
from pictures import assert_is_a_picture
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, save_tiny, tiny_model, tiny_tokenizer

import sae.__main__
from sae import Sae, SaeTrainer
from sae.commands.parser import field_docs
from sae.commands.table import COMMANDS, RENAMED, read, renamed
from sae.commands.train import train
from sae.config import RunConfig, SaeConfig
from sae.config.dictionary import Rule
from sae.data import MemmapTokens
from sae.runs import checkpoint
from sae.runs.stop_signals import STOPPING

ROOT = Path(sae.__main__.__file__).parents[1]
TRAIN = COMMANDS["train"]
SMALL = ["--expansion_factor", "4", "--k", "4", "--batch_size", "4", "--ctx_len", "16", "--max_tokens", "512"]
FIXED = ["--no_log_to_wandb", "--save_dir", "runs"]

OPTIONS = {
    "model", "dataset", "model_b", "activations", "split", "text_column", "streaming", "ctx_len", "max_tokens",
    "exclude_tokens",
    "exclude_positions", "data_preprocessing_num_proc",
    "hookpoints", "layers", "layer_stride", "expansion_factor", "num_latents", "k", "selection", "inference_l0",
    "prefixes", "budgets", "crosscode", "transcode", "cross_layer", "tie_decoders", "skip_connection",
    "normalize_decoder", "finetune",
    "batch_size", "grad_acc_steps", "micro_acc_steps", "steps_per_batch", "loss_fn", "reconstruct_first", "lr",
    "lr_warmup_steps", "auxk_alpha", "dead_feature_threshold", "recipe", "seed",
    "save_dir", "run_name", "resume", "resume_changed", "save_every", "keep_last", "save_best",
    "eval_every", "log_every", "log_to_wandb",
    "device", "device_map", "dtype", "load_in_8bit", "attn_implementation", "compile_lm", "encode_in_8bit",
    "distribute_layers", "shard_latents", "revision", "revision_b", "hf_token",
}  # fmt: skip
"""All there are. A new one needs a reason: what can be derived is derived."""


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("sae: error:")]


@pytest.fixture(scope="module", autouse=True)
def quiet_datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, `model`, and the same text in every kind of file."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "gpt_neox")
    texts = [line * 2 for line in some_texts(60)]
    (folder / "text.txt").write_text("\n".join(texts))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = Dataset.from_dict({"text": texts})
    rows.to_parquet(folder / "text.parquet")
    rows.to_csv(folder / "text.csv")
    rows.rename_column("text", "body").to_json(folder / "body.jsonl")
    rows.save_to_disk(folder / "saved")
    ids = [token for text in texts for token in tiny_tokenizer()(text)["input_ids"]]
    np.array(ids, np.uint16).tofile(folder / "tokens.bin")
    for name, content in broken_files(ids).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def broken_files(ids: list[int]) -> dict[str, bytes]:
    return {
        "empty.jsonl": b"",
        "short.jsonl": b'{"text": "too short"}\n',
        "two_rows.jsonl": json.dumps({"text": "a b c d e f g h i j k l m n o p q r s t u v w x y z"}).encode() + b"\n",
        "numbers.jsonl": b'{"text": 1}\n{"text": 2}\n',
        "notes.docx": b"PK",
        "odd.bin": b"123",
        "high.bin": np.array([*ids[:1000], VOCAB_SIZE], np.uint16).tobytes(),
        "high.jsonl": (json.dumps({"input_ids": [*ids[:15], VOCAB_SIZE] * 60}) + "\n").encode(),
        "script/script.py": b"import datasets\n",
        "nothing/readme.md": b"no data here\n",
        "no_config/model.safetensors": b"",
    }


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in this process, in a folder of the test's own that shows `files`."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run_command(*arguments: str) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sae", *arguments])
        return Result(sae.__main__.main(), *capsys.readouterr())

    before = signal.getsignal(signal.SIGINT)
    yield run_command
    signal.signal(signal.SIGINT, before)
    atexit.unregister(sae.__main__._leave)


Run = Callable[..., Result]


def parse(arguments: list[str]) -> Any:
    return read(arguments)[1]


# A run


def test_a_run_prints_a_table_and_the_paths_of_what_it_wrote(run: Run) -> None:
    result = run("model", "text.jsonl", *SMALL, *FIXED)
    assert (result.status, result.errors) == (0, [])
    folder = Path("runs") / "model-text"
    measured = json.loads((folder / "evaluation.json").read_text())
    assert list(measured) == ["layers.0", "layers.1", "layers.2"]
    for name, metrics in measured.items():
        row = next(line for line in result.out.splitlines() if name in line)
        assert f"{metrics['fvu']:.4f}" in row and f"{metrics['l0']:.1f}" in row
    for heading in ("FVU", "L0", "dead", "tokens/s", "held-out"):
        assert heading in result.out
    paths = {line.split()[0]: Path(line.split()[1]) for line in result.out.splitlines()[-3:]}
    assert paths == {
        "checkpoint": folder / "step_8",
        "metrics": folder / "metrics.jsonl",
        "curves": folder / "curves.png",
    }
    checkpoint.check(paths["checkpoint"])
    assert len(paths["metrics"].read_text().splitlines()) == 8
    assert_is_a_picture(paths["curves"])
    assert "FVU 0." in result.err and "tok/s" in result.err
    rate = json.loads((folder / "config.json").read_text())["derived"]["peak_lr"]["layers.0"]
    assert f"peak learning rate {rate:.3g}, derived from the latents and 8 steps" in result.err
    told = run("model", "text.jsonl", *SMALL, *FIXED, "--lr", "1e-3", "--run_name", "given").err
    assert "peak learning rate" not in told


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # `datasets` and .csv
def test_the_same_text_in_any_file_is_the_same_run(run: Run, no_picture: None) -> None:
    def trained_on(name: str) -> bytes:
        folder = name.replace("*", "any").replace(".", "-")
        assert run("model", name, *SMALL, *FIXED, "--layers", "0", "--run_name", folder).status == 0, name
        return Path("runs", folder, "step_8", "layers.0", "sae.safetensors").read_bytes()

    of_lines = trained_on("text.jsonl")
    for name in ("text.csv", "text.parquet", "t*.parquet", "saved"):
        assert trained_on(name) == of_lines, name
    assert trained_on("text.txt") != of_lines  # one document


def test_a_token_file_and_a_stream_train(run: Run, no_picture: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.data.tokens.HELD_OUT_TOKENS_STREAM", 64)
    assert run("model", "tokens.bin", *SMALL, *FIXED, "--run_name", "bin").status == 0
    assert run("model", "text.jsonl", "--streaming", *SMALL, *FIXED, "--run_name", "stream").status == 0
    assert Path("runs/bin/step_8/manifest.json").exists() and Path("runs/stream/step_8/manifest.json").exists()


def test_a_model_without_a_tokenizer_trains_on_tokens_and_is_refused_on_text(
    run: Run, files: Path, no_picture: None
) -> None:
    Path("bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        Path("bare", file).symlink_to(files / "model" / file)
    assert run("bare", "tokens.bin", *SMALL, *FIXED).status == 0
    result = run("bare", "text.jsonl", *SMALL, *FIXED)
    assert result.status == 2 and "must come with a tokenizer" in result.errors[-1]


def test_the_language_model_computes_in_what_it_is_told_or_else_in_what_it_can(
    run: Run, no_picture: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.lm.compute_dtype", lambda device: torch.bfloat16)
    for name, options in {"auto": (), "half": ("--dtype", "bfloat16"), "whole": ("--dtype", "float32")}.items():
        assert run("model", "text.jsonl", *SMALL, *FIXED, "--run_name", name, *options).status == 0
    monkeypatch.setattr("sae.lm.cannot_compute", lambda model: "" if model.dtype == torch.float32 else "no bf16")
    result = run("model", "text.jsonl", *SMALL, *FIXED, "--run_name", "fallback")
    assert "cannot compute in bfloat16 (no bf16); it runs in float32" in result.err
    monkeypatch.setattr("sae.lm.cannot_compute", lambda model: "not for its type")
    result = run("model", "text.jsonl", *SMALL, *FIXED, "--run_name", "either")
    assert result.status == 0 and "cannot compute" not in result.err
    names = ("auto", "half", "either", "whole", "fallback")
    auto, half, either, whole, fallback = (Path("runs", name, "evaluation.json").read_text() for name in names)
    assert auto == half == either != whole == fallback


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by PEFT
def test_an_adapter_is_trained_on_and_evaluated_as_a_model_is(run: Run, tmp_path: Path, no_picture: None) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained("model")
    config = peft.LoraConfig(target_modules=["query_key_value"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained("adapter")
    for name in ("model", "adapter"):
        assert run(name, "text.jsonl", *SMALL, *FIXED, "--run_name", name).status == 0
        assert run("eval", f"runs/{name}").status == 0
    fvu = [Path("runs", name, "evaluation.json").read_text() for name in ("model", "adapter")]
    assert fvu[0] != fvu[1]
    assert "kl_div_with_sae" in next(Path("runs", "adapter").rglob("eval.json")).read_text()


def test_with_the_model_in_8_bits_a_run_trains_on_nearly_the_same_activations(run: Run, no_picture: None) -> None:
    pytest.importorskip("bitsandbytes", reason="8 bits need the extra int8")
    for name, options in (("whole", []), ("small", ["--load_in_8bit"])):
        result = run("model", "text.jsonl", *SMALL, *FIXED, "--run_name", name, *options)
        assert (result.status, result.errors) == (0, [])
    whole, small = (json.loads(Path("runs", name, "evaluation.json").read_text()) for name in ("whole", "small"))
    for hookpoint, metrics in whole.items():
        assert metrics["fvu"] != small[hookpoint]["fvu"] == pytest.approx(metrics["fvu"], rel=0.1)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (["--layers", "0", "2"], ["layers.0", "layers.2"]),
        (["--layer_stride", "2"], ["layers.0", "layers.2"]),
        (["--hookpoints", "layers.*.mlp"], ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]),
        (["--hookpoints", "layers.0", "layers.2.input"], ["layers.0", "layers.2.input"]),
    ],
)
def test_a_choice_of_layers_is_what_is_saved(run: Run, no_picture: None, choice: list[str], names: list[str]) -> None:
    assert run("model", "text.jsonl", *SMALL, *FIXED, *choice).status == 0
    assert list(Sae.load_many("runs/model-text")) == names


def test_an_option_works_by_its_name_of_the_last_release_and_says_the_new_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(RENAMED.values()) <= OPTIONS and not set(RENAMED) & OPTIONS
    for words in (["--wandb_log_frequency", "5"], ["--wandb-log-frequency=5"]):
        now, told = renamed(["model", "text.jsonl", *words])
        assert read(now)[1].log_every == 5 and len(told) == 1
    assert sae.__main__.main(["model", "text.jsonl", "--wandb_log_frequency", "0"]) == 2
    renaming, error = capsys.readouterr().err.splitlines()
    assert renaming == "sae: --wandb_log_frequency is now --log_every; the old name works in this release only"
    assert "log_every must be greater than 0" in error


def test_the_seeds_flags_parse_as_written_and_with_dashes() -> None:
    cfg = parse("EleutherAI/pythia-160m togethercomputer/RedPajama-Data-1T-Sample --attn_implementation=eager".split())
    assert (cfg.model, cfg.dataset) == ("EleutherAI/pythia-160m", "togethercomputer/RedPajama-Data-1T-Sample")
    assert cfg.attn_implementation == "eager"
    cfg = parse(
        "meta-llama/Meta-Llama-3-8B --distribute_layers --batch_size 1 --layer_stride 2 --grad_acc_steps 8 "
        "--ctx_len 2048 --auxk_alpha 0 --load_in_8bit --micro_acc_steps 2".split()
    )
    assert cfg.distribute_layers and cfg.load_in_8bit and cfg.auxk_alpha == 0
    assert (cfg.batch_size, cfg.layer_stride, cfg.grad_acc_steps, cfg.micro_acc_steps) == (1, 2, 8, 2)
    cfg = parse("m d --layers 16 24 --grad-acc-steps 8 --no-normalize-decoder --k 7".split())
    assert (cfg.layers, cfg.grad_acc_steps, cfg.sae.normalize_decoder, cfg.sae.k) == ([16, 24], 8, False, 7)
    assert parse([]) == RunConfig()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--encode_in_8bit"], True),
        (["--encode-in-8bit", "--k", "4"], True),
        (["--no_encode_in_8bit"], False),
        (["--no-encode-in-8bit"], False),
        (["--encode_in_8bit", "False"], False),
        (["--encode_in_8bit", "None"], None),
    ],
)
def test_a_choice_that_is_made_by_itself_can_be_made_either_way(words: list[str], expected: bool | None) -> None:
    assert parse(words).encode_in_8bit is expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--tie_decoders"], True),
        (["--tie_decoders", "True"], True),
        (["--tie_decoders", "--k", "4"], True),
        (["--tie-decoders", "source"], True),
        (["--tie_decoders", "target"], "target"),
        (["--tie_decoders=target"], "target"),
        (["--no_tie_decoders"], False),
    ],
)
def test_decoders_are_tied_by_source_without_a_word(words: list[str], expected: bool | str) -> None:
    cfg = parse(["--cross_layer", *words]).sae
    assert isinstance(cfg, SaeConfig) and cfg.tie_decoders == expected and type(cfg.tie_decoders) is type(expected)


PLANNED_ONCE = (
    "World.from_environment", "check_processes", "continue_after_restart", "RunFolder.plan", "derived_before",
    "combinations", "plan_saes", "resolve_hookpoints", "check_ctx_len", "check_exclusions", "token_batches",
    "model_name", "count_steps", "plan_steps", "placement_of", "warmup_steps", "peak_lr", "Recipe.named",
)  # fmt: skip


def test_the_options_that_begin_as_typed_are_the_ones_that_were_meant(run: Run) -> None:
    for typed, meant in {
        "--layer": "--layer_stride INT or --layers [INT [INT ...]]",
        "--batch": "--batch_size INT",
        "--latents": "--num_latents INT or --shard_latents INT",
    }.items():
        for words in ([typed, "5"], [f"{typed}=5"]):
            told = run("model", "text.jsonl", *words).err
            assert f"there is no option {typed}; perhaps you meant {meant}; sae --help" in told


@pytest.mark.parametrize(
    "words",
    [["--k", "4", "8"], ["--lr", "1e-3", "2e-3"], ["--selection", "topk", "batchtopk"], ["--layers", "0", "-1"],
     ["--hookpoints", "a=b", ""], ["--lr", "-1"], ["--k", "4,8"], ["--k", "x"], ["--hf_tokn", "x"]],
)  # fmt: skip
def test_an_option_means_the_same_with_its_value_behind_an_equals_sign(words: list[str]) -> None:
    def meant(words: list[str]) -> RunConfig | str:
        try:
            return parse(["model", "text", *words])
        except ValueError as error:
            return str(error)

    name, value, *others = words
    assert meant([f"{name}={value}", *others]) == meant(words)
    assert meant(["--run_name=-x"]) == RunConfig("model", "text", run_name="-x")  # what else would be an option


@pytest.mark.parametrize("resumes", [False, True])
def test_what_a_run_decides_is_decided_once(run: Run, no_picture: None, resumes: bool) -> None:
    command = ["model", "text.jsonl", *SMALL, *FIXED, "--layers", "1", "--run_name", "run"]
    if resumes:
        assert run(*command).status == 0
    package, counts = str(Path(sae.__file__).parent), Counter[str]()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            counts[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        result = run(*command, *["--resume"] * resumes)
    finally:
        sys.setprofile(None)
    assert result.status == 0, result.err
    assert {name: counts[name] for name in PLANNED_ONCE} == dict.fromkeys(PLANNED_ONCE, 1)


def test_config_json_repeats_the_run_to_the_bit(run: Run, no_picture: None) -> None:
    chosen = ["--layers", "1", "--seed", "7", "--exclude_positions", "0", "--lr", "0.001", "--run_name"]
    assert run("model", "text.jsonl", *SMALL, *FIXED, *chosen, "first").status == 0
    document = json.loads(Path("runs/first/config.json").read_text())
    assert document["command"] == ["sae", "model", "text.jsonl", *SMALL, *FIXED, *chosen, "first"]
    assert document["versions"]["torch"] == version("torch")
    assert set(document["versions"]) >= {"python", "sae", "torch", "transformers", "datasets"}
    options = document["options"] | {"run_name": "again"}
    cfg = RunConfig(**options | {"sae": SaeConfig(**options["sae"])})
    assert train(cfg) == 0
    for name in ("sae.safetensors", "state.safetensors"):
        first, again = (Path("runs", run_name, "step_8", "layers.1", name) for run_name in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("spelling", [["--hf_token", "hf_SECRET"], ["--hf-token=hf_SECRET"], ["--hf_token=hf_SECRET"]])
def test_the_token_is_in_no_file_and_in_no_output(
    run: Run, no_picture: None, monkeypatch: pytest.MonkeyPatch, spelling: list[str]
) -> None:
    good = run("model", "text.jsonl", *SMALL, *FIXED, "--layers", "0", *spelling)
    bad = run("model", "who/knows", *SMALL, *FIXED, *spelling)
    strange = run("model", "text.jsonl", "--nonsense", *spelling)
    assert (good.status, bad.status, strange.status) == (0, 2, 2)
    for result in (good, bad, strange):
        assert "SECRET" not in result.out + result.err
    written = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert len(written) > 5 and all(b"SECRET" not in path.read_bytes() for path in written)
    assert "SECRET" not in repr(RunConfig(hf_token="hf_SECRET"))


def test_wandb_is_never_asked_for_and_its_absence_is_one_line(run: Run, no_picture: None) -> None:
    result = run("model", "text.jsonl", *SMALL, "--save_dir", "runs", "--layers", "0")
    (line,) = [line for line in result.err.splitlines() if "Weights & Biases" in line]
    assert line.startswith("not logging to Weights & Biases: ") and line.endswith("runs/model-text/metrics.jsonl")
    assert "Weights" not in run("model", "text.jsonl", *SMALL, *FIXED, "--layers", "0").err


def test_an_unnamed_run_never_takes_another_ones_folder(run: Run, no_picture: None) -> None:
    for _ in range(3):
        assert run("model", "text.jsonl", *SMALL, *FIXED, "--layers", "0").status == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["model-text", "model-text-2", "model-text-3"]


# Bad input


BAD = [
    # the model
    (["./nowhere", "text.jsonl"], ["nowhere", "does not exist"]),
    (["who/knows", "text.jsonl"], ["who/knows", "offline", "local folder"]),
    (["a b c", "text.jsonl"], ["a b c", "hub id"]),
    (["no_config", "text.jsonl"], ["no_config", "config.json"]),
    (["text.jsonl", "text.jsonl"], ["text.jsonl", "folder"]),
    (["model.gguf", "text.jsonl"], ["model.gguf", "does not exist"]),
    # the data
    (["model", "texts.jsonl"], ["texts.jsonl", "near names", "text.jsonl"]),
    (["model", "*.xyz"], ["*.xyz", "existing file, folder or glob"]),
    (["model", "who/knows"], ["who/knows", "HF_HUB_OFFLINE is set"]),
    (["model", "script"], ["script", "loading script", "parquet or jsonl"]),
    (["model", "nothing"], ["nothing", "data files"]),
    (["model", "notes.docx"], [".docx", ".jsonl", "convert"]),
    (["model", "body.jsonl"], ["text column", "(body)", "'text'", "--text_column"]),
    (["model", "text.jsonl", "--text_column", "prose"], ["(text)", "'prose'", "--text_column"]),
    (["model", "numbers.jsonl"], ["text column", "strings", "got int", "numbers.jsonl"]),
    (["model", "empty.jsonl"], ["at least one row", "empty.jsonl"]),
    (["model", "short.jsonl"], ["at least one chunk of 16 tokens", "--ctx_len"]),
    (["model", "two_rows.jsonl"], ["at least one batch of batch_size=4", "--batch_size"]),
    (["model", "text.jsonl", "--split", "test"], ["split", "train", "test", "--split"]),
    (["model", "text.jsonl", "--max_tokens", "63"], ["one step", "--max_tokens"]),
    (["model", "text.jsonl", "--grad_acc_steps", "1000"], ["one step", "--grad_acc_steps"]),
    (["model", "odd.bin"], ["odd.bin", "3 bytes", "multiple of 2"]),
    (["model", "high.bin"], ["vocabulary size 320", "320 at position 1000"]),
    (["model", "high.jsonl"], ["vocabulary size 320", "got 320"]),
    (["model", "missing.bin"], ["missing.bin"]),
    (["model", "text.jsonl", "--streaming", "--max_tokens", "None"], ["--streaming", "--max_tokens"]),
    (["model", "text.jsonl", "--data_preprocessing_num_proc", "0"], ["data_preprocessing_num_proc", "got 0"]),
    # sizes
    (["model", "text.jsonl", "--ctx_len", "65"], ["--ctx_len", "limit=64", "got 65"]),
    (["model", "text.jsonl", "--ctx_len", "0"], ["ctx_len", "got 0"]),
    (["model", "text.jsonl", "--k", "129"], ["k must be between 1 and num_latents=128", "got 129", "--k"]),
    (["model", "text.jsonl", "--k", "9", "--num_latents", "8"], ["num_latents=8", "got 9", "--k"]),
    (["model", "text.jsonl", "--k", "0"], ["k must be greater than 0", "got 0"]),
    (["model", "text.jsonl", "--expansion_factor", "0"], ["expansion_factor", "got 0"]),
    (["model", "text.jsonl", "--num_latents", "-8"], ["num_latents", "got -8"]),
    *(
        (["model", "text.jsonl", f"--{name}", value], [name, "greater than 0", f"got {value}"])
        for name in ("batch_size", "grad_acc_steps", "micro_acc_steps", "save_every", "log_every")
        for value in ("0", "-1")
    ),
    (["model", "text.jsonl", "--max_tokens", "0"], ["max_tokens", "got 0"]),
    (["model", "text.jsonl", "--dead_feature_threshold", "0"], ["dead_feature_threshold", "got 0"]),
    (["model", "text.jsonl", "--lr", "0"], ["lr", "got 0"]),
    (["model", "text.jsonl", "--lr", "nan"], ["lr", "got nan"]),
    (["model", "text.jsonl", "--lr", "inf"], ["lr", "got inf"]),
    (["model", "text.jsonl", "--auxk_alpha", "-0.5"], ["auxk_alpha", "got -0.5"]),
    (["model", "text.jsonl", "--lr_warmup_steps", "-1"], ["lr_warmup_steps", "got -1"]),
    # places
    (["model", "text.jsonl", "--layers", "3"], ["--layers", "3 layers", "got 3"]),
    (["model", "text.jsonl", "--layers", "0", "-1"], ["layers", "got -1"]),
    (["model", "text.jsonl", "--hookpoints", "layer.*.mlp"], ["layer.*.mlp", "matches nothing", "layers.*.mlp"]),
    (["model", "text.jsonl", "--layers", "0", "--layer_stride", "2"], ["--layers", "--layer_stride", "one of them"]),
    (["model", "text.jsonl", "--layers", "0", "--hookpoints", "layers.0"], ["--hookpoints", "--layers"]),
    (["model", "text.jsonl", "--layer_stride", "2", "--hookpoints", "layers.0"], ["--hookpoints", "--layer_stride"]),
    (["model", "text.jsonl", "--layer_stride", "0"], ["layer_stride", "got 0"]),
    (["model", "text.jsonl", "--exclude_tokens", "-1"], ["exclude_tokens", "got -1"]),
    (["model", "text.jsonl", "--exclude_positions", *map(str, range(16))], ["--exclude_positions", "got none"]),
    # the machine
    (["model", "text.jsonl", "--device", "cuda"], ["--device", "'cuda'", "--device cpu"]),
    (["model", "text.jsonl", "--device", "toaster"], ["--device", "'toaster'", "--device cpu"]),
    (["model", "text.jsonl", "--device_map", "cuda:1"], ["device_map", "balanced_low_0", "'cuda:1'"]),
    (["model", "text.jsonl", "--shard_latents", "2"], ["shard_latents", "processes, 1", "torchrun"]),
    (["model", "text.jsonl", "--attn_implementation", "magic"], ["magic"]),
    # the output
    (["model", "text.jsonl", "--run_name", "old"], ["runs/old", "already holds a run", "--run_name"]),
    (["model", "text.jsonl", "--run_name", "../old"], ["run_name", "'../old'", "--save_dir"]),
    (["model", "text.jsonl", "--save_dir", "text.txt"], ["text.txt", "is a file", "--save_dir"]),
    (["model", "text.jsonl", "--save_dir", "text.txt/runs"], ["text.txt", "is a file", "--save_dir"]),
    (["model", "text.jsonl", "--finetune", "nowhere"], ["nowhere", "cannot be had"]),
    (["model", "text.jsonl", "--finetune", "model"], ["model", "must hold", "layers.0"]),
    # the line itself
    (["model", "text.jsonl", "--nonsense", "3"], ["--nonsense"]),
    (["model", "text.jsonl", "--batch_sise", "3"], ["--batch_sise", "--batch_size"]),
    (["model", "text.jsonl", "--k", "many"], ["k must be a whole number, got many"]),
    (["model", "text.jsonl", "--k"], ["k must be followed by a value, got none", "--k"]),
    (["model", "text.jsonl", "--max_tokens", "65k"], ["a whole number, got 65k", "--max_tokens 65000"]),
    (["model", "text.jsonl", "--max-tokens=1.5M"], ["a whole number, got 1.5M", "--max_tokens 1500000"]),
    (["model", "text.jsonl", "--max_tokens", "1e6"], ["got 1e6; write --max_tokens 1000000"]),
    (["model", "text.jsonl", "--batch_size", "1.5"], ["batch_size must be a whole number, got 1.5"]),
    (["model", "text.jsonl", "--lr", "fast"], ["lr must be a number, got fast"]),
    (["model", "text.jsonl", "--layers", "1", "b"], ["layers must be a whole number, got b"]),
    (["model", "text.jsonl", "--loss_fn", "mse"], ["loss_fn must be fvu, ce or kl, got mse"]),
    (["model", "text.jsonl", "--inference_l0", "4"], ["inference_l0 must go with the selection batchtopk", "got topk"]),
    *(
        (["model", "text.jsonl", *words.split()], [f"the values of {out.split()[0][2:]} must", f"; write {out}"])
        for words, out in {
            "--prefixes 8,32": "--prefixes 8 32",
            "--k 4,8": "--k 4 8",
            "--lr=1e-3,2e-3": "--lr 1e-3 2e-3",
            "--layers 0,1": "--layers 0 1",
            "--hookpoints layers.0,layers.[1,2].mlp": "--hookpoints layers.0 layers.[1,2].mlp",
            "--exclude-positions 0,1": "--exclude_positions 0 1",
        }.items()
    ),
    (["eval", "model", "--baselines", "random,pca"], ["baselines", "--baselines random pca"]),
    (["model", "text.jsonl", "more"], ["more"]),
    (["eval", "--nothing"], ["--nothing"]),
]  # fmt: skip


def test_layers_are_chosen_from_a_cache_whatever_class_holds_the_text_model(run: Run, no_picture: None) -> None:
    tiny_model("gemma3_multimodal").save_pretrained("several")
    tiny_tokenizer().save_pretrained("several")
    assert run("cache", "several", "text.jsonl", "--ctx_len", "16", "--activations", "acts").status == 0
    result = run(
        "--activations", "acts", "--layers", "1", "--num_latents", "64", "--k", "4", *FIXED, "--run_name", "one"
    )
    assert result.status == 0, result.err
    assert list(Sae.load_many("runs/one")) == ["layers.1"]


def test_an_option_that_is_typed_is_never_overruled_in_silence_by_what_finetune_or_a_cache_brings(
    run: Run, no_picture: None
) -> None:
    start = ["model", "text.jsonl", *SMALL, *FIXED, "--hookpoints", "layers.1"]
    assert run(*start, "--selection", "batchtopk", "--run_name", "first").status == 0
    further = [*start, "--finetune", "runs/first"]
    for words in (["--selection", "topk"], ["--selection=topk"], ["--normalize-decoder"], ["--k", "32"]):
        same = words == ["--normalize-decoder"]  # what the dictionary has
        result = run(*further, *words, "--run_name", "same" if same else "refused")
        assert result.status == (0 if same else 2), result.err
        if not same:
            name = words[0].removeprefix("--").split("=")[0]
            assert f"{name} comes with finetune" in result.errors[0] and f"leave out --{name}" in result.errors[0]
    assert run(*further, "--run_name", "more").status == 0
    assert Sae.load_many("runs/more")["layers.1"].cfg.selection == "batchtopk"

    assert run("cache", "model", "text.jsonl", "--layers", "1", "--ctx_len", "16", "--activations", "acts").status == 0
    cached = ["--activations", "acts", "--expansion_factor", "4", "--k", "4", *FIXED, "--run_name", "cached"]
    refused = run(*cached, "--ctx_len", "2048")  # the default
    assert refused.status == 2 and "ctx_len must be that of the activations, 16, got 2048" in refused.errors[0]
    assert run(*cached, "--split", "train").status == 0


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments)[:60] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/metrics.jsonl").write_text("{}\n")
    defaults = [] if arguments[0] in ("eval", "cache") else [*with_defaults(arguments), *FIXED]
    result = run(*arguments[:2], *defaults, *arguments[2:])
    assert result.status == 2, result
    assert len(result.errors) == 1 and "Traceback" not in result.err
    assert result.out == ""
    for word in words:
        assert word in result.errors[0], result.errors[0]
    assert tree("runs") == {"old": None, "old/metrics.jsonl": b"{}\n"}


def with_defaults(arguments: list[str]) -> list[str]:
    """SMALL without the options that are given."""
    pairs = zip(SMALL[::2], SMALL[1::2], strict=True)
    return [word for name, value in pairs if name not in arguments for word in (name, value)]


def tree(folder: str) -> dict[str, bytes | None]:
    paths = sorted(Path(folder).rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def test_a_disk_without_space_is_found_before_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    result = run("model", "text.jsonl", *SMALL, *FIXED)
    assert result.status == 2 and not Path("runs").exists()
    assert re.search("save_dir must have space .* make room or choose another --save_dir", result.errors[0])


def test_a_disk_that_fills_up_is_one_line_and_the_checkpoints_before_stay(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    calls = iter(range(100))

    def fails_later(tensors: dict[str, torch.Tensor], path: Path, about: object) -> None:
        if next(calls) >= 9:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr("sae.formats.files.save_file", fails_later)
    result = run("model", "text.jsonl", *SMALL, *FIXED, "--save_every", "2")
    assert result.status == 2 and "Traceback" not in result.err
    assert len(result.errors) == 1 and "No space left on device" in result.errors[0]
    (left,) = [path for path in Path("runs/model-text").iterdir() if path.name.startswith("step_")]
    checkpoint.check(left)


def test_a_nan_in_the_model_is_one_line_with_its_place_before_anything_is_written(run: Run, files: Path) -> None:
    shutil.copytree(files / "model", "poisoned")
    weights = load_file("poisoned/model.safetensors")
    weights["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][0] = torch.nan
    save_file(weights, "poisoned/model.safetensors", {"format": "pt"})
    result = run("poisoned", "text.jsonl", *SMALL, *FIXED)
    assert (result.status, len(result.errors)) == (2, 1) and "Traceback" not in result.err
    assert "layers.1: an activation is not finite in batch 0, sequence 0, position 0" in result.errors[0]
    assert not Path("runs").exists()


def test_a_loss_that_diverges_is_one_line_with_hookpoint_and_step(run: Run) -> None:
    result = run("model", "text.jsonl", *SMALL, *FIXED, "--lr", "1e30", "--layers", "1")
    assert (result.status, len(result.errors)) == (2, 1) and "Traceback" not in result.err
    assert re.search(r"layers.1: the loss is not finite at step \d+.* lower --lr.*saved in runs/", result.errors[0])


def test_ctrl_c_saves_says_where_and_ends_with_130(run: Run, no_picture: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, train_step = iter(range(100)), SaeTrainer.train_step

    def interrupted(self: SaeTrainer) -> bool:
        if next(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return train_step(self)

    monkeypatch.setattr(SaeTrainer, "train_step", interrupted)
    result = run("model", "text.jsonl", *SMALL, *FIXED)
    assert result.status == 130 and result.errors == []
    assert "stopped at step 3 of 8; saved in runs/model-text/step_3" in result.err
    checkpoint.check(Path("runs/model-text/step_3"))


@pytest.mark.parametrize(("where", "words"), [
    ("sae.lm.load_skeleton", "nothing was written"),
    ("sae.training.first_look.notes", "nothing was written"),
    ("sae.training.trainer.evaluate_reconstruction", "--resume continues from runs/model-text/step_8"),
])  # fmt: skip
def test_ctrl_c_outside_training_says_the_truth_about_what_is_on_disk(
    run: Run, monkeypatch: pytest.MonkeyPatch, where: str, words: str
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    result = run("model", "text.jsonl", *SMALL, *FIXED)
    assert result.status == 130 and words in result.err and "Traceback" not in result.err
    assert ("nothing was written" in result.err) == (not Path("runs").exists())


def too_large(self: SaeTrainer) -> bool:
    torch.empty(2**50)
    return True


def too_large_for_a_gpu(self: SaeTrainer) -> bool:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
    )


@pytest.mark.parametrize(("step", "told"), [
    (too_large, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4503599627370496 bytes"),
    (too_large_for_a_gpu, r"\(CUDA out of memory. Tried to allocate 2.00 GiB\)"),
])  # fmt: skip
def test_memory_that_is_used_up_is_told_in_a_line_and_the_run_goes_on_with_less(
    run: Run, no_picture: None, monkeypatch: pytest.MonkeyPatch, step: Any, told: str
) -> None:
    train_step = SaeTrainer.train_step

    def one_that_fails(self: SaeTrainer) -> bool:
        return step(self) if self.step == 6 else train_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(SaeTrainer, "train_step", one_that_fails)
        result = run("model", "text.jsonl", *SMALL, *FIXED)
    (line,) = result.errors
    assert result.status == 2 and re.search(told, line)
    assert "; try a higher --micro_acc_steps, a lower --batch_size, fewer --num_latents, fewer --hookpoints or" in line
    assert line.endswith("stopped at step 6; the state before is saved in runs/model-text/step_6")
    less = ["--micro_acc_steps", "2", "--resume", "--resume_changed", "micro_acc_steps"]
    with_less = run("model", "text.jsonl", *SMALL, *FIXED, *less)
    assert with_less.status == 0
    checkpoint.check(Path("runs/model-text/step_8"))


def test_an_error_of_a_program_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SaeTrainer) -> bool:
        raise RuntimeError("a tensor is on the wrong device")

    monkeypatch.setattr(SaeTrainer, "train_step", broken)
    with pytest.raises(RuntimeError, match="on the wrong device"):
        run("model", "text.jsonl", *SMALL, *FIXED)


def test_a_message_that_the_parser_breaks_is_told_whole_and_without_what_stands_beside_an_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sae.__main__.main(["model", "text", "--selection", "relu"]) == 2
    assert f"must be {', '.join(get_args(Rule)[:-1])} or {get_args(Rule)[-1]}, got" in capsys.readouterr().err
    unknown = [f"--unknown_{'x' * 30}_{n}" for n in range(3)]
    assert sae.__main__.main(["model", "text", *unknown, "hf_secret"]) == 2
    error = capsys.readouterr().err
    assert all(option in error for option in unknown) and "hf_secret" not in error
    for words, said in {"--hf_tokn hf-secret": "there is no option --hf_tokn;", "--auxk_alpha 1 2e-3": "2e-3"}.items():
        assert sae.__main__.main(["model", "text", *words.split()]) == 2
        error = capsys.readouterr().err
        assert said in error and "-secret" not in error and "no option -3" not in error


TOO_MANY = "there is no place for {}: what stands before takes no more words; sae"
MISPLACED = {
    "model text maybe": TOO_MANY.format("maybe"),
    "eval run model text maybe": TOO_MANY.format("maybe"),
    "--resume model text maybe": TOO_MANY.format("maybe"),
    "model text hf_secret": TOO_MANY.format("hf_…"),
    "model text --k 8 hf_secret": TOO_MANY.format("hf_…"),
    "model text --k hf_secret": "k must be a whole number, got hf_…; choose another",
    "model text --k 4 three": "k must be a whole number, got three; choose another",
    "model text --k 4 8k": "k must be a whole number, got 8k; write --k 8000",
    "model text --lr 1e-3 abc": "lr must be a number, got abc; choose another",
    "model text --selection topk relu": "selection must be topk, batchtopk or groupmax, got relu; choose another",
    "model text --batch_size 1 2": "batch_size takes one value, got 1 and 2; leave out one",
    "model text --resume yes": "resume takes no value, got yes; write --resume alone, or --no_resume",
    "model text --streaming=False": "streaming takes no value, got False; write --no_streaming",
    "model text --tie_decoders sideways": "tie_decoders must be source or target, got sideways; choose another",
    "model text --tie_decoders=sideways": "tie_decoders must be source or target, got sideways; choose another",
    "model text --max_tokens 65,000": "max_tokens must be a whole number, got 65,000; write --max_tokens 65000",
    "model text --inference_l0 2,5": "inference_l0 must be a number, got 2,5; write --inference_l0 2.5",
    "model text --num_latents 32,768": "write --num_latents 32 768 for several, or --num_latents 32768 for one",
    "model text --layers 1 2,3": "write --layers 1 2 3",
    "model text --layers 0,1 2": "write --layers 0 1 2",
}


@pytest.mark.parametrize("words", MISPLACED)
def test_words_too_many_or_badly_written_are_told_with_the_way_out(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sae.__main__.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert MISPLACED[words] in line and "secret" not in line


# The list of options


def test_the_list_of_options_is_frozen() -> None:
    offered = [name for names in TRAIN.groups.values() for name in names]
    assert len(offered) == len(set(offered))
    assert set(offered) == OPTIONS
    known = {f.name for f in (*fields(RunConfig), *fields(SaeConfig))}
    assert known - OPTIONS == {"sae", "d_in"}  # the group, and what the model decides


def help_text(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        sae.__main__.main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands_and_training_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys)
    for name, command in COMMANDS.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"sae {name} "))
        assert command.description[:30] in line
        own = help_text(capsys, name)
        assert f"usage: sae {name} " in own and "Commands" not in own
    assert parse(["train", "m", "d", "--k", "7"]) == parse(["m", "d", "--k", "7"])


def test_help_shows_every_option_with_its_text_and_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys)
    shown = set(re.findall(r"^\W{1,3}--(\w+)", text, re.MULTILINE)) | {"model", "dataset"}
    assert shown == OPTIONS
    assert "MODEL" in text and "DATASET" in text
    assert all(f"{heading} options" in text for heading in TRAIN.groups)
    assert text.count("(default:") == len(OPTIONS)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_is_documented_under_itself_and_read_somewhere(name: str) -> None:
    docs = field_docs(SaeConfig) | field_docs(RunConfig)
    assert len(docs[name]) > 15 and docs[name].endswith(".")
    assert name in OPTIONS_READ


def options_read() -> set[str]:
    """Attributes that are read from a configuration: anywhere but in its own checks and where it is parsed."""
    trees = {path: ast.parse(path.read_text()) for path in (ROOT / "sae").rglob("*.py")}
    config = [trees.pop(path) for path in (ROOT / "sae" / "config").glob("*.py")]
    readers: list[ast.AST] = [*trees.values()]
    readers += [
        f
        for tree in config
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef) and f.name in ("latents_for", "levels_for")
    ]
    return {node.attr for tree in readers for node in ast.walk(tree) if is_read_from_a_config(node)}


def is_read_from_a_config(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return False
    owner = node.value
    return (isinstance(owner, ast.Name) and owner.id in ("cfg", "self")) or (
        isinstance(owner, ast.Attribute) and owner.attr == "cfg"
    )


OPTIONS_READ = options_read()


# The process


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, **options)


def test_help_answers_in_under_two_seconds() -> None:
    started = time.perf_counter()
    done = python("-m", "sae", "--help")
    assert time.perf_counter() - started < 2
    assert done.returncode == 0 and "--batch_size" in done.stdout and done.stderr == ""


def test_importing_sae_imports_no_heavy_library_prints_nothing_and_decides_nothing() -> None:
    code = """
import sys, random, signal, logging
handler, level = signal.getsignal(signal.SIGINT), logging.getLogger().level
import sae, sae.config, sae.__main__
assert signal.getsignal(signal.SIGINT) is handler and logging.getLogger().level == level
print(*{"torch", "transformers", "datasets", "matplotlib", "numpy", "triton"} & set(sys.modules), end="")
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_every_public_name_prints_nothing_and_changes_no_global_of_torch() -> None:
    code = """
import torch
import transformers
before = (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),
          torch.is_grad_enabled(), torch.get_float32_matmul_precision())
import sae, sae.data, sae.lm
for name in sae.__all__:
    getattr(sae, name)
assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),
                  torch.is_grad_enabled(), torch.get_float32_matmul_precision())
import sys
assert not {"matplotlib", "wandb", "bitsandbytes"} & set(sys.modules)
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_real_ctrl_c_saves_and_the_line_on_a_terminal_has_no_traceback(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sae", str(files / "model"), str(files / "tokens.bin"), *SMALL[:-2], *FIXED]
    options = ["--layers", "0", "--batch_size", "1", "--grad_acc_steps", "1", "--run_name", "mine"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*command, *options], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "mine" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.count(STOPPING) == 1 and "Traceback" not in stderr and "saved in runs/mine/step_" in stderr
    step = checkpoint.latest(tmp_path / "runs" / "mine")
    assert step is not None and f"saved in runs/mine/{step.name}" in stderr
    checkpoint.check(step)


@pytest.mark.parametrize(("file", "function", "words"), [
    ("torch/__init__.py", "<module>", "stopped while its libraries were loaded"),
    ("lm/load.py", "load_skeleton", "stopped; nothing was written"),
])  # fmt: skip
@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_at_the_start_or_while_the_process_ends_has_no_traceback(
    files: Path, tmp_path: Path, file: str, function: str, words: str, again: bool
) -> None:
    code = f"""
import signal, sys
def press(frame, event, function):
    if event == "call" and frame.f_code.co_name == {function!r} and frame.f_code.co_filename.endswith({file!r}):
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
from sae.__main__ import main
sys.setprofile(press)
status = main()
if {again}:
    signal.raise_signal(signal.SIGINT)
sys.exit(status)
"""
    done = python("-c", code, str(files / "model"), str(files / "tokens.bin"), "--ctx_len", "16", cwd=tmp_path)
    assert done.stderr == f"sae: {words}\n"
    assert done.returncode == (-signal.SIGINT if again and function != "<module>" else 130)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_an_object_is_removed_is_not_lost(tmp_path: Path) -> None:
    code = """
import signal, sys, time
from sae.__main__ import main
class Removed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def stop(*arguments, **options):
    Removed()
    time.sleep(60)
import sae.lm
sae.lm.load_skeleton = stop
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
    done = python("-c", code, "model", "text", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "sae: stopped; nothing was written\n")


def test_ctrl_c_while_something_is_imported_late_says_what_is_on_disk_as_ever(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nprint('imported')\n")
    code = """
import signal, sys, time
from sae.__main__ import main
def stop(*arguments, **options):
    import late
    time.sleep(60)
import sae.lm
sae.lm.load_skeleton = stop
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
    done = python("-c", code, "model", "text", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "imported\n", "sae: stopped; nothing was written\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_letters_is_shown_what_it_can_show(tmp_path: Path, encoding: str) -> None:
    name = "müll-→"
    Sae(4, SaeConfig(num_latents=8, k=2)).save_to_disk(tmp_path / name)
    command = [sys.executable, "-m", "sae", "info", name]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    in_the_background = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, encoding=encoding, preexec_fn=in_the_background
    )
    assert done.returncode == 0 and done.stderr == ""
    assert ("müll-?" if encoding == "latin-1" else "m?ll-?") in done.stdout


def test_a_stopped_process_with_a_thread_at_work_in_pytorch_does_not_abort(tmp_path: Path) -> None:
    code = """
import atexit, signal, sys, threading, torch
from sae.__main__ import main
def work():
    while True:
        torch.ones(500, 500) @ torch.ones(500, 500)
def stop(*arguments, **options):
    atexit.register(print, "others come before")
    raise KeyboardInterrupt
import sae.lm
sae.lm.load_skeleton = stop
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
sys.exit(main())
"""
    for _ in range(3):
        done = python("-c", code, "model", "text", cwd=tmp_path)
        assert done.returncode == 130 and done.stderr == "sae: stopped; nothing was written\n"
        assert done.stdout == "others come before\n"


def test_a_terminal_shows_no_colours_of_the_parser_and_nothing_beside_an_unknown_option() -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    command = [sys.executable, "-m", "sae", "model", "text", "--unknown", "hf_secret"]
    done = subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    said = os.read(ours, 10_000).decode()
    os.close(ours), os.close(theirs)
    assert done.returncode == 2 and said == "sae: error: there is no option --unknown; sae --help lists the options\r\n"


def test_a_reader_that_had_enough_is_no_error(files: Path) -> None:
    done = python("-c", "import sys; from sae.__main__ import main; sys.stdout.close(); sys.exit(main(['eval']))")
    assert done.returncode == 2
    piped = subprocess.run(f"{sys.executable} -m sae --help | head -1", shell=True, capture_output=True, text=True)
    assert "usage: sae" in piped.stdout and "Traceback" not in piped.stderr


def test_the_console_script_is_the_same_command() -> None:
    (script,) = entry_points(group="console_scripts", name="sae")
    assert script.load() is sae.__main__.main


def test_the_token_file_of_these_tests_is_what_it_says(files: Path) -> None:
    assert len(MemmapTokens(files / "tokens.bin", 16, VOCAB_SIZE)) > 100

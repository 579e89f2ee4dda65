"""`--model_b` from end to end: train, cache, evaluate, describe, and one line for every two models that do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_inputs import some_texts
from tiny_models import save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import sae.__main__
from sae import Sae
from sae.browser import Index
from sae.config import RunConfig, SaeConfig

SMALL = ["--num_latents", "96", "--k", "4", "--ctx_len", "16", "--batch_size", "4", "--max_tokens", "1024"]
FIXED = ["--no_log_to_wandb", "--save_dir", "runs", "--device", "cpu", "--dtype", "float32", "--layers", "0", "2"]
TRAIN = ["model", "text.jsonl", *SMALL, *FIXED, "--crosscode"]

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with one tokenizer, a third with other merges, and text."""
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("model", 0), ("other", 1), ("strange", 2)):
        save_tiny(folder / name, "gpt_neox", seed=seed)
    tiny_tokenizer(sentences=("zebra zebra quartz quartz jukebox jukebox",) * 3).save_pretrained(folder / "strange")
    rows = "".join(json.dumps({"text": line}) + "\n" for line in some_texts(300))
    (folder / "text.jsonl").write_text(rows)
    return folder


@pytest.fixture
def run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_picture: None
) -> Run:
    """`sae …` in a folder of the test's own, with `files` copied; returns status, output and the errors."""
    import datasets

    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run_command(*arguments: str) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        status = sae.__main__.main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, [line for line in err.splitlines() if line.startswith("sae: error:")]

    return run_command


def test_a_run_of_two_models_is_trained_measured_described_and_shown(run: Run) -> None:
    status, out, _ = run(*TRAIN, "--model_b", "other")
    assert status == 0 and "b:layers.2" in out
    recorded = json.loads(Path("runs/model-other-text/config.json").read_text())
    assert Path(recorded["options"]["model_b"]).name == "other" and Path(recorded["options"]["model_b"]).is_absolute()

    status, out, errors = run("eval", "runs/model-other-text", "--device", "cpu", "--out", "there")
    assert status == 0 and not errors and "a alone" in out and "b alone" in out
    found = json.loads(Path("there/eval.json").read_text())
    (measured,), (difference,) = found["results"].values(), found["differences"].values()
    assert list(measured) == ["a:layers.0", "a:layers.2", "b:layers.0", "b:layers.2", "a:all", "b:all"]
    assert all(each["metrics"]["kl_div_with_sae"] > 0 for each in measured.values())
    said = difference["crosscoder"]
    assert sum(said["counts"].values()) == said["fired"] == sum(said["relative_norm"]) > 0
    assert found["about"]["model_b"] == "other" and "weights" not in found["about"]["tokens"]
    assert "Two models" in Path("there/report.html").read_text()

    assert run("eval", "runs/model-other-text", "--device", "cpu", "--model_b", "model")[2] != []  # model twice
    shutil.copytree("model", "elsewhere/other")
    status, out, _ = run(
        "eval", "runs/model-other-text", "--device", "cpu", "--model_b", "elsewhere/other", "--out", "o"
    )
    assert status == 0
    told = json.loads(Path("o/eval.json").read_text())["about"]["tokens"]
    assert "elsewhere/other has other weights than the model_b of runs/model-other-text." in told

    status, out, _ = run("info", "runs/model-other-text")
    assert status == 0 and "crosscode topk, k 4" in out
    status, _, errors = run("convert", "runs/model-other-text", "target")
    assert status == 2 and "no crosscoders" in errors[0]
    status, _, errors = run("browse", "runs/model-other-text", "--export", "site", "--no_browser", "--device", "cpu")
    assert status == 0 and not errors
    place = Index.open("runs/model-other-text")["crosscoder"]
    assert place.header.ends == ["a:layers.0", "a:layers.2", "b:layers.0", "b:layers.2"] and place.events > 0


def test_a_cache_of_two_models_knows_both_and_a_run_on_it_is_measured_in_both(run: Run) -> None:
    cached = ["model", "text.jsonl", "--model_b", "other", "--ctx_len", "16", "--batch_size", "4", "--layers", "0", "2"]
    assert run("cache", *cached, "--max_tokens", "1024", "--device", "cpu", "--activations", "acts")[0] == 0
    command = ["--activations", "acts", "--num_latents", "96", "--k", "4", "--batch_size", "4", "--device", "cpu"]
    command += ["--no_log_to_wandb", "--save_dir", "runs"]
    status, _, errors = run(*command)
    assert status == 2 and "model_b must come with crosscode" in errors[0]
    status, _, errors = run(*command, "--crosscode", "--model_b", "strange")
    assert status == 2 and "model_b must be that of the activations" in errors[0]
    assert run(*command, "--crosscode", "--layers", "2", "--run_name", "two")[0] == 0
    assert list(Sae.load_many("runs/two")["crosscoder"].spec.parts) == ["a:layers.2", "b:layers.2"]
    assert run("eval", "runs/two", "--device", "cpu", "--out", "there")[0] == 0
    assert "differences" in json.loads(Path("there/eval.json").read_text())

    of_one = ["model", "text.jsonl", "--ctx_len", "16", "--layers", "0", "2", "--max_tokens", "1024"]
    assert run("cache", *of_one, "--device", "cpu", "--activations", "one")[0] == 0
    status, _, errors = run("--activations", "one", *command[2:], "--crosscode", "--model_b", "other")
    assert status == 2 and "model_b must be that of the activations, None" in errors[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model_b", "model"], "model_b must be another model than MODEL"),
        (["--model_b", "./model/", "--revision_b", "main"], "model_b must be another model than MODEL"),
        (["--model_b", "strange"], "tokens differ, such as"),
        (["--model_b", "nowhere"], "nowhere"),
        (["--model_b", "other", "--hookpoints", "a:layers.0"], "names none of b:"),
        (["--model_b", "gpt2", "--hookpoints", "layers.0"], "model_b: --hookpoints must name modules of GPT2Model"),
        (["--model_b", "other", "--no_crosscode"], "model_b must come with crosscode"),
        (["--revision_b", "main"], "revision_b must come with model_b"),
        (["--model_b", "short"], "model_b: --ctx_len must be at most the model's limit=8"),
        (["--model_b", "bare"], "tokenizers that cannot be compared"),
        (["--model_b", "small"], "model_b must have an embedding of the"),
    ],
    ids=str,
)
def test_two_models_that_do_not_fit_are_one_line_before_any_work(run: Run, words: list[str], said: str) -> None:
    save_tiny(Path("gpt2"), "gpt2")
    short = tiny_model("gpt2", causal_lm=True).config
    short.n_positions = 8
    AutoModelForCausalLM.from_config(short).save_pretrained("short")
    tiny_tokenizer().save_pretrained("short")
    small = tiny_model("gpt_neox", causal_lm=True)
    small.resize_token_embeddings(100)
    small.save_pretrained("small")
    tiny_tokenizer().save_pretrained("small")
    bare = tiny_model("gpt2", causal_lm=True)
    bare.resize_token_embeddings(300)
    bare.save_pretrained("bare")
    command = [word for word in TRAIN if not ("--hookpoints" in words and word in ("--layers", "0", "2"))]
    command = [word for word in command if not ("--no_crosscode" in words and word == "--crosscode")]
    status, out, errors = run(*command, *words)
    assert status == 2 and len(errors) == 1 and said in errors[0], errors
    assert not Path("runs").exists() and "tok/s" not in out


def test_a_second_model_may_know_more_tokens_and_then_reads_those_of_the_first(run: Run) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained("other")
    tokenizer.add_special_tokens({"pad_token": "<|im_end|>"})
    tokenizer.save_pretrained("other")
    model = tiny_model("gpt_neox", causal_lm=True, seed=1)
    model.resize_token_embeddings(330)
    model.save_pretrained("other")
    assert run(*TRAIN, "--model_b", "other", "--run_name", "more")[0] == 0
    status, _, errors = run(*["other", *TRAIN[1:]], "--model_b", "model", "--run_name", "fewer")
    assert status == 2 and "the one with fewer tokens as MODEL" in errors[0] and "missing in model_b" in errors[0]


def test_two_models_must_fit_into_memory_together(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.commands.load.free_memory", lambda device: 100_000)
    status, _, errors = run(*TRAIN, "--model_b", "other")
    assert status == 2 and "the two models must fit into memory together" in errors[0]


def test_python_has_the_same_fields() -> None:
    options: dict[str, Any] = {"model": "one", "model_b": "two", "revision_b": "step1000"}
    assert RunConfig(sae=SaeConfig(crosscode=True), **options).model_b == "two"
    with pytest.raises(ValueError, match="model_b must come with crosscode"):
        RunConfig(**options)

"""`sae eval` from end to end: which tokens it takes, what it writes, and one line for every wrong input."""

import base64
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from command_inputs import some_texts
from safetensors.torch import load_file, save_file
from strangers import qwen_scope
from tiny_models import save_tiny

import sae.__main__
from sae import Sae, SaeConfig, evaluate, lm
from sae.activations.reading import token_batches
from sae.browser import Index
from sae.commands.parser import field_docs
from sae.commands.table import COMMANDS
from sae.config import EvalConfig
from sae.data import load_data
from sae.evaluation.evaluate import Evaluation
from sae.evaluation.metrics import Quality
from sae.evaluation.plan import plan_stability
from sae.formats.find import find
from sae.report.evaluation import columns, page, report_evaluation

SMALL = ["--expansion_factor", "4", "--batch_size", "4", "--ctx_len", "16", "--max_tokens", "1024"]
OPTIONS = {
    "checkpoint", "model", "dataset", "model_b", "compare", "baselines", "probes", "probe_texts", "absorption",
    "absorption_words", "stability",
    "hookpoints",
    "split", "text_column", "streaming", "ctx_len", "max_tokens", "exclude_tokens", "exclude_positions",
    "data_preprocessing_num_proc", "out", "batch_size", "device", "dtype", "load_in_8bit", "attn_implementation",
    "revision", "revision_b", "hf_token",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model, text, and two runs with k 4 and 8 on two layers."""
    import datasets

    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "gpt_neox")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in some_texts(300)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr("sae.report.training.draw_curves", lambda records, path: None)
        datasets.disable_progress_bars()
        options = [*SMALL, "--no_log_to_wandb", "--save_dir", "runs", "--exclude_positions", "0", "--layers", "0", "2"]
        for k in ("4", "8"):
            command = ["model", "text.jsonl", *options, "--k", k, "--run_name", f"k{k}", "--lr", "0.01"]
            assert sae.__main__.main(command) == 0
        yield folder
        datasets.enable_progress_bars()


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`sae eval …` in a folder of the test's own, with `files` copied; returns status, output and errors."""
    for name in ("model", "runs"):
        shutil.copytree(files / name, tmp_path / name)
    shutil.copy(files / "text.jsonl", tmp_path)
    for config in (tmp_path / "runs").rglob("config.json"):  # as if all had been made here
        config.write_text(config.read_text().replace(str(files), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run_command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return sae.__main__.main(["eval", *arguments]), *capsys.readouterr()

    return run_command


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.report.evaluation.draw_all", lambda evaluation, out: {})


Run = Callable[..., tuple[int, str, str]]


def numbers(folder: str) -> Any:
    return json.loads(Path(folder, "eval.json").read_text())


# Which tokens


def test_a_run_is_measured_on_exactly_the_sequences_that_it_held_out(run: Run, no_pictures: None) -> None:
    status, out, err = run("runs/k4", "--device", "cpu")
    assert status == 0 and "of the sequences that runs/k4 held out" in err and "may have seen" not in err
    document = numbers("runs/k4/eval")
    assert document["data"]["sequences"] == 11 and document["data"]["tokens"] == 11 * 15
    record = json.loads(Path("runs/k4/config.json").read_text())["options"]
    cfg = sae.RunConfig(**record | {"sae": SaeConfig(**record["sae"])})
    tokenizer = lm.load_tokenizer("model")
    data = load_data("text.jsonl", tokenizer=tokenizer, ctx_len=16, vocab_size=320)
    held_out = torch.cat(list(token_batches(cfg, data, cfg.grad_acc_steps, vocab_size=320).held_out_batches()))
    dtype = lm.compute_dtype(torch.device("cpu"))
    model = lm.load_model("model", device="cpu", dtype=dtype, head=True)
    found = evaluate(model, held_out, Sae.load_many("runs/k4"), exclude_positions=[0])
    for hookpoint in ("layers.0", "layers.2", "all"):
        # batches of another order, in bf16
        expected = pytest.approx(found[hookpoint].metrics, rel=0.02, abs=1e-3, nan_ok=True)
        metrics = document["results"]["runs/k4"][hookpoint]["metrics"]
        assert {name: math.nan if value is None else value for name, value in metrics.items()} == expected
    for score in ("ce_loss_score", "ce_loss_score_mean"):
        results = document["results"]["runs/k4"]
        blank = [hookpoint for hookpoint in results if results[hookpoint]["metrics"][score] is None]
        told = re.findall(rf"recovered \({score}\) is left blank at (.*?): ", err)
        assert told == [", ".join(blank)] * bool(blank)
    # the table at the end of training is about the same tokens
    trained = json.loads(Path("runs/k4/evaluation.json").read_text())["layers.2"]["fvu"]
    assert document["results"]["runs/k4"]["layers.2"]["metrics"]["fvu"] == pytest.approx(trained, rel=1e-3)


@pytest.mark.parametrize("checkpoint", ["runs/k4/step_16", "runs/k4/step_16/layers.2"])
def test_a_step_and_one_autoencoder_know_their_run(run: Run, no_pictures: None, checkpoint: str) -> None:
    status, _, err = run(checkpoint, "model", "text.jsonl", "--max_tokens", "100")
    assert status == 0 and "Measured on 6 of the sequences that runs/k4 held out" in err
    assert "layers.2" in numbers("runs/k4/eval")["results"][checkpoint]


def test_a_copy_of_the_data_under_its_name_elsewhere_is_known_by_what_it_holds(run: Run, no_pictures: None) -> None:
    shutil.copytree("model", "copy/model")
    shutil.copy("text.jsonl", "copy")
    few = ["copy/model", "copy/text.jsonl", "--max_tokens", "100"]
    assert "Measured on 6 of the sequences that runs/k4 held out" in run("runs/k4", *few)[2]
    text = Path("text.jsonl").read_text()
    Path("copy/text.jsonl").write_text("".join(reversed(text.splitlines(keepends=True))))
    assert "Measured on 6 sequences drawn from copy/text.jsonl" in run("runs/k4", *few)[2]


def test_a_step_that_was_moved_away_from_its_run_still_knows_what_was_held_out(run: Run, no_pictures: None) -> None:
    Path("runs/k4/step_16").rename("moved")
    shutil.rmtree("runs")
    status, _, err = run("moved", "--max_tokens", "100")
    assert status == 0 and "Measured on 6 of the sequences that moved held out" in err and "may have seen" not in err
    assert "layers.2" in numbers("moved/eval")["results"]["moved"]


def test_another_text_length_or_data_that_changed_is_a_sample_and_says_so(run: Run, no_pictures: None) -> None:
    _, _, err = run("runs/k4", "--ctx_len", "32", "--max_tokens", "320")
    assert "Measured on 10 sequences drawn from text.jsonl" in err and "may have seen these tokens: runs/k4" in err
    Path("text.jsonl").write_text(Path("text.jsonl").read_text() * 2)
    _, _, err = run("runs/k4")
    assert "had 1,184 sequences when the run was made, and has" in err and "may have seen these tokens: runs/k4" in err


def test_other_tokens_under_the_name_of_the_data_are_not_called_held_out(run: Run, no_pictures: None) -> None:
    text = Path("text.jsonl").read_text()
    Path("text.jsonl").write_text("".join(reversed(text.splitlines(keepends=True))))  # as many sequences
    status, _, err = run("runs/k4", "--compare", "runs/k8", "--max_tokens", "100")
    assert status == 0 and "text.jsonl holds other tokens than when the run was made." in err
    assert "held out" not in err and "may have seen these tokens: runs/k4, runs/k8." in err
    Path("text.jsonl").write_text(text)
    assert "of the sequences that runs/k4 held out" in run("runs/k4", "--max_tokens", "100")[2]


def test_other_weights_under_the_name_of_the_model_are_told(run: Run, no_pictures: None) -> None:
    save_tiny(Path("model"), "gpt_neox", seed=1)
    _, _, err = run("runs/k4", "--max_tokens", "100")
    assert "model has other weights than the model of runs/k4." in err and "that runs/k4 held out" in err


def test_a_run_of_a_version_that_recorded_no_fingerprints_is_measured(run: Run, no_pictures: None) -> None:
    for config in Path("runs/k4").rglob("config.json"):
        document = json.loads(config.read_text())
        del document["derived"]["fingerprints"]
        config.write_text(json.dumps(document))
    status, _, err = run("runs/k4", "--max_tokens", "100")
    assert status == 0 and "of the sequences that runs/k4 held out" in err and "other" not in err


def test_a_run_is_measured_from_another_folder_and_after_everything_has_moved_together(
    run: Run, no_pictures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was made elsewhere, with relative paths, in a folder that is no longer there for us."""
    options = json.loads(Path("runs/k4/config.json").read_text())["options"]
    assert Path(options["model"]).is_absolute() and Path(options["dataset"]).is_absolute()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").rename(tmp_path / "elsewhere/model")
    (tmp_path / "text.jsonl").rename(tmp_path / "elsewhere/text.jsonl")
    (tmp_path / "runs").rename(tmp_path / "elsewhere/runs")
    document = json.loads((tmp_path / "elsewhere/runs/k4/config.json").read_text())
    document["folder"] = document["folder"].replace(str(Path(options["model"]).parent), "/gone")
    document["options"] |= {"model": "/gone/model", "dataset": "/gone/text.jsonl"}
    (tmp_path / "elsewhere/runs/k4/config.json").write_text(json.dumps(document))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, _, err = run("../elsewhere/runs/k4", "--max_tokens", "100", "--out", "found")
    assert status == 0 and "of the sequences that" in err and "may have seen" not in err, err


def test_a_run_of_a_version_that_recorded_relative_paths_is_measured_from_another_folder(
    run: Run, no_pictures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in Path("runs/k4").rglob("config.json"):
        document = json.loads(config.read_text())
        document["options"] |= {"model": "model", "dataset": "text.jsonl", "save_dir": "runs"}
        del document["folder"]
        config.write_text(json.dumps(document))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, _, err = run("../runs/k4", "--max_tokens", "100", "--out", "found")
    assert status == 0 and "of the sequences that" in err and "may have seen" not in err, err


def test_a_recorded_path_that_leads_nowhere_is_never_asked_of_the_hub(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(Path("runs/k4/config.json").read_text())
    for name, words in {"model": "/gone/model does not exist", "dataset": "got '/gone/dataset'"}.items():
        options = document["options"] | {name: f"/gone/{name}"}
        Path("runs/k4/config.json").write_text(json.dumps(document | {"options": options}))
        status, _, err = run("runs/k4")
        assert status == 2 and words in err and "hub.co" not in err, err


def test_a_checkpoint_of_nobodys_run_needs_model_and_data_and_takes_a_sample(run: Run, no_pictures: None) -> None:
    Path("runs/k8/step_16/layers.0").rename("foreign")
    assert "MODEL must be given" in run("foreign")[2]
    status, _, err = run("foreign", "model", "text.jsonl", "--hookpoints", "layers.0", "--max_tokens", "320",
                         "--ctx_len", "16")  # fmt: skip
    assert (
        status == 0 and "Measured on 20 sequences drawn from text.jsonl" in err and "seen these tokens: foreign" in err
    )
    assert list(numbers("eval-foreign")["results"]["foreign"]) == ["layers.0"]


def test_a_file_that_is_one_dictionary_is_measured_and_shown_at_the_hookpoint_that_is_chosen(
    run: Run, no_pictures: None
) -> None:
    torch.save(
        {
            "dictionary._weights": torch.randn(64, 32),
            "dictionary.multiplier": torch.zeros(()),
            "encoder.final_block.0.weight": torch.randn(64, 32),
            "encoder.final_block.0.bias": torch.zeros(64),
        },
        "vit-k3.pt",
    )
    text = ["model", "text.jsonl", "--ctx_len", "16", "--max_tokens", "320", "--device", "cpu"]
    status, _, err = run("vit-k3.pt", *text[:-2], "--hookpoints", "layers.1")
    assert status == 0, err
    assert list(numbers("eval-vit-k3.pt")["results"]["vit-k3.pt"]) == ["layers.1"]
    browse = ["browse", "vit-k3.pt", *text, "--export", "pages", "--latents", "1", "--no_browser"]
    assert sae.__main__.main([*browse, "--hookpoints", "layers.1"]) == 0
    assert list(Index.open(next(Path("browse-vit-k3.pt").glob("*/manifest.json")).parent)) == ["layers.1"]


@pytest.mark.parametrize("checkpoint", ["qwen/layer3.sae.pt", "runs/k4"])
def test_a_file_that_says_its_hookpoint_is_refused_at_another(run: Run, checkpoint: str) -> None:
    qwen_scope(Path("qwen"))
    file = "qwen/layer3.sae.pt"
    own = EvalConfig(checkpoint=file, stability=[file], hookpoints=["layers.3"], out="out")
    assert plan_stability(own).folders == {file: {"layers.3": Path(file)}}
    cfg = EvalConfig(checkpoint=checkpoint, stability=[file], hookpoints=["layers.0"], out="out")
    with pytest.raises(ValueError, match=f"must name autoencoders of {file}, got layers.0; it has layers.3"):
        plan_stability(cfg)


def test_massive_tokens_are_told(run: Run, no_pictures: None) -> None:
    weights = load_file("model/model.safetensors")
    ids = lm.load_tokenizer("model")("The quick brown fox")["input_ids"]
    weights["gpt_neox.embed_in.weight"][ids[-1]] *= 1e5
    save_file(weights, "model/model.safetensors", {"format": "pt"})
    _, out, err = run("runs/k4", "--hookpoints", "layers.0")
    (share,) = re.findall(r"Up to (\d+\.\d+)% of the tokens are massive .* at layers.0: fvu and l0 are of the", err)
    assert 0 < float(share) < 50 and "with massive" not in out  # the page and eval.json have it


def test_configurations_of_one_run_are_measured_side_by_side(run: Run, no_pictures: None) -> None:
    for k in ("k4", "k8"):
        shutil.copytree(f"runs/{k}/step_16", f"runs/sweep/step_16/{k}")
    document = json.loads(Path("runs/k4/config.json").read_text())
    document["options"]["seed"], document["derived"]["data_seed"] = [42, 43], 42
    Path("runs/sweep/config.json").write_text(json.dumps(document))
    status, _, err = run("runs/sweep", "--max_tokens", "100")
    assert status == 0 and "of the sequences that runs/sweep held out" in err and "may have seen" not in err
    assert list(numbers("runs/sweep/eval")["results"]) == ["runs/sweep/k4", "runs/sweep/k8"]


def test_hookpoints_are_named_as_everywhere_with_the_configuration_or_without(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in ("k4", "k8"):
        shutil.copytree(f"runs/{k}/step_16", f"sweep/{k}")

    def measured(name: str, words: str) -> dict[str, list[str]]:
        plan = plan_stability(EvalConfig(checkpoint=name, stability=["sweep"], hookpoints=words.split(), out="out"))
        return {label.removeprefix(name): list(plan.folders[label]) for label in plan.first}

    both = ["layers.0", "layers.2"]
    for words, expected in {
        "layers.2": {"/k4": ["layers.2"], "/k8": ["layers.2"]},
        "layers.*": {"/k4": both, "/k8": both},
        "k4/*": {"/k4": both},
        "k?/layers.0": {"/k4": ["layers.0"], "/k8": ["layers.0"]},
        "k8/layers.2 k4/layers.0": {"/k4": ["layers.0"], "/k8": ["layers.2"]},
    }.items():
        assert measured("sweep", words) == expected
    monkeypatch.setattr("sae.evaluation.plan.fetch", lambda name, names: find(Path("sweep"), names))
    assert measured("owner/name", "k?/layers.0") == {"/k4": ["layers.0"], "/k8": ["layers.0"]}
    assert measured("owner/name", "k8/layers.2") == {"/k8": ["layers.2"]}
    for place in ("wide/a", "narrow/a"):  # paths that do not name their hookpoint
        Sae.load_from_disk("sweep/k4/layers.0").save_to_disk(f"sweep/{place}", format="saelens")
        cfg = json.loads(Path(f"sweep/{place}/cfg.json").read_text())
        cfg["metadata"]["hookpoint"] = "layers.1"
        Path(f"sweep/{place}/cfg.json").write_text(json.dumps(cfg))
    assert measured("sweep", "wide/a") == {"/wide/a": ["layers.1"]}
    assert measured("owner/name", "wide/a") == {"": ["layers.1"]}  # the only one there that is fetched


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "not UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"model", b"mod\xff\xfel")),
    "huge": lambda path: path.write_bytes(path.read_bytes() + b" " * 2**20),
    "a list": lambda path: path.write_text("[]"),
    "options of another kind": lambda path: path.write_text(json.dumps({"options": [], "derived": {}})),
    "nothing derived": lambda path: path.write_text(json.dumps({"options": {}})),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("gone")),
}
COMMANDS_ON_A_RUN = {
    "eval": ["eval", "runs/k4"],
    "eval of a step": ["eval", "runs/k4/step_16"],
    "eval of a dictionary": ["eval", "runs/k4/step_16/layers.2", "model", "text.jsonl"],
    "compare": ["eval", "runs/k8", "--compare", "runs/k4"],
    "browse": ["browse", "runs/k4"],
    "push": ["push", "runs/k4", "me/dicts", "--dry_run"],
    "convert": ["convert", "runs/k4", "other", "--to", "saelens"],
    "resume": ["model", "text.jsonl", *SMALL, "--no_log_to_wandb", "--save_dir", "runs", "--exclude_positions", "0",
               "--layers", "0", "2", "--k", "4", "--run_name", "k4", "--lr", "0.01", "--resume"],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_of_a_run_is_named_by_every_command_that_reads_it(
    run: Run, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    DAMAGED[damage](Path("runs/k4/config.json"))
    for what, command in COMMANDS_ON_A_RUN.items():
        assert sae.__main__.main(command) == 2, what
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae: error:")]
        assert "runs/k4/config.json" in line and (what == "resume" or "step_16 has a copy of it" in line), (what, line)


def test_a_damaged_copy_of_the_record_in_a_step_alone_is_named(run: Run) -> None:
    Path("runs/k4/step_16").rename("step_16")
    Path("step_16/config.json").write_text("{")
    assert re.search(
        r"error: \S*/step_16/config.json must be JSON, .*; put it back, or move it away", run("step_16")[2]
    )


@pytest.mark.parametrize("content", ["{", json.dumps([1]), "x" * 2**20])
def test_another_tools_config_json_is_no_record_whatever_it_holds(run: Run, no_pictures: None, content: str) -> None:
    shutil.copytree("runs/k4/step_16/layers.0", "foreign/layers.0")
    for folder in ("foreign", "foreign/layers.0"):
        Path(folder, "config.json").write_text(content)
    assert run("foreign", "model", "text.jsonl", "--max_tokens", "64")[0] == 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "not UTF-8", "a list", "a folder"])
@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_a_damaged_file_of_a_dictionary_is_named_by_every_command(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    path = Path("runs/k4/step_16/layers.0", name)
    if name == "cfg.json" and damage == "not UTF-8":
        path.write_text(path.read_text().replace("topk", "model"))
    DAMAGED[damage](path)
    if name == "sae.safetensors" and damage == "not UTF-8":  # numbers may be of any bytes
        path.write_bytes(b"\xff" * 64)
    commands = [[name, "runs/k4"] for name in ("eval", "browse", "info")] + [["convert", "runs/k4", "other"]]
    for command in [*commands, COMMANDS_ON_A_RUN["push"], ["eval", "runs/k8", "--stability", "runs/k4"]]:
        assert sae.__main__.main(command) == 2, command
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae: error:")]
        assert str(path.parent) in line and name in line, (command, line)


@pytest.mark.parametrize("content", ["{", json.dumps({"results": []}), json.dumps({"results": {"a": {"b": {}}}})])
def test_a_damaged_evaluation_is_named_when_the_run_is_pushed(
    run: Run, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    Path("runs/k4/eval").mkdir()
    Path("runs/k4/eval/eval.json").write_text(content)
    assert sae.__main__.main(["push", "runs/k4", "me/dicts", "--dry_run"]) == 2
    assert "runs/k4/eval/eval.json must " in capsys.readouterr().err


def test_a_run_of_another_seed_may_have_seen_the_tokens(run: Run, no_pictures: None) -> None:
    config = Path("runs/k8/config.json")
    config.write_text(config.read_text().replace('seed": 42', 'seed": 7'))
    _, _, err = run("runs/k4", "--compare", "runs/k8", "--max_tokens", "64")
    assert "runs/k4 held out" in err and "Training may have seen these tokens: runs/k8." in err


# What it writes


def test_two_runs_are_compared_on_the_same_tokens_with_pictures_and_a_page(run: Run) -> None:
    status, out, err = run("runs/k4", "--compare", "runs/k8", "--out", "both")
    assert status == 0 and "may have seen" not in err
    document = numbers("both")
    assert list(document["results"]) == ["runs/k4", "runs/k8"]
    for label, results in document["results"].items():
        assert set(results) == {"layers.0", "layers.2", "all"}
        assert f"{results['layers.2']['metrics']['fvu']:.4f}±" in out
        assert label.removeprefix("runs/") in out and label not in out  # both lie there
    assert document["results"]["runs/k8"]["layers.2"]["metrics"]["l0"] > 7.5
    names = ["by_layer", "by_position", "densities", "frontier"]
    assert sorted(path.stem for path in Path("both").glob("*.png")) == names
    text = Path("both/report.html").read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(image) for image in images] == [Path(f"both/{name}.png").read_bytes() for name in names]
    assert "http:" not in text and "https:" not in text and "<script" not in text


def test_one_hookpoint_in_an_older_spelling_is_the_same_row(run: Run, no_pictures: None) -> None:
    """EleutherAI's first version named what a block receives by a file; others write the whole path."""
    for old, new in {"gpt_neox.layers.0": "layers.0", "layer_2.pt": "layers.2", "layers.2.output": "layers.2"}.items():
        shutil.copytree(next(Path("runs/k8").rglob(new)), Path("old", old))
    shutil.copytree("old/layers.2.output", "older/model.layers.2")
    few = ["--max_tokens", "64", "--out", "both"]
    status, out, err = run("runs/k4", "model", "text.jsonl", "--compare", "old", "older", *few)
    assert status == 0, err
    results = numbers("both")["results"]
    assert set(results["runs/k4"]) - {"all"} == {"layers.0", "layers.2"}
    assert set(results["old"]) - {"all"} == {"layers.0", "layers.2", "layers.2.input"}
    assert set(results["older"]) - {"all"} == {"layers.2"}
    same = [results[label]["layers.2"]["metrics"]["fvu"] for label in ("old", "older")]
    assert same[0] == same[1] != results["old"]["layers.2.input"]["metrics"]["fvu"]


def test_the_next_evaluation_takes_the_next_free_folder_and_out_is_never_overwritten(
    run: Run, no_pictures: None
) -> None:
    few = ["--max_tokens", "64", "--hookpoints", "layers.0"]
    assert run("runs/k4", *few)[0] == run("runs/k4", *few)[0] == 0
    assert numbers("runs/k4/eval")["data"] == numbers("runs/k4/eval-2")["data"]
    assert "out must be a new or empty folder" in run("runs/k4", "--out", "runs/k4/eval")[2]


@pytest.mark.parametrize("where", ["out", "the run's folder", "read-only"])
def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(lm, "load_skeleton", None)
    monkeypatch.setattr(lm, "load_config", None)
    if where == "read-only":  # as root a folder's mode says nothing

        def refuse(*arguments: object, **options: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        status, out, err = run("runs/k4")
        assert status == 2 and re.search(r"out must be a folder that can be written, but .*runs/k4 cannot \(Read-", err)
        assert err.count("\n") == 1 and "choose another --out" in err
        return
    Path("file").write_text("")
    arguments = {"out": ["--out", "file/found"], "the run's folder": ["--out", "file"]}[where]
    status, out, err = run("runs/k4", *arguments)
    assert status == 2 and "out must be a folder, but" in err and "is a file; choose another --out" in err


def test_what_was_measured_is_seen_even_if_it_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(evaluation: Evaluation, out: Path, about: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae.report.evaluation._write", full)
    status, out, err = run("runs/k4", "--max_tokens", "100")
    assert status == 2 and "layers.2" in out and "FVU" in out
    assert "runs/k4/eval cannot be written ([Errno 28] No space left on device); the table above is all" in err


def hostile_evaluation() -> Evaluation:
    quality = Quality({"fvu": 0.5, "l0": 3.0}, {"fvu": (0.4, 0.6)}, {"0": {"fvu": 0.5}}, [1] * 28)
    names = ["<script>alert(1)</script>", "$\\frac{", "[red]_[/red]", "\x1b[31m\x07", "_hidden"]
    variance = {name: {"top_1_percent_of_tokens": 0.5, "top_1_percent_of_dimensions": 0.5} for name in names}
    results = {(label, name): quality for name in names for label in ("<b>", "日本語$")}
    return Evaluation(results, variance, 10, 2, 5, has_head=False, causal=False)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)


def test_hostile_names_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_evaluation(hostile_evaluation(), tmp_path / "out", {"command": "<img src=http://evil>", "model": "</table>"})
    text = (tmp_path / "out/report.html").read_text()
    parser = Tags()
    parser.feed(text)
    assert parser.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td",
                           "img", "div", "span", "wbr"}  # fmt: skip
    assert text.count("<img") == 4 and "&lt;script&gt;" in text and "default-src 'none'" in text
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[red]" in out


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["checkpoints/run/k4_x8", "checkpoints/run/k8_x8"], ["k4_x8", "k8_x8"]),
        (["runs/one", "runs/one/step_3/layers.2"], ["one", "one/step_3/layers.2"]),
        (["runs/one", "somebody/sae"], ["runs/one", "somebody/sae"]),
        (["runs/one"], ["one"]),
        ([""], [""]),
    ],
)
def test_checkpoints_are_shown_without_the_folders_that_all_lie_in(labels: list[str], shown: list[str]) -> None:
    quality = Quality({}, {}, {}, [])
    evaluation = Evaluation({(label, "h"): quality for label in labels}, {}, 1, 1, 1, has_head=False, causal=False)
    assert list(evaluation.short_labels.values()) == shown and list(evaluation.short_labels) == labels


def test_a_number_that_is_not_there_is_a_dash_and_a_metric_that_nobody_has_no_column() -> None:
    evaluation = hostile_evaluation()
    assert list(columns(evaluation)) == ["FVU", "L0"]
    hidden = evaluation.qualities["<b>", "_hidden"]
    evaluation.qualities["<b>", "_hidden"] = hidden._replace(metrics=hidden.metrics | {"l0": float("nan")})
    assert "<td>-</td>" in page(evaluation, {}, {})


# What it is told

BAD = [
    ([], ["CHECKPOINT must be given"]),
    (["nowhere"], ["nowhere", "cannot be had"]),
    (["model"], ["model must hold", "it is a language model"]),
    (["runs"], ["MODEL must be given", "name one of the runs in it, such as runs/k4, or give CHECKPOINT"]),
    (["runs/k4/step_99999"], ["runs/k4/step_99999", "cannot be had", "near names here: runs/k4/step_"]),
    (["runs/k4", "runs/k4"], ["runs/k4 is no language model: its config.json names no model_type"]),
    (["runs/k4", "--hookpoints", "layers.1"], ["hookpoints must name autoencoders of runs/k4", "layers.0, layers.2"]),
    (["runs/k4", "--compare", "nowhere"], ["nowhere", "cannot be had"]),
    (["runs/k4", "--max_tokens", "0"], ["max_tokens must be greater than 0"]),
    (["runs/k4", "--max_tokens", "3"], ["at least one sequence of ctx_len=16 tokens, got 3"]),
    (["runs/k4", "--batch_size", "0"], ["batch_size", "got 0"]),
    (["runs/k4", "--exclude_positions", "-1"], ["exclude_positions", "got -1"]),
    (["runs/k4", "--exclude_positions", *map(str, range(16))], ["a token to measure on"]),
    (["runs/k4", "--exclude_positions", "16"], ["exclude_positions must be positions", "ctx_len=16 tokens, got 16"]),
    (["runs/k4", "--exclude_tokens", "3", "320"], ["exclude_tokens must be below", "vocabulary size 320, got 320"]),
    (["runs/k4", "--ctx_len", "65"], ["limit=64"]),
    (["runs/k4", "model", "nothing.jsonl"], ["nothing.jsonl"]),
    (["runs/k4", "--ctx_len", "0"], ["ctx_len must be greater than 0"]),
    (["runs/k4", "--kk", "3"], ["there is no option --kk", "sae eval --help"]),
    (["runs/k4", "--probes", "no_such_file.csv"], ["no_such_file.csv cannot be read"]),
    (["runs/k4", "--probes", "two.csv", "--probe_texts", "10"], ["probe_texts must be at least 40, got 10"]),
    (["runs/k4", "--probe_texts", "100"], ["probe_texts must come with probes"]),
    (["runs/k4", "--baselines", "magic"], ["magic"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments)[:50] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(run: Run, arguments: list[str], words: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    status, out, err = run(*arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
    assert status == 2 and out == "" and "Traceback" not in err
    assert all(word in line for word in words), line
    assert sorted(Path().rglob("*")) == before


def test_an_autoencoder_of_another_width_is_named(run: Run) -> None:
    Sae(48, SaeConfig(num_latents=64, k=4)).save_to_disk("wide/layers.0")
    status, _, err = run("runs/k4", "--compare", "wide")
    assert status == 2 and "wide: the autoencoder of layers.0 must be 32 wide, as the model is, got 48" in err


def test_baselines_stand_beside_the_checkpoint_with_its_l0_in_every_file(run: Run) -> None:
    status, out, err = run("runs/k4", "--baselines", "pca", "random", "--max_tokens", "400", "--out", "out")
    assert status == 0, err
    results, page_text = numbers("out")["results"], Path("out/report.html").read_text()
    assert list(results) == ["runs/k4", "PCA", "random rows"]
    for label, by_hookpoint in results.items():
        assert list(by_hookpoint) == ["layers.0", "layers.2", "all"] and label in page_text and label in out
        assert by_hookpoint["layers.0"]["metrics"]["l0"] == pytest.approx(4, abs=0.02)
        assert 0 < by_hookpoint["all"]["metrics"]["kl_div_with_sae"]
    fvu = {label: found["layers.0"]["metrics"]["fvu"] for label, found in results.items()}
    assert fvu["runs/k4"] < fvu["random rows"]


def write_csv(path: str, rows: list[tuple[str, str]], header: str = "text,label") -> None:
    Path(path).write_text("\n".join([header, *(f'"{text}",{label}' for text, label in rows)]) + "\n")


def test_probes_on_a_csv_stand_beside_baselines_and_raw_activations_in_every_file(run: Run) -> None:
    words = ["quick brown", "lazy"]
    write_csv("animals.csv", [(f"The {words[i % 2]} {i} over the {words[i % 2]} dog", "AB"[i % 2]) for i in range(60)])
    few = ["--max_tokens", "200", "--hookpoints", "layers.2", "--out", "out"]
    status, out, err = run("runs/k4", *few, "--probes", "animals.csv")
    assert status == 0, err
    probes, page_text = numbers("out")["probes"], Path("out/report.html").read_text()
    assert probes["tasks"] == {"animals": 60}
    assert set(probes["results"]) == {"runs/k4", "random rows", "PCA", "raw activations"}
    assert all(label in page_text and label in out for label in probes["results"])
    assert list(numbers("out")["results"]) == ["runs/k4", "random rows", "PCA"]
    raw = probes["results"]["raw activations"]["layers.2"]
    assert raw["metrics"]["llm_test_auc"] > 0.95 and "k-sparse probes" in page_text and "all dimensions" in out
    trained = probes["results"]["runs/k4"]["layers.2"]
    assert list(trained["metrics"]) == [f"sae_top_{k}_test_auc" for k in (1, 2, 5, 16)]
    assert (
        trained["by_task"]["sae_top_5_test_auc"]["animals"]["value"] == trained["metrics"]["sae_top_5_test_auc"] > 0.6
    )
    low, high = trained["intervals"]["sae_top_5_test_auc"]
    assert low <= trained["metrics"]["sae_top_5_test_auc"] <= high


def test_what_cannot_be_probed_is_one_line(run: Run) -> None:
    write_csv("columns.csv", [("a", "x")] * 50, header="words,kind")
    write_csv("one.csv", [(f"text {i}", "x") for i in range(50)])
    write_csv("few.csv", [(f"text {i}", "y" if i < 19 else "x") for i in range(80)])
    write_csv("three.csv", [(f"text {i}", "xyz"[i % 3]) for i in range(80)])
    Path("binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    wanted = {
        "columns.csv": "must have the columns text and label (or prompt and target) to be probed, got words, kind",
        "one.csv": "must have two classes to be probed, got 1: x",
        "few.csv": "must have at least 20 rows of each class to be probed, got 19 of 'y'",
        "three.csv": "must have two classes to be probed, got 3: x, y, z",
        "binary.csv": "must name CSV files in UTF-8, and binary.csv cannot be read",
    }
    for name, words_ in wanted.items():
        status, out, err = run("runs/k4", "--probes", name)
        (line,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
        assert status == 2 and out == "" and words_ in line
    assert not Path("runs/k4/eval").exists()


def test_without_the_package_the_113_are_not_there_and_a_line_says_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run("runs/k4", "--probes")
    assert status == 2 and "pip install --no-deps sae-probes==0.4.2, or name CSV files" in err


def test_the_list_of_options_is_frozen_and_each_is_documented() -> None:
    groups = COMMANDS["eval"].groups
    assert {name for names in groups.values() for name in names} == OPTIONS
    docs = field_docs(EvalConfig)
    assert all(len(docs[name]) > 15 and docs[name].endswith(".") for name in OPTIONS)


def test_an_encoder_has_its_divergence_measured_and_no_next_token(tmp_path: Path) -> None:
    from tiny_models import tiny_config
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_config(tiny_config("bert")).save_pretrained(tmp_path / "bert")
    assert any("predictions" in name for name in load_file(tmp_path / "bert/model.safetensors"))
    model = lm.load_model(str(tmp_path / "bert"), device="cpu", dtype=torch.float32, head=True)
    assert type(model).__name__ == "BertForMaskedLM"
    saes = {"encoder.layer.1": Sae(32, SaeConfig(num_latents=64, k=4))}
    metrics = evaluate(model, torch.randint(3, 300, (3, 9)), saes)["encoder.layer.1"].metrics
    assert metrics["kl_div_with_sae"] > 0 and "ce_loss_with_sae" not in metrics


def test_crosscoders_and_cross_layer_transcoders_are_measured_by_the_command_and_shown(
    run: Run, no_pictures: None, no_picture: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["model", "text.jsonl", *SMALL, "--no_log_to_wandb", "--save_dir", "runs", "--exclude_positions", "0"]
    assert sae.__main__.main([*command, "--layers", "0", "2", "--crosscode", "--k", "4", "--run_name", "cross"]) == 0
    modules = ["--hookpoints", "layers.[02].mlp"]
    assert sae.__main__.main([*command, *modules, "--cross_layer", "--k", "4", "--run_name", "clt"]) == 0
    nested = ["--cross_layer", "--tie_decoders", "--prefixes", "32", "--k", "4", "--run_name", "tied"]
    assert sae.__main__.main([*command, *modules, *nested]) == 0

    status, out, err = run("runs/k4", "--compare", "runs/cross", "--device", "cpu", "--out", "there")
    assert status == 0 and "error" not in err and out.count("layers.2") == 1
    document, page_text = numbers("there"), Path("there/report.html").read_text()
    assert list(document["results"]["runs/cross"]) == list(document["results"]["runs/k4"])
    trained = json.loads(Path("runs/cross/evaluation.json").read_text())["crosscoder"]
    for hookpoint in ("layers.0", "layers.2"):
        measured = document["results"]["runs/cross"][hookpoint]["metrics"]
        assert measured["fvu"] == pytest.approx(trained[f"fvu/{hookpoint}"], rel=0.03)
        fired = round(measured["frac_alive"] * 128)
        assert sum(document["relative_norms"]["runs/cross"][hookpoint]) == fired
    assert "Decoder norms" in page_text and list(document["relative_norms"]) == ["runs/cross"]

    assert run("runs/clt", "--compare", "runs/tied", "--device", "cpu", "--out", "layers")[0] == 0
    for name, found in numbers("layers")["results"].items():
        assert list(found) == ["layers.0.mlp", "layers.2.mlp", "all"]
        trained = json.loads(Path(name, "evaluation.json").read_text())
        for hookpoint in trained:
            metrics = found[hookpoint]["metrics"]
            assert metrics["fvu"] == pytest.approx(trained[hookpoint]["fvu"], rel=0.03)
            if name == "runs/tied":
                assert metrics["fvu/first 32"] == pytest.approx(trained[hookpoint]["fvu/first 32"], rel=0.03)
    expected = {
        "runs/cross": {"crosscoder": ["layers.0", "layers.2"]},
        "runs/clt": {"layers.0.mlp": ["layers.0.mlp", "layers.2.mlp"], "layers.2.mlp": []},
        "runs/tied": {"layers.0.mlp": ["layers.0.mlp", "layers.2.mlp"], "layers.2.mlp": []},
    }
    for name, places in expected.items():
        command = ["browse", name, "--export", f"site-{Path(name).name}", "--no_browser", "--device", "cpu"]
        assert sae.__main__.main(command) == 0 and "error" not in capsys.readouterr().err
        assert {each.name: each.header.ends for each in Index.open(name).places.values()} == places

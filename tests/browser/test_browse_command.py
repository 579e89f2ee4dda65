"""`sae browse` from end to end: which index it makes, when it makes none, what it exports; bad input is one line."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_tiny

import sae.__main__
from sae.browser import Index
from sae.browser.circuit_tracer import write as write_circuit_tracer
from sae.browser.notes import Notes
from sae.browser.plan import plan_browse
from sae.browser.server import free_socket
from sae.commands.parser import field_docs
from sae.commands.table import COMMANDS
from sae.config import BrowseConfig

OPTIONS = {
    "checkpoint", "model", "dataset", "model_b", "hookpoints", "split", "text_column", "streaming", "ctx_len",
    "max_tokens", "exclude_tokens", "exclude_positions", "data_preprocessing_num_proc", "port", "browser", "out",
    "export", "latents", "explain", "explainer", "activations", "batch_size", "device", "dtype", "load_in_8bit",
    "attn_implementation", "revision", "revision_b", "hf_token",
}  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model, text, and a run on two layers."""
    import datasets

    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "gpt_neox")
    line = "The quick brown fox jumps over the lazy dog: {0} times, or {1}, <script>alert(1)</script> and so on. "
    rows = [json.dumps({"text": line.format(number, number**2)}) + "\n" for number in range(150)]
    (folder / "text.jsonl").write_text("".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr("sae.report.training.draw_curves", lambda records, path: None)
        datasets.disable_progress_bars()
        options = [
            "--expansion_factor",
            "4",
            "--k",
            "4",
            "--batch_size",
            "4",
            "--ctx_len",
            "16",
            "--max_tokens",
            "1024",
        ]
        options += ["--no_log_to_wandb", "--save_dir", "runs", "--layers", "0", "2", "--exclude_positions", "0"]
        assert sae.__main__.main(["model", "text.jsonl", *options, "--run_name", "run", "--lr", "0.01"]) == 0
        yield folder
        datasets.enable_progress_bars()


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`sae browse …` beside a copy of the run; it answers as soon as it would serve."""
    shutil.copytree(files / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.browser.server.serve", lambda app, bound: bound.close())

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [*arguments, "--no_browser", "--device", "cpu"]
        return sae.__main__.main(["browse", *words]), *capsys.readouterr()

    return command


def test_an_index_is_made_once_and_then_only_opened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = run("runs/run", "--max_tokens", "500")
    assert status == 0 and "look at http://127.0.0.1:" in out, err
    index = Index.open("runs/run")
    assert list(index) == ["layers.0", "layers.2"] and index.num_tokens == 496
    assert (index.counted.reshape(-1, 16)[:, 0] == 0).all() and (index.counted.reshape(-1, 16)[:, 1:] == 1).all()
    (before,) = Path("runs/run/browse").glob("*/manifest.json")
    changed = before.stat().st_mtime_ns
    monkeypatch.setattr("sae.commands.browse_index.make_index", None)
    assert run("runs/run", "--max_tokens", "500")[0] == 0
    assert run("runs/run/step_16", "--max_tokens", "500")[0] == 0  # the same checkpoint
    assert before.stat().st_mtime_ns == changed


def test_what_opens_an_index_imports_no_heavy_library() -> None:
    code = (
        "import sys, sae.commands.browse, sae.browser.live, sae.browser.server, sae.browser.notes; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_checkpoint_or_other_options_have_an_index_of_their_own(run: Run) -> None:
    assert run("runs/run", "--max_tokens", "200", "--hookpoints", "layers.0")[0] == 0
    status, _, err = run("runs/run", "--max_tokens", "300", "--hookpoints", "layers.0")
    assert status == 0 and "1 of other checkpoints, data or options" in err
    weights = next(Path("runs/run").glob("step_*")) / "layers.0/sae.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4000:] = bytes(4000)
    weights.write_bytes(content)
    status, _, err = run("runs/run", "--max_tokens", "300", "--hookpoints", "layers.0")
    assert status == 0 and len(list(Path("runs/run/browse").glob("*/manifest.json"))) == 3


def test_an_index_behind_two_dots_lies_where_they_lead(tmp_path: Path) -> None:
    cfg = BrowseConfig(checkpoint="it", model="owner/model", dataset="owner/data", out=f"{tmp_path}/new/../idx")
    assert plan_browse(cfg, tmp_path / "it").base == tmp_path / "idx"


@pytest.mark.parametrize("name", ["*.jsonl", "one.jsonl", "", ":english"])
def test_other_data_under_the_same_name_have_an_index_of_their_own(tmp_path: Path, name: str) -> None:
    def key() -> str:
        data = f"{tmp_path / 'data'}{name}" if name.startswith(":") else str(tmp_path / "data" / name)
        cfg = BrowseConfig(checkpoint="it", model="owner/model", dataset=data, out=str(tmp_path))
        return plan_browse(cfg, tmp_path / "it").key

    (tmp_path / "it").mkdir(), (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "one.jsonl"
    file.write_text('{"text": "a"}\n')
    before = key()
    assert key() == before
    file.write_text('{"text": "b"}\n')
    assert key() != before


@pytest.mark.parametrize(
    ("names", "is_made_anew"),
    [
        (["layers.0/sae.safetensors", "layers.1/sae.safetensors", "state.safetensors"], False),
        (["k4/layers.0/sae.safetensors", "k8/layers.0/sae.safetensors"], False),
        (["16k/canonical/layers.0/sae.safetensors", "32k/canonical/layers.0/sae.safetensors"], True),
        (["layers.0/sae_weights.safetensors", "layers.1/sae_weights.safetensors"], False),
        (["16k/canonical/params.npz", "32k/canonical/params.npz"], True),
        (["16k/ae.pt", "32k/ae.pt"], False),
        (["16k/layer1.sae.pt", "16k/layer2.sae.pt"], False),
        (["16k/layer1.sae.pt", "32k/layer1.sae.pt"], True),
        (["16k/k50/layer1.sae.pt", "32k/k50/layer1.sae.pt"], True),
        (["16k/a.overcomplete.pt", "32k/a.overcomplete.pt"], True),
    ],
)
def test_an_index_of_before_that_may_show_one_of_several_dictionaries_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], *, is_made_anew: bool
) -> None:
    for name in names:
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / name).write_bytes(b"")
    cfg = BrowseConfig(checkpoint="it", model="owner/model", dataset="owner/data", out=str(tmp_path))
    now = plan_browse(cfg, tmp_path / "it").key
    monkeypatch.setattr("sae.browser.plan._may_end_alike", lambda checkpoint: False)
    assert (plan_browse(cfg, tmp_path / "it").key != now) is is_made_anew


def test_a_damaged_index_is_named_and_made_anew(run: Run) -> None:
    assert run("runs/run", "--max_tokens", "200", "--hookpoints", "layers.0")[0] == 0
    values = next(Path("runs/run/browse").glob("*/places/0/values.f16"))
    whole = values.read_bytes()
    values.write_bytes(whole[:-2])
    status, out, _ = run("runs/run", "--max_tokens", "200", "--hookpoints", "layers.0")
    assert status == 0 and "it is damaged; indexing anew" in out
    assert values.read_bytes() == whole


def test_a_flipped_bit_is_named_with_a_way_out_that_makes_the_index_anew(run: Run) -> None:
    command = ("runs/run", "--max_tokens", "200", "--hookpoints", "layers.0")
    assert run(*command)[0] == 0
    values = next(Path("runs/run/browse").glob("*/places/0/values.f16"))
    whole = values.read_bytes()
    values.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=r"values.f16 is damaged: .* remove it and repeat sae browse") as refused:
        Index.open("runs/run")["layers.0"].search("fox")
    assert str(values) in str(refused.value)
    values.unlink()
    status, out, _ = run(*command)
    assert status == 0 and "it is damaged; indexing anew" in out and values.read_bytes() == whole


def test_an_export_that_cannot_be_is_told_before_anything_is_indexed(run: Run) -> None:
    Path("site").mkdir()
    Path("site/mine.txt").write_text("x")
    status, _, err = run("runs/run", "--max_tokens", "500", "--export", "site")
    assert status == 2 and "site holds something; choose another --export" in err
    assert not Path("runs/run/browse").exists()


@pytest.mark.parametrize("what", ["site", "neuronpedia", "circuit-tracer"])
def test_an_export_that_fills_the_disk_is_one_line_and_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    command = ("runs/run", "--max_tokens", "500", "--export", what)
    folder = Path("site") if what == "site" else Path("runs/run/browse", what)
    with monkeypatch.context() as patch:
        for module in ("export", "neuronpedia", "circuit_tracer"):
            patch.setattr(f"sae.browser.{module}.write_atomically", _on_a_full_disk)
        status, _, err = run(*command)
    assert status == 2 and f"{folder} cannot be written (No space left on device); make room, or choose" in err
    assert not [path for path in folder.parent.iterdir() if what in path.name]
    assert run(*command)[0] == 0 and any(folder.iterdir())


def test_an_index_that_fills_the_disk_is_one_line_and_continued(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("runs/run", "--max_tokens", "500")
    with monkeypatch.context() as patch:
        patch.setattr("sae.browser.layout.write_atomically", _on_a_full_disk)
        status, _, err = run(*command)
    (told,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
    assert status == 2 and told.endswith("make room, or choose another --out; the same command continues")
    assert run(*command)[0] == 0 and list(Index.open("runs/run")) == ["layers.0", "layers.2"]


def _on_a_full_disk(path: Path, content: bytes) -> None:
    path.with_name(f".{path.name}.partial").touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_port_that_is_taken_gives_the_next_one_and_the_command_says_which(run: Run) -> None:
    with free_socket(28950) as taken:
        port = taken.getsockname()[1]
        status, out, _ = run("runs/run", "--max_tokens", "200", "--hookpoints", "layers.0", "--port", str(port))
        (told,) = [line for line in out.splitlines() if line.startswith("look at http://127.0.0.1:")]
        assert status == 0 and int(told.split(":")[2].split("/")[0]) > port


def test_static_pages_hold_what_the_index_says(run: Run) -> None:
    status, out, _ = run("runs/run", "--max_tokens", "500", "--export", "site", "--latents", "3", "5", "20")
    assert status == 0 and "exported site" in out
    names = {path.relative_to("site").as_posix() for path in Path("site").rglob("*") if path.is_file()}
    assert {"index.html", "app.js", "style.css", "data/index.js", "data/place0-0.js", "data/place1-1.js"} <= names
    text = Path("site/data/place1-0.js").read_text()
    shard = json.loads(text[text.index("=", text.index("]")) + 1 : -2])
    latent = Index.open("runs/run")["layers.2"][5]
    assert set(shard) == {"3", "5"} and shard["5"]["latent"]["histogram"] == latent.histogram.tolist()
    script = Path("site/app.js").read_text()
    assert "\nimport " not in script and "\nexport " not in script
    assert "<script>alert" not in Path("site/index.html").read_text()
    assert run("runs/run", "--max_tokens", "500", "--export", "site")[0] == 2


def test_neuronpedias_folder_holds_features_activations_and_explanations(run: Run) -> None:
    assert run("runs/run", "--max_tokens", "500", "--hookpoints", "layers.2")[0] == 0
    Notes(Path("runs/run/browse/notes.json")).put("layers.2", 5, {"explanation": "foxes"})
    status, _, err = run("runs/run", "--max_tokens", "500", "--hookpoints", "layers.2", "--export", "neuronpedia")
    assert status == 0, err
    (root,) = Path("runs/run/browse/neuronpedia/exports/model").iterdir()
    assert root.name == "2-sae-res-128"
    assert json.loads((root / "model.jsonl").read_text())["id"] == "model"

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in gzip.open(root / name, "rt")]

    features, place = lines("features/batch-0.jsonl.gz"), Index.open("runs/run")["layers.2"]
    assert [each["index"] for each in features] == [str(latent) for latent in range(128)]
    for feature, latent in zip(features, place, strict=True):
        assert feature["maxActApprox"] == pytest.approx(latent.max, rel=1e-3)
        assert feature["pos_str"] == [each.token for each in latent.promotes]
        assert sum(feature["freq_hist_data_bar_heights"]) == latent.count
        assert np.linalg.norm(feature["vector"]) == pytest.approx(1, abs=1e-2)
    activations = lines("activations/batch-0.jsonl.gz")
    assert len({each["id"] for each in activations}) == len(activations)
    for each in activations:
        assert len(each["id"]) == 25 and len(each["tokens"]) == len(each["values"])
        assert each["values"][each["maxValueTokenIndex"]] == each["maxValue"] == max(each["values"])
    (explanation,) = lines("explanations/batch-0.jsonl.gz")
    assert (explanation["index"], explanation["description"]) == ("5", "foxes")


def test_circuit_tracers_records_are_where_its_index_says(run: Run, tmp_path: Path) -> None:
    status, _, err = run("runs/run", "--max_tokens", "500", "--export", "circuit-tracer")
    assert status == 0, err
    features = Path("runs/run/browse/circuit-tracer/features")
    entries = json.loads(gzip.decompress((features / "index.json.gz").read_bytes()))
    assert set(entries) == {"0", "2"}
    place, entry = Index.open("runs/run")["layers.2"], entries["2"]
    content = (features / entry["filename"]).read_bytes()
    assert len(entry["offsets"]) == place.num_latents + 1 and entry["offsets"][-1] == len(content)
    for latent in place:
        start, stop = entry["offsets"][latent.index : latent.index + 2]
        assert int.from_bytes(content[start : start + 4], "little") == stop - start - 4
        record = json.loads(gzip.decompress(content[start + 4 : stop]))
        assert record["index"] == latent.index and record["act_max"] == pytest.approx(latent.max, rel=1e-3)
        for example in record["examples_quantiles"][0]["examples"]:
            assert example["tokens_acts_list"][example["train_token_ind"]] > 0
    write_circuit_tracer(place.index, tmp_path, Notes(tmp_path / "none.json"), [1])
    few = json.loads(gzip.decompress((tmp_path / "features/index.json.gz").read_bytes()))["0"]["offsets"]
    assert few[1] - few[0] == 4 and few[2] - few[1] > 4


def test_several_dictionaries_at_one_hookpoint_are_places_of_their_own_and_are_exported_as_such(run: Run) -> None:
    (step,) = Path("runs/run").glob("step_*")
    for group in ("a/same", "b/same"):
        shutil.copytree(step / "layers.2", step / group / "layers.2")
    shutil.rmtree(step / "layers.2")
    names = ["a/same/layers.2", "b/same/layers.2"]
    command = ("runs/run", "--max_tokens", "200", "--hookpoints", "layers.2")
    assert run(*command)[0] == 0
    assert list(Index.open("runs/run")) == names
    assert run(*command, "--export", "neuronpedia")[0] == 0
    exported = Path("runs/run/browse/neuronpedia/exports/model")
    assert {each.name for each in exported.iterdir()} == {"2-sae-a-same-res-128", "2-sae-b-same-res-128"}
    status, _, err = run(*command, "--export", "circuit-tracer")
    assert status == 2 and f"one dictionary of a layer, got {names[0]} and {names[1]}; choose with --hookpoints" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["CHECKPOINT must be given"]),
        (["no/such/run"], ["no/such/run"]),
        (["runs/run", "--port", "99999"], ["port must be between 1 and 65535"]),
        (["runs/run", "--latents", "3"], ["latents must come with export"]),
        (["runs/run", "--max_tokens", "500", "--export", "x", "--latents", "999"], ["latents must be below 128"]),
        (["runs/run", "--hookpoints", "layers.9"], ["hookpoints must name autoencoders"]),
        (["runs/run", "--max_tokens", "3"], ["at least one sequence of ctx_len=16"]),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], words: list[str]) -> None:
    status, out, err = run(*arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
    assert status == 2 and "Traceback" not in err and all(word in line for word in words), line


def test_the_list_of_options_is_frozen_and_each_is_documented() -> None:
    groups = COMMANDS["browse"].groups
    assert {name for names in groups.values() for name in names} == OPTIONS
    docs = field_docs(BrowseConfig)
    assert all(len(docs[name]) > 15 and docs[name].endswith(".") for name in OPTIONS)


def test_a_cache_is_indexed_without_the_language_model(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(files / "model"), str(files / "text.jsonl")
    reading = ["--layers", "0", "2", "--ctx_len", "16", "--max_tokens", "512", "--exclude_positions", "0"]
    assert sae.__main__.main(["cache", model, data, *reading, "--activations", "c", "--batch_size", "4"]) == 0

    def harvest(*anything: Any) -> None:
        raise AssertionError("the language model runs")

    with monkeypatch.context() as patch:
        patch.setattr("sae.lm.harvest", harvest)
        status, out, err = run("runs/run", "--activations", "c")
    assert status == 0 and "look at http://127.0.0.1:" in out, err
    index = Index.open("runs/run")
    assert list(index) == ["layers.0", "layers.2"] and index.num_tokens >= 512 and index["layers.0"].events > 0
    assert len(index["layers.0"][1].promotes) == 10 or index["layers.0"][1].count == 0
    for option, value in {"ctx_len": "8", "exclude_positions": "1"}.items():
        status, _, err = run("runs/run", "--activations", "c", f"--{option}", value, "--max_tokens", "64")
        assert status == 2 and err.strip().count("\n") == 0
        assert f"{option} must be that of the activations" in err and "leave it out" in err
    status, _, err = run("runs/run", "--activations", "nothing")
    assert status == 2 and "activations must name a cache that sae cache wrote" in err


def test_a_model_with_other_weights_than_the_runs_is_told(files: Path, run: Run, tmp_path: Path) -> None:
    save_tiny(tmp_path / "other", "gpt_neox", seed=1)
    data, reading = str(files / "text.jsonl"), ["--layers", "0", "2", "--ctx_len", "16", "--max_tokens", "512"]
    assert sae.__main__.main(["cache", "other", data, *reading, "--activations", "c", "--batch_size", "4"]) == 0
    for arguments in (["--activations", "c"], ["other", data, "--max_tokens", "64"]):
        status, out, err = run("runs/run", *arguments)
        assert status == 0 and "other has other weights than the model of " in out + err
    status, out, err = run("runs/run", str(files / "model"), data, "--max_tokens", "64")
    assert status == 0 and "other weights" not in out + err


def test_explaining_says_what_it_needs(run: Run) -> None:
    for words, said in {
        ("--explain", "localhost:80"): "explain must begin with http:// or https://, got localhost:80",
        ("--explainer", "llama"): "explainer must come with explain, got llama alone",
        ("--latents", "3"): "latents must come with export or explain",
    }.items():
        status, _, err = run("runs/run", *words)
        assert status == 2 and said in err and err.strip().count("\n") == 0
    status, _, err = run(
        "runs/run", "--max_tokens", "300", "--explain", "http://127.0.0.1:9/v1", "--explainer", "llama"
    )
    assert status == 2 and "explain must name a service that speaks OpenAI's protocol" in err.splitlines()[-1]

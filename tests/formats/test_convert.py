"""`sae convert` and `sae info`: what they write, say and refuse."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import make_sae
from safetensors.torch import load_file
from strangers import STRANGERS, D, M

from sae import Sae, SaeConfig
from sae.__main__ import main
from sae.activations.cache.format import CacheHeader
from sae.activations.cache.write import write_cache
from sae.activations.source import LiveActivations
from sae.data import TokenBatches
from sae.dictionary.spec import Spec
from sae.evaluation.thresholds import with_fitted_threshold
from sae.storage.files import last_taken_and_next_free

WIDTH = 48


def run_of_two(folder: Path) -> dict[str, Sae]:
    """A step of a run with two autoencoders."""
    saes = {name: make_sae(WIDTH, 96, 5, dtype=torch.float32) for name in ("layers.0", "layers.1")}
    for name, sae in saes.items():
        sae.save_to_disk(folder / "step_3" / name)
    return saes


def cache_of(folder: Path, hookpoints: list[str], width: int) -> Path:
    """Activations of 30 sequences of 8 tokens, 16 of them held out."""
    table = torch.randn(240, width)
    batches = TokenBatches(torch.arange(240).reshape(30, 8), 2, seed=0, held_out=16)
    live = LiveActivations(batches, lambda ids: {name: table[ids] + i for i, name in enumerate(hookpoints)})
    options = {"model": "m", "exclude_tokens": [], "exclude_positions": []}
    header = CacheHeader(options, dict.fromkeys(hookpoints, width), hookpoints, "float32", False, 0, 8, 30, 2)
    write_cache(folder, header, live, batches.held_out_batches())
    return folder


def test_a_run_is_converted_hookpoint_by_hookpoint_and_computes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saes, x = run_of_two(tmp_path / "run"), torch.randn(37, WIDTH)
    for to in ("saelens", "dictionary-learning", "llamascopium", "eleuther"):
        assert main(["convert", str(tmp_path / "run"), str(tmp_path / to), "--to", to]) == 0
        again = Sae.load_many(tmp_path / to)
        assert list(again) == list(saes)
        for name, sae in saes.items():
            torch.testing.assert_close(again[name](x).recon, sae(x).recon, rtol=1e-4, atol=1e-4)
        shown = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in shown[1:]] == [[name, to] for name in saes]
        assert all("48" in line and "96" in line and "float32" in line for line in shown[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["run", "saelens", "dictionary-learning", "llamascopium", "eleuther"]
    )


@pytest.mark.parametrize("to", ["saelens", "dictionary-learning", "llamascopium", "eleuther"])
@pytest.mark.parametrize("option", ["prefixes", "budgets"])
def test_nested_reconstructions_that_a_format_has_no_word_for_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, to: str
) -> None:
    one, x = make_sae(WIDTH, 96, 5, dtype=torch.float32), torch.randn(37, WIDTH)
    one = Sae.of_tensors(replace(one.cfg, **{option: [2, 3]}), one.state_dict())
    one.save_to_disk(tmp_path / "run" / "step_3" / "layers.0")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / to), "--to", to]) == 0
    told = f"layers.0: {to} has no word for {option} 2 3; the whole dictionary is written, which computes the same\n"
    assert (told in capsys.readouterr().out) == (to != "eleuther")
    again = Sae.load_many(tmp_path / to)["layers.0"]
    assert getattr(again.cfg, option) == ([2, 3] if to == "eleuther" else [])
    torch.testing.assert_close(again(x).recon, one(x).recon, rtol=1e-4, atol=1e-4)


def test_a_topk_becomes_one_threshold_that_leaves_as_many_latents_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of_two(tmp_path / "run")
    cache = cache_of(tmp_path / "cache", ["layers.0", "layers.1"], WIDTH)
    command = ["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "gemma-scope-2"]
    assert main(command) == 2
    assert "sae convert with" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*command, "--activations", str(cache)]) == 0
    said = capsys.readouterr().out
    assert "layers.1: TopK becomes JumpReLU with threshold" in said and "on 128 held-out tokens L0 was 5.00" in said
    assert Sae.load_many(tmp_path / "out")["layers.0"].spec.selection == "jumprelu"


@pytest.mark.parametrize("tie", [False, "target"])
def test_a_topk_cross_layer_transcoder_gets_a_threshold_for_each_layer_and_says_what_that_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tie: Any
) -> None:
    names = ("layers.0.mlp", "layers.1.mlp")
    for index, name in enumerate(names):
        writes, cfg = names[index:], SaeConfig(num_latents=96, k=5, cross_layer=True, tie_decoders=tie)
        widths = () if tie else (WIDTH,) * len(writes)
        width = sum(widths) or WIDTH
        spec = Spec(cfg, WIDTH, width, 96, reads=(f"{name}.input",), writes=writes, widths=widths)
        sae = Sae(WIDTH, cfg, d_out=width, spec=spec)
        torch.nn.init.normal_(sae.W_dec)
        sae.save_to_disk(tmp_path / "run" / name)
    cache = cache_of(tmp_path / "cache", [*names, *(f"{name}.input" for name in names)], WIDTH)
    command = ["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "circuit-tracer"]
    assert main(command) == 2 and "--activations fits one" in capsys.readouterr().err
    assert main([*command, "--activations", str(cache)]) == 0
    said = capsys.readouterr().out
    l0 = re.search(r"on 128 held-out tokens L0 of all layers was 10.00 and is ([\d.]+), FVU .* was [\d.]+ and is", said)
    assert l0 is not None and abs(float(l0[1]) - 10) < 0.5
    saes = Sae.load_many(tmp_path / "out")
    assert list(saes) == list(names) and {sae.spec.selection for sae in saes.values()} == {"jumprelu"}
    x = torch.randn(2048, WIDTH) + 2  # as the third place of the cache is
    assert abs(float((saes[names[0]].encode(x).top_acts > 0).sum(-1).float().mean()) - 5) < 1


@pytest.mark.parametrize("kind", ["cross_layer-relu", "set-skip"])
def test_what_circuit_tracer_wrote_is_converted_to_itself_by_the_names_of_its_own_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    source = Path(__file__).parent / "made/circuit_tracer" / kind
    assert main(["info", str(source)]) == 0
    assert all(line.endswith("gpt2") for line in capsys.readouterr().out.splitlines()[1:])
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "circuit-tracer"]) == 0
    for path in source.glob("[lW]*.safetensors"):
        before, after = load_file(path), load_file(tmp_path / "out" / path.name)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert "feature_input_hook: " in (tmp_path / "out/config.yaml").read_text()


def test_the_fitted_threshold_leaves_k_latents_in_the_mean_and_reports_what_it_changed() -> None:
    sae, x = make_sae(WIDTH, 96, 5, dtype=torch.float32), torch.randn(4096, WIDTH)
    changed = with_fitted_threshold(sae, x)
    assert changed.l0[0] == 5 and abs(changed.l0[1] - 5) < 0.1
    pre = (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
    acts = pre.relu() * (pre > changed.threshold)
    fvu = ((acts @ sae.W_dec + sae.b_dec - x).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert abs(changed.fvu[1] - fvu) < 1e-4 and abs(changed.fvu[0] - sae(x).fvu.item()) < 1e-6


REFUSED: dict[str, Any] = {
    "no such format": (["--to", "word"], "format must be one of eleuther, saelens"),
    "a hookpoint that is not there": (["--to", "saelens", "--hookpoints", "layers.7"], r"must hold \['layers.7'\]"),
    "autoencoders for circuit-tracer": (["--to", "circuit-tracer"], "circuit-tracer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_told_in_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run_of_two(tmp_path / "run")
    arguments, message = REFUSED[name]
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["Qwen Scope", "overcomplete tied", "OpenAI TopK"])
def test_a_dictionary_that_is_a_file_is_named_by_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stranger, folder = STRANGERS[name], tmp_path / "repo-L0_3"
    formula, x = stranger.write(folder), torch.randn(5, D)
    assert main(["info", str(folder / stranger.file)]) == 0 and stranger.format in capsys.readouterr().out
    assert main(["convert", str(folder / stranger.file), str(tmp_path / "out"), "--to", "saelens"]) == 0
    (again,) = Sae.load_many(tmp_path / "out").values()
    torch.testing.assert_close(again(x).recon, formula(x), rtol=1e-4, atol=1e-4)
    if stranger.format == "overcomplete":  # which names no hookpoint
        chosen = [str(folder / stranger.file), str(tmp_path / "chosen"), "--to", "saelens", "--hookpoints", "layers.3"]
        assert main(["convert", *chosen]) == 0
        ((key, at_layer),) = Sae.load_many(tmp_path / "chosen").items()
        assert key == "layers.3" and at_layer.spec.writes == ("layers.3",)
    assert main(["info", __file__]) == 2
    said = capsys.readouterr().err
    assert "must hold a dictionary, but there is no cfg.json" in said and said.count("\n") == 1


def test_a_target_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of_two(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "file" / "out"), "--to", "saelens"]) == 2
    said = capsys.readouterr().err
    assert f"TARGET must be a folder, but {tmp_path / 'file'} is a file; choose another TARGET" in said
    assert said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("to", ["saelens", "dictionary-learning"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    make_sae(WIDTH, 4096, 5, dtype=torch.float32).save_to_disk(tmp_path / "run/layers.0")
    assert main(["convert", str(tmp_path / "run"), str(small_disk / "out"), "--to", to]) == 2
    said = capsys.readouterr().err
    assert re.search(r"out cannot be written \(No space left on device\); make room, or choose another; nothing", said)
    assert said.count("\n") == 1 and not list(small_disk.iterdir())


def test_what_is_there_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of_two(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "mine")]) == 2
    assert "TARGET must be a new or empty folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "notes").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "disk that is not mounted")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "link")]) == 2
    assert f"TARGET must be a new or empty folder, but {tmp_path / 'link'} is there" in capsys.readouterr().err
    assert last_taken_and_next_free(tmp_path / "link") == (tmp_path / "link", tmp_path / "link-2")


def test_the_current_folder_is_filled_and_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of_two(tmp_path / "run")
    here = tmp_path / "here"
    (here / ".partial").mkdir(parents=True)  # what a kill has left
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    assert main(["convert", str(tmp_path / "run"), ".", "--to", "saelens"]) == 0
    assert here.stat().st_ino == inode and sorted(Sae.load_many(".")) == ["layers.0", "layers.1"]
    assert not [path for path in (*tmp_path.iterdir(), *here.iterdir()) if path.name.endswith(".partial")]


def test_a_target_behind_two_dots_is_what_it_leads_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of_two(tmp_path / "run")
    assert main(["convert", str(tmp_path / "run"), f"{tmp_path}/new/..", "--to", "saelens"]) == 2
    assert f"TARGET must be a new or empty folder, but {tmp_path} is there" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), f"{tmp_path}/new/../out", "--to", "saelens"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert sorted(Sae.load_many(tmp_path / "out")) == ["layers.0", "layers.1"]


@pytest.mark.parametrize("name", STRANGERS)
def test_info_says_what_there_is_without_reading_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stranger = STRANGERS[name]
    folder = tmp_path / "repo-L0_3" / "layer_3"
    stranger.write(folder)
    saved = Sae.load_from_disk(folder / stranger.file).spec
    monkeypatch.setattr("sae.formats.files.read_tensors", None)
    monkeypatch.setattr("sae.formats.files.read_npz", None)
    assert main(["info", str(folder)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    width = f"{D} → {saved.d_out}" if saved.d_out != D else f"{D}"
    assert line.split()[:2] == [stranger.hookpoint, stranger.format] and f" {width} " in line and f"  {M} " in line
    assert "float32" in line
    if saved.selection == "topk" and stranger.format != "openai":  # whose k is in its file alone
        assert "k 3" in line


def test_info_of_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Sae(D, SaeConfig(num_latents=M, k=3)).save_to_disk(tmp_path / "a")
    (tmp_path / "a" / "sae.safetensors").write_bytes(b"\xff" * 64)
    assert main(["info", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "damaged" in said and said.count("\n") == 1

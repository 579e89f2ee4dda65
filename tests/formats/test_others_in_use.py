"""Dictionaries of other libraries are measured, trained on and grafted as ours are."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from strangers import STRANGERS, D
from tiny_models import IDS, SENTENCES, VOCAB_SIZE, _spread, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

import sae as library
from sae import Sae
from sae.__main__ import main

OTHERS = ("EleutherAI signed", "TopK", "BatchTopK", "Gemma Scope", "Gemma Scope 2", "Llama Scope", "Qwen Scope",
          "Goodfire")  # fmt: skip
"""One of each format, all at the output of the same block."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model as wide as the strangers, another that is wider, texts, and the strangers."""
    folder = tmp_path_factory.mktemp("room")
    for name, width in (("model", D), ("wider", 2 * D)):
        cfg = LlamaConfig(vocab_size=VOCAB_SIZE, hidden_size=width, intermediate_size=16, num_hidden_layers=4,
                          num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, **IDS)  # fmt: skip
        _spread(AutoModelForCausalLM.from_config(cfg)).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": 3 * text}) + "\n" for text in 6 * SENTENCES))
    for name in OTHERS:
        STRANGERS[name].write(folder / name / "repo-L0_3/layer_3")
    yield folder


def path_of(room: Path, name: str) -> Path:
    return room / name / "repo-L0_3/layer_3" / STRANGERS[name].file


def test_each_format_measures_as_the_same_dictionary_in_our_own(room: Path, tmp_path: Path) -> None:
    for name in OTHERS:
        Sae.load_from_disk(path_of(room, name)).save_to_disk(tmp_path / name / "layers.3", format="eleuther")
    others = [str(path_of(room, name)) for name in OTHERS]
    own = [str(tmp_path / name) for name in OTHERS]
    command = ["eval", others[0], str(room / "model"), str(room / "texts.jsonl"), "--compare", *others[1:], *own]
    options = {"out": tmp_path / "out", "ctx_len": 16, "batch_size": 8, "max_tokens": 128, "device": "cpu"}
    assert main([*command, *(f"--{name}={value}" for name, value in options.items())]) == 0
    (found,) = (tmp_path / "out").rglob("eval.json")
    results = json.loads(found.read_text())["results"]
    metrics = [next(iter(each.values()))["metrics"] for each in results.values()]
    assert len(metrics) == 2 * len(OTHERS)
    for name, theirs, ours in zip(OTHERS, metrics[: len(OTHERS)], metrics[len(OTHERS) :], strict=True):
        assert 1 <= theirs["l0"] <= 24 and theirs["fvu"] > 0
        assert theirs["fvu"] == pytest.approx(ours["fvu"], rel=1e-4), name
        assert theirs["l0"] == pytest.approx(ours["l0"]), name


def test_a_dictionary_of_another_models_width_is_one_line(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Gemma Scope", "Qwen Scope"):
        command = ["eval", str(path_of(room, name)), str(room / "wider"), str(room / "texts.jsonl"), "--ctx_len=16"]
        assert main([*command, "--device=cpu"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae: error")]
        assert "layers.3" in line and "8" in line and "16" in line


@torch.no_grad()
def test_a_graft_of_each_format_puts_its_reconstruction_in_place(room: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(room / "model").eval()
    tokens = torch.arange(3, 19)[None]
    plain = library.lm.harvest(model, tokens, ["layers.3"])["layers.3"]
    for name in OTHERS:
        sae = Sae.load_from_disk(path_of(room, name))
        with library.graft(model, {"layers.3": sae}):
            grafted = model.model(tokens, output_hidden_states=True).last_hidden_state
        expected = model.model.norm(sae(plain.flatten(0, 1)).recon)[None]
        torch.testing.assert_close(grafted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_continues_from_a_strangers_topk(room: Path, tmp_path: Path) -> None:
    for name in ("TopK", "Qwen Scope"):
        command = ["train", str(room / "model"), str(room / "texts.jsonl"), "--finetune", str(path_of(room, name))]
        options = {"layers": 3, "ctx_len": 16, "batch_size": 4, "max_tokens": 192, "k": 3, "num_latents": 24,
                   "save_dir": tmp_path, "run_name": name.replace(" ", ""), "device": "cpu"}  # fmt: skip
        assert main([*command, *(f"--{name}={value}" for name, value in options.items())]) == 0

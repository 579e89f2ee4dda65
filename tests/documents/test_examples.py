"""The scripts in examples/ run as they stand: here on a tiny model, and once on the one that they name."""

import ast
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import CTX_LEN, IDS, VOCAB_SIZE, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from sae import Sae

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.stem != "embedded")
Example = Callable[..., str]


def test_there_are_five_and_each_is_short_and_says_what_it_shows() -> None:
    assert [path.stem for path in SCRIPTS] == ["evaluate", "load_others", "steer", "sweep", "train"]
    for path in SCRIPTS:
        text = path.read_text()
        assert len(text.splitlines()) <= 55, path.stem
        assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or ""), path.stem


def test_they_use_what_is_public() -> None:
    public = {"sae", "sae.data", "sae.lm", "sae.browser"}
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sae"):
                assert node.module in public, (path.stem, node.module)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of twelve layers, so that the examples' layers are there."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=CTX_LEN, **sizes, **IDS)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def example(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Example]:
    """Run a script in this process on the tiny model; returns what it printed."""
    monkeypatch.setenv("SAE_EXAMPLES_MODEL", str(tiny))
    monkeypatch.setenv("SAE_EXAMPLES_TOKENS", "2048")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "embedded", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    sys.modules.pop("embedded", None)


def test_each_runs_after_the_other(example: Example) -> None:
    checkpoint = Path(example("train").splitlines()[-1])
    run = str(checkpoint.parent)
    saes = Sae.load_many(run)
    assert list(saes) == ["layers.6", "layers.10"] and saes["layers.6"].num_latents == 8 * 32

    lines = example("evaluate", run).splitlines()
    assert [line.split(":")[0] for line in lines] == ["layers.6", "layers.10", "all"]
    assert all("KL" in line and "recovered" in line for line in lines)

    steered = example("steer", run, "layers.10")
    before, after = (line.split(": ", 1)[1] for line in steered.splitlines())
    assert before.lstrip() != after.lstrip() and "To open a file" in before
    assert "with 3:" in example("steer", run, "layers.10", "3")

    Sae.load_many(run)["layers.6"].save_to_disk("theirs/layers.6", format="saelens")
    assert "layers.6: topk, 32 wide, 256 latents; FVU" in example("load_others", "theirs", "ours")
    assert Sae.load_from_disk("ours/layers.6").W_dec.equal(saes["layers.6"].W_dec)


def test_the_sweep_lists_every_combination_the_best_first(example: Example) -> None:
    lines = [line for line in example("sweep").splitlines() if "latents, k" in line]
    errors = [float(line.split()[-1]) for line in lines]
    assert len(lines) == 4 and errors == sorted(errors)
    assert len({line.split()[0] for line in lines}) == 4


@pytest.mark.slow
def test_they_run_on_the_model_that_they_name(tmp_path: Path) -> None:
    """Train, then steer: SmolLM2 as installed, through the scripts as a person calls them."""
    environment = {name: value for name, value in os.environ.items() if name != "SAE_EXAMPLES_MODEL"}

    def call(name: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
            cwd=tmp_path, env=environment | {"SAE_EXAMPLES_TOKENS": "4096"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    run = str(Path(call("train")[-1]).parent)
    before, after = call("steer", run, "layers.10")
    assert "To open a file in Python, you" in before and before.split(": ")[1] != after.split(": ")[1]

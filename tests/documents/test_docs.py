"""The documentation: every command and every Python block of README and tutorials runs, and the site is built.

They run as they are written, but for the tables below: names of what only the hub has stand for tiny files, and
training commands end with SMALLER. What cannot run is in NOT_RUN with the reason.
"""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command_inputs import some_texts
from datasets import Dataset
from tiny_models import IDS, VOCAB_SIZE, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import sae.__main__
from sae import Sae, SaeConfig

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/tutorials").glob("*.md"))]
SLOW = {"docs/tutorials/several-gpus.md"}

STANDS_FOR = {
    '"Salesforce/wikitext", "wikitext-103-raw-v1"': '"json", data_files="my-texts.jsonl"',
    'Sae.load_from_hub("EleutherAI/sae-llama-3-8b-32x", hookpoint="layers.10")': (
        'Sae.load_from_disk("theirs/layers.10")'
    ),
    "EleutherAI/sae-llama-3-8b-32x": "theirs",
    "EleutherAI/pythia-160m": "llama",
    "meta-llama/Meta-Llama-3-8B": "llama",
    "openai-community/gpt2": "gpt2",
    "togethercomputer/RedPajama-Data-1T-Sample": "my-texts.jsonl",
    "torchrun --nproc_per_node 2": f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2",
    '{"": "cuda"}': '{"": "cpu"}',
}
"""What the documents name, and the tiny thing that has its place here."""

SMALLER = ["--ctx_len", "64", "--batch_size", "4"]
"""Added to commands that read text."""
TRAINS = [*SMALLER, "--max_tokens", "2048", "--no_log_to_wandb"]
"""Added to commands that train on text."""

GIVEN = {"x": "torch.randn(3, 7, 32)"}
"""Names that the README's blocks take as given."""

NOT_RUN = {
    "git clone <this repository> sae && cd sae": "it has no address here",
    "./demo.sh": "tests/documents/test_demo.py runs it",
    "./demo.sh --browse": "it shows the page until Ctrl-C; tests/browser/test_page.py opens that",
    "pip install .": "scripts/setup.sh has done it",
    "torchrun --nproc_per_node gpu -m sae meta-llama/Meta-Llama-3-8B DATASET --distribute_layers --batch_size 1 "
    "--layer_stride 2 --grad_acc_steps 8 --ctx_len 2048 --load_in_8bit --micro_acc_steps 2": "it needs GPUs",
}
"""Commands that cannot run in a test, and why."""


class Block(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """The command lines of a block of the shell, without comments, each on one line."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [shlex.join(words) if "<" not in line else line.split("  #")[0].strip()
                for line in lines if (words := shlex.split(line, comments=True))]  # fmt: skip


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents take as there: two models of twelve layers, texts, somebody's dictionary, a run."""
    folder = tmp_path_factory.mktemp("files")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4}
    llama = LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=2048, **sizes, **IDS)
    gpt2 = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=512, **IDS)
    for name, config in {"llama": llama, "gpt2": gpt2}.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    texts = [line * 2 for line in some_texts(40)]
    for name in ("my-texts", "other-texts", "wikitext"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "corpus").mkdir()
    Dataset.from_dict({"text": texts}).to_parquet(folder / "corpus/part.parquet")
    Sae(32, SaeConfig(num_latents=96, k=8)).save_to_disk(folder / "theirs/layers.10")
    return folder


@pytest.fixture
def reader(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None) -> Iterator["Reader"]:
    """Somebody who types what a page says, in a folder that has `files`."""
    import datasets

    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("sae.browser.server.serve", lambda app, bound: bound.close())
    datasets.disable_progress_bars()
    yield Reader(monkeypatch)
    datasets.enable_progress_bars()


class Reader:
    """Runs the blocks of a page one after the other; Python blocks share their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.names: dict[str, Any] = {name: eval(value, {"torch": torch}) for name, value in GIVEN.items()}
        self.ran = 0

    def run(self, block: Block) -> None:
        if block.language == "bash":
            for command in block.commands():
                if command not in NOT_RUN:
                    self.type(command)
        elif block.language == "python":
            exec(compile(here(block.text), f"{block.page}:{block.line}", "exec"), self.names)
            self.ran += 1
        else:
            assert block.language == "", f"{block.page}:{block.line} is in a language that nobody runs"

    def type(self, command: str) -> None:
        words = shlex.split(here(command))
        if words[0] == sys.executable:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = subprocess.run([*words, *TRAINS], capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        else:
            words = words[1:] if words[0] == "sae" else words[words.index("sae") + 1 :]
            words += added(words)
            self.monkeypatch.setattr(sys, "argv", ["sae", *words])
            assert sae.__main__.main(words) == 0, command
        self.ran += 1


def here(text: str) -> str:
    """The text with the tiny things in the places of those that only the hub has."""
    for name, instead in STANDS_FOR.items():
        text = text.replace(name, instead)
    return text


def added(words: list[str]) -> list[str]:
    """The options that make a command small."""
    if words[0] in ("convert", "info", "push"):
        return []
    if words[0] == "browse":
        return ["--no_browser", *(SMALLER if "wikitext.jsonl" in words else [])]
    if words[0] == "eval":
        return SMALLER if "wikitext.jsonl" in words else []
    if words[0] == "cache":
        return [*SMALLER, "--max_tokens", "2048"]
    return ["--no_log_to_wandb"] if "--activations" in words else TRAINS


NEEDS_A_RUN = {"docs/tutorials/evaluate.md", "docs/tutorials/look-at-latents.md",
               "docs/tutorials/load-others.md"}  # fmt: skip


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES])
def test_every_command_and_every_python_block_runs(page: str, reader: Reader) -> None:
    if page in NEEDS_A_RUN:
        reader.type("sae EleutherAI/pythia-160m my-texts.jsonl --layers 3 7 --expansion_factor 4 --run_name my-run")
    for block in blocks(page):
        reader.run(block)
    assert reader.ran > 0


def test_what_is_not_run_is_still_written_somewhere() -> None:
    written = {command for page in PAGES for block in blocks(page) if block.language == "bash"
               for command in block.commands()}  # fmt: skip
    assert set(NOT_RUN) <= written, set(NOT_RUN) - written
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert not [name for name in STANDS_FOR if name not in text]


HAND_WRITTEN = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "findings/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md") if path.name != "notebook.md"),
]
"""All documents but the dated notes and the CHANGELOG."""


def sentences(page: str) -> list[str]:
    """The prose of a page, tables included: no blocks, pictures or headings."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = ["" if line.startswith(("#", "!", "    ")) else line for line in text.splitlines()]
    table = [cell for line in lines if line.startswith("|") for cell in re.split(r"(?<!\\)\||;", line)]
    prose = "\n".join("" if line.startswith("|") else line for line in lines)
    paragraphs = [*table, *re.split(r"\n\s*\n|\n(?:- |\d+\. )", prose)]
    return [
        each for paragraph in paragraphs for each in re.split(r"(?<=[.?!])\**\s+", " ".join(paragraph.split())) if each
    ]


@pytest.mark.parametrize("page", HAND_WRITTEN)
def test_sentences_are_short(page: str) -> None:
    """25 words at most, and as many in parentheses; a list of code is one word."""
    parts = []
    for sentence in sentences(page):
        plain = re.sub(r"`[^`]*`(, `[^`]*`)*", "x", sentence)
        parts += [re.sub(r"\([^)]*\)", "", plain), *re.findall(r"\([^)]*\)", plain)]
    long = [part for part in parts if sum(bool(re.search(r"\w", word)) for word in part.split()) > 25]
    assert not long


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 7000


def documented() -> Iterator[tuple[str, Any]]:
    """The functions and methods that the reference shows, by name; of two classes those that it lists."""
    listed = {"SaeTrainer": ["__init__", "fit", "resume", "save"], "ActivationCache": ["__init__"]}
    for page in (ROOT / "docs/reference").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            found = getattr(import_module(module), attribute)
            if not inspect.isclass(found):
                yield name, inspect.unwrap(found)
                continue
            for member in listed.get(attribute, [each for each in vars(found) if not each.startswith("_")]):
                function = inspect.unwrap(getattr(vars(found)[member], "__func__", vars(found)[member]))
                if inspect.isfunction(function):
                    yield f"{name}.{member}", function


def test_the_reference_says_what_goes_into_a_function_and_what_comes_out() -> None:
    names = []
    for name, function in documented():
        signature, text = inspect.signature(function), inspect.getdoc(function) or ""
        parameters = [each for each in signature.parameters if each not in ("self", "cls")]
        returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
        assert not parameters or "Args:\n" in text, name
        assert not (parameters and returns) or "Returns:\n" in text or "Yields:\n" in text, name
        names.append(name)
    assert len(names) > 50


@pytest.mark.skipif(
    find_spec("mkdocs") is None, reason="mkdocs is not there: pip install '.[docs]'; scripts/setup.sh does"
)
def test_the_site_is_built_without_a_warning_and_has_the_docstrings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of mkdocs-material, about versions that are not used here
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "reference" / "sae.html").read_text()
    assert 'id="sae.dictionary.autoencoder.Sae.encode"' in page and "Keep the latents of each token" in page
    assert sorted(path.stem for path in (tmp_path / "site" / "tutorials").glob("*.html")) == [
        "evaluate", "first-run", "load-others", "look-at-latents", "several-gpus", "sweep"
    ]  # fmt: skip

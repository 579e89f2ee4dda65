"""By the clock, from start to end, on SmolLM2-135M: what a cache of activations saves, what eight configurations cost.

`benchmarks.speed.cache_savings FOLDER RUN… [--layers …] [--max_tokens N]` runs `sae` once for each RUN of `RUNS`, on
the text of the benchmarks, in this order, and prints a row of a table for each; caches are written into FOLDER and read
from there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import CACHE
from benchmarks.harness import inputs

READING = "--ctx_len 256 --batch_size 8 --exclude_positions 0"
TRAINING = "--batch_size 8 --expansion_factor 8 --no_log_to_wandb"
EIGHT = "--k 16 32 64 128 --lr 2e-3 4e-3"
RUNS = {
    "live": f"{{text}} {READING} {{where}} {TRAINING}",
    "eight_live": f"{{text}} {READING} {{where}} {TRAINING} {EIGHT}",
    "cache_bfloat16": f"cache {{text}} {READING} {{where}} --activations {{folder}}/bfloat16",
    "cache_int8": f"cache {{text}} {READING} {{where}} --activations {{folder}}/int8 --dtype int8",
    "cached_bfloat16": f"--activations {{folder}}/bfloat16 {TRAINING}",
    "cached_int8": f"--activations {{folder}}/int8 {TRAINING}",
    "eight_cached": f"--activations {{folder}}/bfloat16 {TRAINING} {EIGHT}",
}


class Seconds(NamedTuple):
    """What a command took."""

    clock: float
    processor: float


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="+", choices=RUNS)
    parser.add_argument("--layers", nargs="+", default=["5", "10", "15"])
    parser.add_argument("--max_tokens", default="200000")
    given = parser.parse_args()
    inputs.tokens()
    text = f"{inputs.gguf()} {CACHE / 'english.jsonl'}"
    where = f"--layers {' '.join(given.layers)} --max_tokens {given.max_tokens}"
    print(f"| {where} | seconds | processor seconds | tokens/s | held-out FVU |\n|---|---:|---:|---:|---|", flush=True)
    for name in given.runs:
        command = RUNS[name].format(text=text, where=where, folder=given.folder)
        with tempfile.TemporaryDirectory() as runs:
            if not command.startswith("cache"):
                command += f" --save_dir {runs} --run_name run"
            took = timed([sys.executable, "-m", "sae", *command.split()])
            print(f"| {name} | {took.clock:.1f} | {took.processor:.1f} | {reached(Path(runs) / 'run')} |", flush=True)


def timed(command: list[str]) -> Seconds:
    """Run the command; what it says goes to a file. Raises RuntimeError with the end of it if it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return Seconds(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def reached(run: Path) -> str:
    """Two cells: tokens a second of training, and the held-out FVU of each autoencoder; "-" of a cache."""
    if not run.exists():
        return "- | -"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads((run / "evaluation.json").read_text())
    fvus = ", ".join(f"{metrics['fvu']:.4f}" for metrics in found.values())
    return f"{last['tokens_per_second']:,.0f} | {fvus}"


if __name__ == "__main__":
    main()

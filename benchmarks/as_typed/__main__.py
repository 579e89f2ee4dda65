"""Measure what users run: our command as typed, from start to end, beside eai-sparsify's trainer on the same tokens.

python -m benchmarks.as_typed                              # every row; prints at the start how long that takes
python -m benchmarks.as_typed --rows small-65k memory-8    # some of them, into the same file
python -m benchmarks.as_typed --show benchmarks/results/X-as-typed.json
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import CACHE, RESULTS, ROOT
from benchmarks.as_typed.runs import Run, RunError, ours, prepared, theirs
from benchmarks.as_typed.tables import show
from benchmarks.harness import machine

SCHEMA = "as typed, 1"
PLACE = CACHE / "as-typed"
MODEL, TEXT, HELD_OUT = "SmolLM2-135M", "documentation.jsonl", "held-out.npy"
CTX_LEN, BATCH, WIDTH = 256, 16, 576
ACTIVATIONS, TOKENS = "activations", "tokens.npy"


@dataclass(frozen=True)
class Case:
    """A row: what is typed, and whether the result is measured too."""

    name: str
    layers: tuple[int, ...]
    tokens: int
    expansion_factor: int | None = None
    """None: it is not typed."""
    cached: bool = False
    measured: bool = True

    def typed(self, tokens: int) -> list[list[str]]:
        """The commands, without `sae`; the last one trains."""
        source = [MODEL, TEXT, "--layers", *map(str, self.layers), "--max_tokens", str(tokens)]
        sizes = ["--ctx_len", str(CTX_LEN), "--batch_size", str(BATCH)]
        factor = [] if self.expansion_factor is None else ["--expansion_factor", str(self.expansion_factor)]
        if not self.cached:
            return [[*source, *sizes, *factor]]
        return [
            ["cache", *source, *sizes, "--activations", ACTIVATIONS],
            ["--activations", ACTIVATIONS, "--batch_size", str(BATCH), *factor],
        ]

    @property
    def hookpoints(self) -> list[str]:
        """By both libraries' names."""
        return [f"layers.{layer}" for layer in self.layers]

    def seconds(self, tokens: int, repeats: int, grafted: int) -> float:
        """About how long it takes on two cores."""
        wide = self.expansion_factor != 8
        each = tokens * len(self.layers) / 3
        runs = 55 + each / (900 if wide else 1800) + each / (420 if wide else 800)
        models = 1 + 4 * len(self.layers) + 4 * (len(self.layers) > 1)
        quality = 60 + 2 * models * grafted / 3 if self.measured else 0
        return repeats * runs + quality + 30 + (tokens / 2500 if self.cached else 0)


CASES = {
    case.name: case
    for case in (
        Case("small-65k", (5, 10, 15), 65_536, 8),
        Case("default-65k", (5, 10, 15), 65_536),
        Case("small-500k", (5, 10, 15), 500_000, 8),
        Case("default-500k", (5, 10, 15), 500_000),
        Case("cached-500k", (10,), 500_000, cached=True),
        Case("all-layers-32k", tuple(range(30)), 32_768, 8, measured=False),
        Case("memory-8", (1, 4, 7, 10, 13, 16, 19, 22), 32_768, measured=False),
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Measure the rows, save after each, print the tables; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    if chosen.show:
        print(show(json.loads(chosen.show.read_text(encoding="utf-8"))))
        return 0
    cases = [CASES[name] for name in chosen.rows]
    total = sum(case.seconds(chosen.tokens or case.tokens, chosen.repeats, chosen.grafted) for case in cases)
    _say(f"about {total / 60:.0f} minutes on two quiet cores")
    _prepare("place")
    report = _report(chosen)
    for case in cases:
        row = _row(case, chosen)
        report["rows"] = [old for old in report["rows"] if _key(old) != _key(row)] + [row]
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(show(report))
    return int(any(row["failed"] for row in report["rows"]))


def _row(case: Case, chosen: argparse.Namespace) -> dict[str, Any]:
    """All runs of a case, in turns, and the quality of what the first of each library left."""
    tokens = chosen.tokens or case.tokens
    with tempfile.TemporaryDirectory(dir=PLACE, prefix=f"{case.name}-") as name:
        bench = Bench(case, tokens, Path(name), chosen.threads)
        row: dict[str, Any] = {"case": case.name, "asked_tokens": tokens, "hookpoints": case.hookpoints}
        row |= {"expansion_factor": case.expansion_factor, "at": time.strftime("%Y-%m-%d %H:%M"), "failed": ""}
        row |= {"commit": _commit(), "threads": chosen.threads, "runs": [], "quality": {}, "cache_seconds": None}
        row["commands"] = {
            "sae": [shlex.join(["sae", *line]) for line in case.typed(tokens)],
            "sparsify": bench.their_call(),
        }
        try:
            row["cache_seconds"] = bench.prepare()
            for turn in range(chosen.repeats):
                for library in ("sae", "sparsify"):
                    run = bench.run(library, turn)
                    row["runs"].append(run.as_json())
                    _say(f"{case.name}, {library}: {run.tokens_per_second:,.0f} tokens/s, {run.total:.0f} s")
            if case.measured:
                row["quality"] = bench.quality(chosen.held_out, chosen.grafted)
        except RunError as error:
            row["failed"] = str(error).replace(name, ".").replace(str(ROOT), "")
            _say(f"{case.name}: {row['failed']}")
    return row


class Bench:
    """One case in a folder of its own, with model and text beside each run, so that what is typed is what is run."""

    def __init__(self, case: Case, tokens: int, folder: Path, threads: int | None) -> None:
        self.case, self.tokens, self.folder, self.threads = case, tokens, folder, threads
        self.saved: dict[str, Path] = {}
        """Where the first run of each library saved."""

    def prepare(self) -> float | None:
        """What a peer gets ready-made; and the cache, of which the seconds are returned, if there is one."""
        typed = self.case.typed(self.tokens)
        if not self.case.cached:
            _prepare("tokens", str(self.folder / TOKENS), *typed[0])
            return None
        place = self._beside("cache")
        seconds = prepared(typed[0], place, self.threads)
        _prepare("activations", str(place / ACTIVATIONS), str(self.folder / "rows.bf16"))
        return seconds

    def run(self, library: str, turn: int) -> Run:
        """One run. What it saved stays if it is the first."""
        place = self._beside(f"{library}-{turn}")
        if library == "sae":
            if self.case.cached:
                (place / ACTIVATIONS).symlink_to(self.folder / "cache" / ACTIVATIONS)
            run, saved = ours(self.case.typed(self.tokens)[-1], place, self.threads)
        else:
            run, saved = theirs(self._their_job(), place, self.threads)
            run.dead = dict(zip(self.case.hookpoints, run.dead.values(), strict=True))
        if turn == 0:
            self.saved[library] = saved
        else:
            shutil.rmtree(place)
        return run

    def quality(self, sequences: int, grafted: int) -> dict[str, Any]:
        """By library and hookpoint, of held-out tokens."""
        job = {"model": str(PLACE / MODEL), "rows": str(PLACE / HELD_OUT), "hookpoints": self.case.hookpoints}
        job |= {"folders": {library: str(path) for library, path in self.saved.items()}}
        job |= {"sequences": sequences, "grafted": grafted}
        _say(f"{self.case.name}: quality on {sequences * CTX_LEN:,} tokens, grafted on {grafted * CTX_LEN:,}")
        return json.loads(_output("quality", json.dumps(job)))  # type: ignore[no-any-return]

    def their_call(self) -> list[str]:
        """In their words."""
        factor = self.case.expansion_factor
        sae = "SaeConfig()" if factor is None else f"SaeConfig(expansion_factor={factor})"
        if self.case.cached:
            return [
                f"Trainer(TrainConfig({sae}, batch_size=1), rows, given).fit()  # given: returns {BATCH * CTX_LEN} rows"
            ]
        return [f"Trainer(TrainConfig({sae}, batch_size={BATCH}, layers={list(self.case.layers)}), rows, model).fit()"]

    def _their_job(self) -> dict[str, Any]:
        job: dict[str, Any] = {"batch_size": BATCH, "ctx_len": CTX_LEN, "expansion_factor": self.case.expansion_factor}
        if self.case.cached:
            return job | {"activations": str(self.folder / "rows.bf16"), "d_in": WIDTH}
        return job | {"model": MODEL, "rows": str(self.folder / TOKENS), "layers": list(self.case.layers)}

    def _beside(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir()
        for each in (MODEL, TEXT):
            (place / each).symlink_to(PLACE / each)
        return place


def _prepare(*arguments: str) -> None:
    _output("data", *arguments)


def _output(module: str, *arguments: str) -> str:
    """What a module beside this one prints, run where model and text are. Raises RunError with its last words."""
    where = PLACE if PLACE.exists() else ROOT
    command = [sys.executable, "-m", f"benchmarks.as_typed.{module}", *arguments]
    done = subprocess.run(command, cwd=where, env=machine.ours_first(), capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{module} {arguments[0][:20]}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def _report(chosen: argparse.Namespace) -> dict[str, Any]:
    """The file so far, or a new one. Raises ValueError for a file of another kind or machine."""
    about = machine.describe("cpu", chosen.threads or machine.available_cores())
    chosen.out = chosen.out or RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.label(about)}-as-typed.json"
    if not chosen.out.exists():
        versions = machine.versions(["sparsify"])
        return {"schema": SCHEMA, "date": time.strftime("%Y-%m-%d"), "machine": about, "versions": versions, "rows": []}
    report = json.loads(chosen.out.read_text(encoding="utf-8"))
    if report.get("schema") != SCHEMA or report["machine"]["cpu"] != about["cpu"]:
        raise ValueError(f"{chosen.out.name} must be of this benchmark and machine; name another --out")
    return report  # type: ignore[no-any-return]


def _key(row: dict[str, Any]) -> Sequence[Any]:
    return row["case"], row["asked_tokens"]


def _commit() -> str:
    """Of the project, and whether it has changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=CASES, default=list(CASES), metavar="ROW", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each library, in turns")
    parser.add_argument("--tokens", type=int, help="instead of a row's own, to try the benchmark itself")
    parser.add_argument("--held-out", type=int, default=256, help="sequences of 256 tokens to measure FVU and use on")
    parser.add_argument("--grafted", type=int, default=64, help="of them, for KL and cross-entropy")
    parser.add_argument("--threads", type=int, help="by default what PyTorch chooses, as for a user")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/<date>-<machine>-as-typed.json")
    parser.add_argument("--show", type=Path, help="print the tables of a file, and measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())

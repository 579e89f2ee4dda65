"""Measure `sae browse` as a user types it, beside SAEDashboard 0.8.0 on the same tokens and the same dictionary.

python -m benchmarks.browse                                   # index, blocks and page; an hour on two busy cores
python -m benchmarks.browse index --tokens 319000             # SmolLM2's block 9: 4,608 and 18,432 latents
python -m benchmarks.browse blocks --block_tokens 32768       # all 30 blocks at once, beside the model alone
python -m benchmarks.browse dashboard --dashboard_python X/bin/python    # after index; X as docs/browser.md says
python -m benchmarks.browse page                              # made-up events: server, drawing, scrolling, export

Each section goes into benchmarks/results/<date>-<machine>-browse.json. Nothing is installed.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import CACHE, RESULTS, ROOT
from benchmarks.as_typed.data import MODEL, PLACE, TEXT
from benchmarks.browse import peer_job, synthetic
from benchmarks.harness import machine, measure

FOLDER = CACHE / "browse"
TRAINED = {8: 98_304, 32: 65_536}
"""Tokens that a dictionary is trained on before it is looked at, by its expansion factor."""
BLOCKS, BLOCK_TRAINED = 30, 8192
BATCH = 8
"""Sequences of a batch, the default of `sae browse`."""
SECTIONS = ("index", "blocks", "dashboard", "page")


class Ended(NamedTuple):
    """A command that has run."""

    seconds: float
    peak_MB: float
    other_cores: float


def main() -> int:
    """Measure what is asked for, and write it down section by section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--tokens", type=int, default=319_000)
    parser.add_argument("--block_tokens", type=int, default=65_536)
    parser.add_argument("--dashboard_tokens", type=int, default=65_536)
    parser.add_argument("--dashboard_batches", type=int, default=2)
    parser.add_argument("--dashboard_python", type=Path)
    parser.add_argument("--many_tokens", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    cfg = parser.parse_args()
    out = cfg.out or RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.label(machine.describe('cpu', 2))}-browse.json"
    for section in cfg.sections or ["index", "blocks", "page"]:
        found = {"load_before": machine.load()} | globals()[f"measure_{section}"](cfg)
        document = json.loads(out.read_text()) if out.exists() else {"machine": machine.describe("cpu", 2)}
        document |= {"versions": machine.versions([]), section: found}
        out.write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps({section: found}, indent=1))
    return 0


def prepare() -> None:
    """A folder with the model, the text, and trained dictionaries; made once."""
    if not (PLACE / TEXT).exists():
        command("-m", "benchmarks.as_typed.data", "place", within=ROOT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, TEXT):
        if not (FOLDER / name).exists():
            (FOLDER / name).symlink_to((PLACE / name).resolve())
    for factor, tokens in TRAINED.items():
        train(f"x{factor}", factor, tokens, [9])


def train(name: str, factor: int, tokens: int, layers: Sequence[int]) -> None:
    """Train a run by our command, unless it is there."""
    if not (FOLDER / name / "evaluation.json").exists():
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        sizes = ["--ctx_len", "256", "--expansion_factor", str(factor), "--max_tokens", str(tokens)]
        command("-m", "sae", MODEL, TEXT, *sizes, "--layers", *map(str, layers), "--save_dir", ".", "--run_name", name)


def measure_index(cfg: argparse.Namespace) -> dict[str, Any]:
    """Block 9: from the command to the address, with an index to make; 4,608 and 18,432 latents."""
    prepare()
    narrow, wide = (indexed(f"x{factor}", cfg.tokens) for factor in TRAINED)
    seconds, tokens = alone("x8"), np.asarray(_index("x8").tokens).reshape(-1, 256)
    np.save(FOLDER / "tokens.npy", tokens)
    return {
        "tokens": int(tokens.size), "lm_alone_s": seconds, "4608": narrow, "18432": wide,
        "wide_over_narrow": wide["seconds"] / narrow["seconds"], "first_page_s": first_page("x8", cfg.tokens),
        "export_bytes_a_latent": exported("x8", cfg.tokens),
    }  # fmt: skip


def measure_blocks(cfg: argparse.Namespace) -> dict[str, Any]:
    """All blocks at once, beside the language model alone on these tokens."""
    prepare()
    train("blocks", 8, BLOCK_TRAINED, range(BLOCKS))
    found = indexed("blocks", cfg.block_tokens)
    seconds = alone("blocks")
    return found | {"lm_alone_s": seconds, "ratio": found["seconds"] / seconds}


def measure_dashboard(cfg: argparse.Namespace) -> dict[str, Any]:
    """SAEDashboard on some batches of latents; the whole follows by a rule that is written beside it."""
    if cfg.dashboard_python is None:
        raise SystemExit(f"--dashboard_python must be given: {peer_job.INSTALL}")
    tokens = np.load(FOLDER / "tokens.npy")
    rows = max(1, min(len(tokens), cfg.dashboard_tokens // tokens.shape[1]))
    if not (FOLDER / "x8-saelens").exists():
        command("-m", "sae", "convert", "x8", "x8-saelens", "--to", "saelens")
    found = peer_job.run(cfg.dashboard_python, FOLDER, MODEL, tokens[:rows], cfg.dashboard_batches)
    whole = tokens.size / (rows * tokens.shape[1]) * (
        found["batch_s"][0] + (math.ceil(4608 / peer_job.LATENTS_AT_ONCE) - 1) * np.mean(found["batch_s"][1:])
    )  # fmt: skip
    return found | {
        "rule": "the first batch, which runs the language model, and 35 times the mean of the others; times all tokens "
        "by those measured", "tokens_measured": rows * tokens.shape[1], "tokens": int(tokens.size),
        "latents_measured": cfg.dashboard_batches * peer_job.LATENTS_AT_ONCE, "whole_s": float(whole),
    }  # fmt: skip


def measure_page(cfg: argparse.Namespace) -> dict[str, Any]:
    """Made-up events: the merge, the server, and Chromium if it is there."""
    from benchmarks.browse import page

    found: dict[str, Any] = {}
    for name, tokens, latents in (("ten", cfg.many_tokens, 18_432), ("wide", 524_288, 131_072)):
        folder = FOLDER / name
        if not (folder / "made.json").exists():
            made = synthetic.make(folder, tokens, latents)
            (folder / "made.json").write_text(json.dumps(made))
        found[name] = json.loads((folder / "made.json").read_text()) | page.measure(folder)
    return found


def indexed(run: str, tokens: int) -> dict[str, float]:
    """Seconds from the command to the address of the page, and sizes, of an index that was not there."""
    shutil.rmtree(FOLDER / run / "browse", ignore_errors=True)
    ended = browsed(run, tokens)
    index = _index(run)
    size = sum(path.stat().st_size for path in index.folder.rglob("*") if path.is_file())
    events = sum(place.events for place in index.places.values())
    return ended._asdict() | {"MB": size / 1e6, "events": events, "bytes_an_event": size / events}


def first_page(run: str, tokens: int) -> list[float]:
    """Seconds from the command to the first page, the list's data with it; three times, the index is there."""
    return [browsed(run, tokens, and_page=True).seconds for _ in range(3)]


def exported(run: str, tokens: int) -> float:
    """Bytes of a latent in static pages, one latent in twenty exported; the list's columns count."""
    latents = range(0, _index(run)["layers.9"].num_latents, 20)
    shutil.rmtree(FOLDER / "site", ignore_errors=True)
    chosen = [str(latent) for latent in latents]
    options = ["--max_tokens", str(tokens), "--export", "site", "--latents", *chosen]
    command("-m", "sae", "browse", run, *options, "--no_browser")
    pages = sum(path.stat().st_size for path in (FOLDER / "site/data").glob("place0-*.js"))
    columns = (FOLDER / "site/data/place0.js").stat().st_size
    return pages / len(latents) + columns / _index(run)["layers.9"].num_latents


def browsed(run: str, tokens: int, *, and_page: bool = False) -> Ended:
    """`sae browse RUN --max_tokens TOKENS --no_browser` until it tells its address, or until the page is there."""
    from urllib.request import urlopen

    busy, start = measure.busy_seconds() or 0.0, time.perf_counter()
    arguments = [sys.executable, "-m", "sae", "browse", run, "--max_tokens", str(tokens), "--no_browser"]
    with (FOLDER / "browse.log").open("w") as log:
        process = subprocess.Popen(arguments, cwd=FOLDER, env=_plain(), stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    told = next((line for line in process.stdout if line.startswith("look at ")), None)
    if told is None:
        raise SystemExit((FOLDER / "browse.log").read_text()[-400:])
    if and_page:
        for path in ("", "app.js", "api/index", "api/vocabulary", "api/place/0/columns"):
            urlopen(told.split()[2] + path).read()
    seconds = time.perf_counter() - start
    process.terminate()
    _, _, usage = os.wait4(process.pid, 0)
    others = max(0.0, (measure.busy_seconds() or 0.0) - busy - usage.ru_utime - usage.ru_stime) / seconds
    return Ended(seconds, usage.ru_maxrss / 1e3, round(others, 2))


def alone(run: str) -> float:
    """Seconds of the language model alone."""
    return float(command("-m", "benchmarks.browse.alone", MODEL, run, str(BATCH)))


def command(*arguments: str, within: Path = FOLDER) -> str:
    """Run a Python command; what it printed. Raises SystemExit with its last words."""
    done = subprocess.run([sys.executable, *arguments], cwd=within, env=_plain(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:3])} failed: {done.stderr[-400:]}")
    return done.stdout


def _plain() -> dict[str, str]:
    """The environment of a shell in which nothing is set: threads as PyTorch chooses, no network."""
    chosen = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return chosen | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def _index(run: str) -> Any:
    from sae.browser import Index

    return Index.open(FOLDER / run)


if __name__ == "__main__":
    sys.exit(main())

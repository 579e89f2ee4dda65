"""Members of the family side by side on the same cached activations: FVU, L0 and unused latents on held-out tokens.

    sae cache MODEL DATASET --layers 10 --activations prose
    python -m benchmarks.quality.family prose --max_tokens 131072 --kinds topk batchtopk matryoshka

Transcoders need a cache of a module and its input: --hookpoints layers.9.mlp layers.9.mlp.input. --peer trains
eai-sparsify's on the same activations, at its default rate. --steps times a step of each kind, in turn, on one core.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine
from benchmarks.peers import environments
from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, lm
from sae.activations.cached import CachedStore
from sae.data import ActivationCache
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe, firings

STEPS, WARM_UP = 11, 3
"""Steps that are timed of each kind, and those before."""

KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {"selection": "batchtopk"},
    "groupmax": {"selection": "groupmax"},
    "matryoshka": {"prefixes": [512, 2048]},
    "matryoshka-batchtopk": {"prefixes": [512, 2048], "selection": "batchtopk"},
    "hierarchical": {"budgets": [8, 16]},
    "hierarchical-64": {"k": 64, "budgets": [8, 16, 32]},
    "topk-8": {"k": 8},
    "topk-16": {"k": 16},
    "topk-64": {"k": 64},
    "transcoder": {"transcode": True},
    "skip-transcoder": {"transcode": True, "skip_connection": True},
}


def rows(cache: str, kinds: list[str], shape: dict[str, Any], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each kind and hookpoint, of the product's own trainer."""
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            cfg = TrainConfig(SaeConfig(**shape | KINDS[kind]), save_dir=folder, log_to_wandb=False, **options)
            trainer = SaeTrainer(cfg, ActivationCache(cache))
            trainer.fit()
            found, tokens = trainer.held_out_quality(), trainer.step * trainer.tokens_per_step
            seconds = {name: watch.read() for name, watch in trainer.speed.stopwatches.items()}
        for name, metrics in found.items():
            speed = tokens / seconds[name]
            measured = metrics._asdict()
            held_out = {"held_out_tokens": measured.pop("tokens")}
            row = {"kind": kind, "hookpoint": name, "trained_tokens": tokens, "tokens_per_second": speed}
            yield row | held_out | measured


def peer_rows(cache: str, hookpoint: str, shape: dict[str, Any], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of eai-sparsify's own trainer, without and with a skip connection, in its environment."""
    sae = SaeConfig(transcode=True)
    store = CachedStore(TrainConfig(sae, **options | {"hookpoints": [hookpoint]}), ActivationCache(cache))
    training, held_out = list(store.source), [batch.activations for batch in store.held_out_batches()]
    sides = [
        torch.cat([each[name] for each in part])
        for part in (training, held_out)
        for name in (f"{hookpoint}.input", hookpoint)
    ]
    with tempfile.TemporaryDirectory() as folder:
        pairs = str(Path(folder) / "pairs.pt")
        torch.save(sides, pairs)
        for skip in (False, True):
            job = shape | {"pairs": pairs, "skip_connection": skip, "lr": None}
            command = [
                str(environments.python_of("sparsify")),
                "-m",
                "benchmarks.peers.sparsify_transcoder",
                json.dumps(job),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=machine.ours_first())
            kind = f"eai-sparsify {'skip-' * skip}transcoder"
            yield {"kind": kind, "hookpoint": hookpoint} | json.loads(done.stdout.splitlines()[-1])


def step_times(cache: str, kinds: list[str], shape: dict[str, Any], options: dict[str, Any]) -> dict[str, float]:
    """Median seconds of a step of each kind of autoencoder on one core, the kinds in turn on the same tokens."""
    torch.set_num_threads(1)
    store = CachedStore(TrainConfig(SaeConfig(), **options), ActivationCache(cache))
    (hookpoint, d_in), *_ = store.widths.items()
    batches = [batch[hookpoint].float() for batch, _ in zip(store.source, range(STEPS + WARM_UP), strict=False)]
    tokens = len(batches[0])
    learners = {}
    for kind in kinds:
        sae = Sae(d_in, SaeConfig(**shape | KINDS[kind]), generator=torch.Generator().manual_seed(0))
        recipe = Recipe.named("default", 1000, firings(tokens, sae.cfg.k, sae.num_latents))
        how = {"auxk_alpha": 1 / 32, "dead_feature_threshold": 10**7, "compute_dtype": lm.compute_dtype(sae.device)}
        learners[kind] = SaeLearner(sae, tokens_per_step=tokens, recipe=recipe, **how)
        learners[kind].initialise(batches[0])
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for x in batches:
        for kind, learner in learners.items():
            begun = time.perf_counter()
            learner.begin_step(500, 1000)
            learner.accumulate(x)
            learner.update(1e-3)
            seconds[kind].append(time.perf_counter() - begun)
    return {kind: statistics.median(each[WARM_UP:]) for kind, each in seconds.items()}


def main() -> None:
    """Print a table, and write all of it with the machine's name to --out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("activations")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["topk", "batchtopk", "matryoshka"])
    parser.add_argument("--max_tokens", type=int)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--expansion_factor", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--hookpoints", nargs="*", default=[])
    parser.add_argument("--peer", metavar="HOOKPOINT")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    shape = {"expansion_factor": given.expansion_factor, "k": given.k}
    options = {"batch_size": given.batch_size, "max_tokens": given.max_tokens, "hookpoints": given.hookpoints}
    if given.steps:
        for kind, seconds in step_times(given.activations, given.kinds, shape, options).items():
            print(f"{kind:<22} {seconds * 1e3:,.0f} ms a step")
        return
    found = []
    theirs = peer_rows(given.activations, given.peer, shape, options) if given.peer else ()
    for row in (*rows(given.activations, given.kinds, shape, options), *theirs):
        found.append(row)
        l0 = f"  L0 {row['l0']:.2f}" if "l0" in row else ""
        parts = "".join(f"  {part} {fvu:.4f}" for part, fvu in (row.get("fvu_at") or {}).items())
        unused = f"unused {row['unused_fraction']:.2%}"
        speed = f"{row['tokens_per_second']:,.0f} tokens/s"
        print(
            f"{row['kind']:<30} {row['hookpoint']:<14} FVU {row['fvu']:.4f}{l0}  {unused}{parts}  {speed}", flush=True
        )
    if given.out:
        given.out.write_text(
            json.dumps({"machine": machine.describe("cpu", torch.get_num_threads()), "rows": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

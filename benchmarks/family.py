"""Members of the family side by side on the same cached activations: FVU, L0 and unused latents on held-out tokens.

    sae cache MODEL DATASET --layers 10 --activations prose
    python benchmarks/family.py prose --max_tokens 131072 --kinds topk batchtopk matryoshka

Transcoders need a cache of a module and its input: --hookpoints layers.9.mlp layers.9.mlp.input.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import torch

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.data import ActivationCache

KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {"selection": "batchtopk"},
    "groupmax": {"selection": "groupmax"},
    "matryoshka": {"prefixes": [512, 2048]},
    "matryoshka-batchtopk": {"prefixes": [512, 2048], "selection": "batchtopk"},
    "hierarchical": {"budgets": [8, 16]},
    "transcoder": {"transcode": True},
    "skip-transcoder": {"transcode": True, "skip_connection": True},
}


def rows(cache: str, kinds: list[str], shape: dict[str, Any], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each kind and hookpoint, of the product's own trainer."""
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            cfg = TrainConfig(SaeConfig(**shape, **KINDS[kind]), save_dir=folder, log_to_wandb=False, **options)
            trainer = SaeTrainer(cfg, ActivationCache(cache))
            trainer.fit()
            found, tokens = trainer.evaluate(), trainer.step * trainer.tokens_per_step
            seconds = {name: watch.read() for name, watch in trainer.speed.stopwatches.items()}
        for name, metrics in found.items():
            speed = tokens / seconds[name]
            measured = metrics._asdict()
            held_out = {"held_out_tokens": measured.pop("tokens")}
            row = {"kind": kind, "hookpoint": name, "trained_tokens": tokens, "tokens_per_second": speed}
            yield row | held_out | measured


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
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    shape = {"expansion_factor": given.expansion_factor, "k": given.k}
    options = {"batch_size": given.batch_size, "max_tokens": given.max_tokens, "hookpoints": given.hookpoints}
    found = []
    for row in rows(given.activations, given.kinds, shape, options):
        found.append(row)
        print(
            f"{row['kind']:<22} {row['hookpoint']:<14} FVU {row['fvu']:.4f}  L0 {row['l0']:.2f}  "
            f"unused {row['unused_fraction']:.2%}  {row['tokens_per_second']:,.0f} tokens/s"
        )
    if given.out:
        given.out.write_text(
            json.dumps({"machine": machine.describe("cpu", torch.get_num_threads()), "rows": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

"""FVU against latents and k, and the law of Gao et al. 2024 fitted to it: `python -m benchmarks.quality.scaling_law`.

Trains one autoencoder per size with the default recipe on kept activations (`quality/data.py`), measures FVU on
validation tokens, fits L(n, k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n) + exp(ζ + η ln k) (arXiv:2406.04093,
sec. 3.1.3) by least squares in ln L, and draws both. Sizes that the JSON file holds are not trained again.
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import RESULTS
from benchmarks.harness import machine
from benchmarks.harness.shapes import OURS, Cell
from benchmarks.quality.data import LAYERS, TEXTS
from benchmarks.quality.grid import VALIDATION_END, Rows, key, measured

LATENTS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
KS = (8, 16, 32, 64, 128)
NAMES = ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta")
PAPER = {"beta_k": 0.26, "beta_n": -0.017, "gamma": -0.042}
"""GPT-4's, trained to convergence (sec. 3.1.3)."""


def law(parameters: Tensor, n: Tensor, k: Tensor) -> Tensor:
    """ln L(n, k)."""
    alpha, beta_k, beta_n, gamma, zeta, eta = parameters
    reducible = alpha + beta_k * k.log() + beta_n * n.log() + gamma * k.log() * n.log()
    return torch.logaddexp(reducible, zeta + eta * k.log())


def fit(points: list[tuple[int, int, float]], starts: int = 32) -> tuple[dict[str, float], float]:
    """The parameters, and the root mean square of what they leave of ln L: the best of several starts."""
    n, k, loss = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    best, best_error = torch.zeros(len(NAMES)), math.inf
    for seed in range(starts):
        generator = torch.Generator().manual_seed(seed)
        parameters = torch.randn(len(NAMES), generator=generator, dtype=torch.float64).mul_(0.3).requires_grad_()
        optimizer = torch.optim.LBFGS([parameters], max_iter=500, line_search_fn="strong_wolfe")

        def closure(parameters: Tensor = parameters, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            error = (law(parameters, n, k) - loss.log()).square().mean()
            error.backward()
            return error

        optimizer.step(closure)  # type: ignore[arg-type]
        error = math.sqrt(float(closure().detach()))
        if error < best_error:
            best, best_error = parameters.detach(), error
    return dict(zip(NAMES, best.tolist(), strict=True)), best_error


def draw(points: list[tuple[int, int, float]], parameters: dict[str, float], path: Path) -> None:
    """FVU against latents, one line for each k: points as measured, lines as fitted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    sizes = torch.logspace(math.log10(min(n for n, _, _ in points)), math.log10(max(n for n, _, _ in points)), 50)
    values = torch.tensor([parameters[name] for name in NAMES])
    for k in sorted({k for _, k, _ in points}):
        (line,) = axes.plot(sizes, law(values, sizes, torch.tensor(float(k))).exp(), linewidth=1)
        mine = [(n, fvu) for n, each, fvu in points if each == k]
        axes.plot(*zip(*mine, strict=True), "o", color=line.get_color(), label=f"k = {k}")
    axes.set(xscale="log", yscale="log", xlabel="latents", ylabel="FVU")
    for axis, ticks in ((axes.xaxis, sorted({n for n, _, _ in points})), (axes.yaxis, (0.05, 0.1, 0.2, 0.3))):
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, fit, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", choices=TEXTS, default="english")
    parser.add_argument("--layer", type=int, choices=LAYERS, default=9)
    parser.add_argument("--latents", type=int, nargs="+", default=LATENTS)
    parser.add_argument("--k", type=int, nargs="+", default=KS)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where they train")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling-law.json")
    chosen = parser.parse_args()
    rows = Rows(chosen.out)
    rows.content.setdefault("versions", {})
    points = []
    for n, k in itertools.product(chosen.latents, chosen.k):
        cell = Cell(chosen.text, chosen.layer, n, k, chosen.tokens, chosen.batch)
        row: dict[str, Any] | None = rows.find(key(OURS, cell, 1.0, 0))
        if row is None:
            rows.content |= {
                "machine": machine.describe(chosen.device, chosen.threads),
                "date": time.strftime("%Y-%m-%d"),
            }
            rows.content["versions"] |= machine.versions([OURS.library])
            row = measured(OURS, cell, 1.0, 0, chosen.threads, chosen.device, grafted=0)
            rows.add(row)
            print(f"{n} latents, k {k}: FVU {row['validation']['fvu']:.4f}", file=sys.stderr)
        points.append((n, k, row["validation"]["fvu"]))
    parameters, error = fit(points)
    rows.content["fit"] = {"parameters": parameters, "rms_of_ln_fvu": error, "validation_rows": VALIDATION_END}
    rows.path.write_text(json.dumps(rows.content, indent=1) + "\n")
    draw(points, parameters, chosen.out.with_suffix(".png"))
    for name, value in parameters.items():
        print(f"{name:7} {value:8.3f}" + (f"   Gao et al. {PAPER[name]}" if name in PAPER else ""))
    print(f"ln FVU is missed by {error:.3f} (root mean square) over {len(points)} sizes")


if __name__ == "__main__":
    main()

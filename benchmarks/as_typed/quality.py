"""How good what was trained is, by one measure for everybody: `benchmarks.as_typed.quality JOB` prints JSON.

All are measured on the same tokens, that nobody trained on. FVU is Σ‖x − x̂‖² / Σ‖x − mean‖² over all tokens, over those
that are not the first of their sequence, and over those of them that are not massive; the mean is of the same tokens.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae import Sae, lm
from sae.evaluation.evaluate import evaluate_many

MASSIVE = 100
"""A token is massive whose squared distance from the mean is more than so many times the median."""
_AT_ONCE = 8
_GRAFTED = {"kl": "kl_div_with_sae", "ce_recovered": "ce_loss_score", "ce": "ce_loss_with_sae"}

Results = dict[str, dict[str, dict[str, float]]]
"""By label and hookpoint, numbers by name."""


def main() -> None:
    """Measure what the job says: `model`, `rows`, `folders` by label, `hookpoints`, `grafted` sequences."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    saes = {label: _loaded(folder, job["hookpoints"]) for label, folder in job["folders"].items()}
    device = lm.check_device("cpu")
    model = lm.load_model(job["model"], device=device, dtype=lm.compute_dtype(device), head=True)
    rows = torch.from_numpy(np.load(job["rows"])[: job["sequences"]])
    results = reconstruction(model, rows, saes)
    for name, excluded in {"": [], "_without_first": [0]}.items():
        batches = list(rows[: job["grafted"]].split(_AT_ONCE))
        found = evaluate_many(model, batches, saes, exclude_positions=excluded)
        for (label, hookpoint), quality in found.qualities.items():
            numbers = {short + name: quality.metrics[long] for short, long in _GRAFTED.items()}
            results[label].setdefault(hookpoint, {}).update(numbers)
    print(json.dumps(results))


def _loaded(folder: str, hookpoints: Sequence[str]) -> dict[str, Sae]:
    """By hookpoint; the only one of activations that were given without a name is that of the only hookpoint."""
    found = Sae.load_many(os.path.abspath(folder))
    return dict(zip(hookpoints, found.values(), strict=True)) if len(hookpoints) == 1 else found


@torch.no_grad()
def reconstruction(model: torch.nn.Module, rows: Tensor, saes: Mapping[str, Mapping[str, Sae]]) -> Results:
    """FVU with and without the tokens that carry most of the variance, L0, and the share of latents that never fire."""
    hookpoints = list(next(iter(saes.values())))
    parts = [lm.harvest(model, part, hookpoints) for part in rows.split(_AT_ONCE)]
    first = torch.zeros(rows.shape, dtype=torch.bool)
    first[:, 0] = True
    results: Results = {label: {} for label in saes}
    for hookpoint in hookpoints:
        x = torch.cat([part[hookpoint].flatten(0, 1) for part in parts]).float()
        kept = {"fvu": torch.ones(len(x), dtype=torch.bool), "fvu_without_first": ~first.flatten()}
        kept["fvu_without_massive"] = ~massive(x, kept["fvu_without_first"])
        for label, by_hookpoint in saes.items():
            error, fired = _errors(by_hookpoint[hookpoint], x)
            numbers = {name: (error[where].sum() / _energy(x[where])).item() for name, where in kept.items()}
            numbers["l0"] = fired.sum().item() / len(x)
            numbers["unused"] = (fired == 0).double().mean().item()
            numbers["massive_tokens"] = (~kept["fvu_without_massive"]).double().mean().item()
            results[label][hookpoint] = numbers
    return results


def massive(x: Tensor, ordinary: Tensor) -> Tensor:
    """Which of x (tokens, d_in) are far from the mean of those that are `ordinary`, and all that are not ordinary."""
    distance = (x - x[ordinary].mean(0)).square().sum(1)
    return (distance > MASSIVE * distance[ordinary].median()) | ~ordinary


def _energy(x: Tensor) -> Tensor:
    return (x.double() - x.double().mean(0)).square().sum()


def _errors(sae: Sae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of each token, float64, and on how many tokens each latent fires."""
    errors, fired = [], torch.zeros(sae.num_latents, dtype=torch.int64)
    for part in x.split(2048):
        acts, indices = sae.encode(part)
        errors.append((part - sae.decode(acts, indices)).double().square().sum(1))
        fired.index_add_(0, indices.flatten(), (acts > 0).flatten().long())
    return torch.cat(errors), fired


if __name__ == "__main__":
    main()

"""How well can a linear encoder tell known features? `python -m benchmarks.quality.linear_limit`.

On the stream of `sae selftest`, by its own measure of F1 on its held-out tokens:

- detectors that know the features: a row and a threshold for each, fitted with labels. The rows are the features; or
  Σ⁻¹ f, Fisher's discriminant; or logistic regression. The last is about the best that a linear encoder can do.
- a dictionary of the product's trainer: its own encoder, and orthogonal matching pursuit on its rows of W_dec
  (Pati et al. 1993), which is not linear.
- that dictionary with its encoder fitted anew to the pursuit's codes, W_dec as it was or fitted as well. The loss is
  the cross-entropy of who fires, and the squared error of the values of those that do.

All choices are made on validation tokens. The labelled rows are no recipe: nobody has labels.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import RESULTS
from benchmarks.harness import machine
from benchmarks.quality.known_features import World
from sae import Sae, SaeConfig
from sae.activations.synthetic import Features, Sample
from sae.commands.selftest import train_on
from sae.config import SelftestConfig
from sae.dictionary.autoencoder import Encoded
from sae.evaluation.recovery import Recovery, recovery, which_fire

MOST = 4
"""Steps of the pursuit, and so latents of a token."""
SHARPNESS = 8.0
"""Slope of the cross-entropy's logits in an activation."""
VALUES = 3.0
"""Weight of the squared error of values beside the cross-entropy."""
AT_ONCE, SEED = 4096, 1_000_000
"""Tokens of a step, and the seed of the first; trained, validation and held-out tokens have others."""


def detectors(rows: Tensor, world: World) -> Sae:
    """An encoder with these rows, (features, d_in), each with the threshold of best F1 on validation tokens."""
    features, validation = world.store.features, world.validation
    scores = (validation.x - features.mean) @ rows.T
    order = scores.argsort(0, descending=True)
    there = labels(validation, len(rows))
    both = there.gather(0, order).cumsum(0)
    said = torch.arange(1, len(scores) + 1).unsqueeze(1)
    best = (2 * both / (said + there.sum(0))).argmax(0)
    return with_encoder(
        features.directions, features.mean, rows, 1 - scores.gather(0, order).gather(0, best[None])[0], 1.0
    )


def labels(sample: Sample, num_features: int) -> Tensor:
    """Which features fire, (tokens, features), 0 or 1."""
    return which_fire(sample.acts, sample.features, num_features).float()


def with_encoder(W_dec: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float) -> Sae:
    """A dictionary of these weights; a latent fires above the threshold."""
    sae = Sae(W_dec.shape[1], SaeConfig(num_latents=len(W_dec), k=2 * MOST, selection="batchtopk"))
    assert sae.threshold is not None and sae.spec.centred
    with torch.no_grad():
        sae.W_dec.copy_(W_dec), sae.b_dec.copy_(b_dec)
        sae.encoder.weight.copy_(W_enc), sae.encoder.bias.copy_(b_enc)
        sae.threshold.fill_(threshold)
    return sae


def logistic(features: Features, steps: int) -> Tensor:
    """Rows, (features, d_in), of logistic regression with labels; they start at Fisher's discriminant."""
    rows = (fisher(features) * SHARPNESS).requires_grad_()
    bias = torch.full((len(rows),), -6.0, requires_grad=True)
    for sample in fitted([rows, bias], 0.1, steps, features):
        logits = (sample.x - features.mean) @ rows.T + bias
        F.binary_cross_entropy_with_logits(logits, labels(sample, len(rows)), reduction="sum").div(AT_ONCE).backward()
    return rows.detach()


def fisher(features: Features) -> Tensor:
    """Σ⁻¹ f, (features, d_in), scaled to a product of 1 with f."""
    rows = torch.linalg.solve(torch.cov(features.sample(100_000, seed=SEED).x.T), features.directions.T).T
    return rows / (rows * features.directions).sum(1, keepdim=True)


def fitted(parameters: list[Tensor], lr: float, steps: int, features: Features) -> Iterator[Sample]:
    """The tokens of each step of Adam; its gradients are expected before the next is asked for."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        yield features.sample(AT_ONCE, seed=SEED + 1 + step)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def pursuit(x: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of tokens whose mean was taken away: values ≥ 0 and latents, (tokens, MOST) each."""
    residual, indices = x, torch.empty(len(x), 0, dtype=torch.int64)
    values = torch.empty(len(x), 0)
    for _ in range(MOST):
        indices = torch.cat([indices, (residual @ W_dec.T).argmax(1, keepdim=True)], 1)
        rows = W_dec[indices]
        gram = rows @ rows.mT + 1e-4 * torch.eye(rows.shape[1])  # a latent may be drawn twice
        values = torch.linalg.solve(gram, rows @ x.unsqueeze(2)).squeeze(2).clamp_min(0)
        residual = x - torch.bmm(values.unsqueeze(1), rows).squeeze(1)
    return values, indices


class Pursuing:
    """A dictionary whose codes are the pursuit's, without values below `least`: what `recovery` asks of one."""

    def __init__(self, W_dec: Tensor, b_dec: Tensor, least: float) -> None:
        self.W_dec, self.b_dec, self.least = W_dec, b_dec, least
        self.num_latents, self.device = len(W_dec), W_dec.device

    def encode(self, x: Tensor) -> Encoded:
        """The codes."""
        values, indices = pursuit(x - self.b_dec, self.W_dec)
        return Encoded(values * (values > self.least), indices)

    def decode(self, acts: Tensor, indices: Tensor, x: Tensor) -> Tensor:
        """Reconstructions."""
        return self.b_dec + F.embedding_bag(indices, self.W_dec, per_sample_weights=acts, mode="sum")


def fitted_to_pursuit(sae: Sae, features: Features, steps: int, least: float, *, with_decoder: bool) -> Sae:
    """The dictionary with its encoder fitted to the pursuit's codes on its rows of W_dec, or with both fitted."""
    W_dec, W_enc = sae.W_dec.detach().clone(), sae.encoder.weight.detach().clone().requires_grad_()
    b_dec, b_enc = sae.b_dec.detach(), sae.encoder.bias.detach().clone().requires_grad_()
    for sample in fitted([W_enc, b_enc, W_dec.requires_grad_(with_decoder)], 1e-2, steps, features):
        rows, x = F.normalize(W_dec, dim=1), sample.x - b_dec
        values, indices = pursuit(x, rows.detach())
        fires = values > least
        acts = x @ W_enc.T + b_enc
        wanted = which_fire(values * fires, indices, len(rows)).float()
        loss = F.binary_cross_entropy_with_logits(SHARPNESS * (acts - least), wanted, reduction="sum")
        loss = loss + VALUES * (acts.gather(1, indices) - values).square().mul(fires).sum()
        if with_decoder:
            loss = loss + (x - torch.bmm(values.unsqueeze(1), rows[indices]).squeeze(1)).square().sum()
        (loss / AT_ONCE).backward()
    return with_encoder(F.normalize(W_dec.detach(), dim=1), b_dec, W_enc.detach(), b_enc.detach(), least)


def best_threshold(make: Callable[[float], Any], world: World) -> Any:
    """The dictionary with the threshold, of five, that has the best F1 on validation tokens."""
    directions = world.store.features.directions
    made = [make(least) for least in (0.1, 0.2, 0.3, 0.4, 0.5)]
    return max(made, key=lambda one: recovery(one, directions, *world.validation).f1)


def rows(world: World, steps: int) -> Iterator[tuple[str, Recovery]]:
    """What each row is, and its recovery of the features of held-out tokens."""
    features, test = world.store.features, world.store.held_out_sample()

    def measured(name: str, sae: Any) -> tuple[str, Recovery]:
        return name, recovery(sae, features.directions, *test)

    yield measured("labels: the features, a threshold each", detectors(features.directions, world))
    yield measured("labels: Fisher's discriminant", detectors(fisher(features), world))
    yield measured("labels: logistic regression", detectors(logistic(features, steps), world))
    searched = best_threshold(lambda least: Pursuing(features.directions, features.mean, least), world)
    yield measured("the features and a pursuit", searched)
    cfg = SelftestConfig(sae=SaeConfig(selection="batchtopk", k=world.k), max_tokens=world.tokens, log_to_wandb=False)
    (sae,) = train_on(cfg, world.store).values()
    W_dec, b_dec = sae.W_dec.detach(), sae.b_dec.detach()
    yield measured(f"sae batchtopk, k {world.k}", sae)
    searched = best_threshold(lambda least: Pursuing(W_dec, b_dec, least), world)
    yield measured("… its rows of W_dec and a pursuit", searched)
    for name, with_decoder in (("W_dec as it was", False), ("W_dec fitted too", True)):
        refitted = fitted_to_pursuit(sae, features, steps, searched.least, with_decoder=with_decoder)

        def at(least: float, one: Sae = refitted) -> Sae:
            return with_encoder(one.W_dec, one.b_dec, one.encoder.weight, one.encoder.bias, least)

        yield measured(f"… encoder fitted to the pursuit, {name}", best_threshold(at, world))


def main() -> None:
    """Fit, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="that the dictionary is trained on")
    parser.add_argument("--steps", type=int, default=2000, help=f"of {AT_ONCE} tokens, of each fit")
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--out", type=Path, default=RESULTS / "linear-limit.json")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    about = {"machine": machine.describe("cpu", chosen.threads), "versions": machine.versions(["sae"])}
    options = {"k": chosen.k, "tokens": chosen.tokens, "steps": chosen.steps}
    content: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), **about, "options": options, "rows": {}}
    print("| | F1 | MCC | found | L0 | FVU |\n|---|---:|---:|---:|---:|---:|")
    for name, found in rows(World(chosen.k, chosen.tokens), chosen.steps):
        content["rows"][name] = found._asdict()
        chosen.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        fvu = "" if name.startswith("labels") else f"{found.fvu:.4f}"
        print(f"| {name} | {found.f1:.3f} | {found.mcc:.3f} | {found.found:.1%} | {found.l0:.2f} | {fvu} |", flush=True)


if __name__ == "__main__":
    main()

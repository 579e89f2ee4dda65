"""Recipes side by side: `python -m benchmarks.quality.recipes lr=4e-3 'lr=8e-3 beta2=0.99' --layer 9 --tokens 250000`.

Each argument is a recipe: settings that differ from `Recipe`'s. The autoencoder is trained with this library's
gradients on kept activations (`quality/data.py`), and measured on their *validation* tokens, so that the *test* tokens
stay unseen until a choice has been made. One line of JSON per recipe goes to standard output and `--out`.
"""

import argparse
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.data import LAYERS, TEXTS, Source
from sae import lm, ops
from sae.config import SaeConfig
from sae.dictionary.autoencoder import Sae
from sae.dictionary.gradients import (
    Gradients,
    Objective,
    Reconstruction,
    Weights,
    add_auxk_gradients_,
    encoded,
    pullback,
)
from sae.dictionary.losses import VarianceSums
from sae.dictionary.selection import selection
from sae.training.capped_adam import CappedAdam
from sae.training.dead_latents import DeadLatents
from sae.training.massive_tokens import MassiveTokens


@dataclass
class Recipe:
    """How to train."""

    optimizer: str = "adam"
    """adam, capped (the library's `CappedAdam`), rowadam (one second moment per latent), signum (sign of the momentum),
    muon."""
    lr: float = 1e-3
    """Peak learning rate of the matrices."""
    beta1: float = 0.9
    beta2: float = 0.999
    bias_lr: float = 0.0
    """That of the biases, in units of the activations' root mean square per dimension times `lr`; 0: `lr` itself."""
    warmup: float = 0.05
    """Share of the steps."""
    decay: str = "linear"
    """linear, sqrt (1 - sqrt), cosine, constant."""
    decay_from: float = 0.0
    """Share of the steps before the decay starts."""
    dead: float = 0.0
    """Share of the run's tokens after which a silent latent is dead; 0: never."""
    auxk: float = 1 / 32
    init: float = 1.0
    """Length of the encoder's rows at first; 0: the length with which the first tokens are reconstructed best."""
    rows: str = "random"
    """Directions of the rows at first: random, data (of random tokens), cov (random with the data's covariance), half
    (random with the square root of the covariance)."""
    encoder_lr: float = 1.0
    """Factor on `lr` for W_enc."""
    columns: float = 0.0
    """Power p of (root mean square of all dimensions / standard deviation of one) in the rate of W_enc's columns."""
    encoder_norm: bool = False
    """Keep the encoder's rows at their first length."""
    rotate: bool = False
    """Train in the basis of the activations' principal components."""
    unit: bool = True
    """Decoder rows of unit length, and gradients without their radial part."""
    resample: float = 0.0
    """Share of the run's tokens after which a silent latent starts anew at the residual of a token; 0: never."""
    resample_until: float = 0.7
    """Share of the steps after which none starts anew any more."""
    k_start: float = 1.0
    """Multiple of k with which the run begins; falls linearly to 1."""
    k_until: float = 0.3
    """Share of the steps after which k is k."""
    lazy: bool = False
    """A row's moments stand still, and so does the row, in a step in which its latent did not fire."""
    amsgrad: bool = False
    """Divide by the largest second moment so far."""
    rarity: float = 0.0
    """Power p of (tokens a step on which a latent fires / the mean over latents, at most 1) in its rows' rate."""
    slowest: float = 1e-3
    """The lowest multiple of the rate that `rarity` gives."""
    decoder_rarity: float = -1.0
    """The power for W_dec; negative: the same."""
    wake: bool = False
    """A dead latent's bias rises until it is selected on one token of the step."""
    token_limit: float = 0.0
    """The most that ‖x − b_dec‖ ‖x̂ − x‖ of a token may be, in variances per token, for its whole gradient; 0: any."""
    following: float = 0.0
    """W_enc takes so many times each step of W_dec (`optimizer=capped`)."""
    length_rate: float = 0.0
    """Rate of the logarithm of the length of W_enc's rows, times `lr` √d_in (`optimizer=capped`)."""
    massive: float = 0.0
    """The mean of tokens longer than the root of so many variances per token is reconstructed exactly; 0: it is not."""
    cautious: bool = False
    """Adam steps only where the momentum and the gradient agree in sign (Liang et al. 2024, arXiv:2411.16085)."""
    nesterov: bool = False
    """Adam's step looks ahead along the momentum (NAdam, Dozat 2016)."""
    ema: float = 0.0
    """Evaluate an exponential moving average of the weights."""


def parse(text: str) -> Recipe:
    """'lr=4e-3 optimizer=signum' -> a Recipe."""
    types = {field.name: field.type for field in dataclasses.fields(Recipe)}
    given = dict(item.split("=") for item in text.split())
    return Recipe(
        **{key: types[key](value) if types[key] is not bool else value == "1" for key, value in given.items()}
    )  # type: ignore[operator,arg-type]


class Trainee:
    """One autoencoder under a recipe."""

    def __init__(self, recipe: Recipe, first: Tensor, *, num_latents: int, k: int, batch: int, steps: int, seed: int):
        self.recipe, self.steps, self.batch = recipe, steps, batch
        generator = torch.Generator().manual_seed(seed)
        self.sae = Sae(first.shape[1], SaeConfig(num_latents=num_latents, k=k), generator=generator)
        self.select = selection(self.sae.cfg)
        mean = first.mean(0)
        self.variance = (first - mean).square().sum(1).mean().item()
        self.sae.b_dec.data.copy_(mean)
        deviation = (first - mean).square().mean(0).sqrt()
        self.column_rates = (deviation.square().mean().sqrt() / deviation) ** recipe.columns
        if recipe.rows != "random":
            rows = torch.nn.functional.normalize(self._rows(first - mean, generator), dim=1)
            self.sae.W_dec.data.copy_(rows)
            self.sae.encoder.weight.data.copy_(rows)
        self.sae.encoder.weight.data.mul_(recipe.init or self._best_length(first[:4096]))
        threshold = int((recipe.resample or recipe.dead) * steps * batch) or 10**18
        self.generator = generator
        self.resampled = 0
        self.dead = DeadLatents(num_latents, threshold)
        self.fired = torch.zeros(num_latents, dtype=torch.int32)
        self.parameters = dict(self.sae.named_parameters())
        self.first_moment = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second_moment = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        if recipe.optimizer == "rowadam":
            self.second_moment |= {name: torch.zeros(len(p), 1) for name, p in self.parameters.items() if p.dim() == 2}
        self.largest = {name: torch.zeros_like(p) for name, p in self.second_moment.items()}
        self.counts = torch.full((num_latents,), batch * k / num_latents)
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()} if recipe.ema else {}
        dtype = lm.compute_dtype(torch.device("cpu"))
        self.capped = self._capped(dtype) if recipe.optimizer == "capped" else None
        self.weights = Weights.of(self.sae, dtype)
        self.row_length = self.sae.encoder.weight.detach().norm(dim=1, keepdim=True)
        self.massive = MassiveTokens(first.shape[1], self.sae.device)
        self.step_index = 0

    def _rows(self, centred: Tensor, generator: torch.Generator) -> Tensor:
        """Directions for the latents, (latents, d_in), from the data."""
        count = self.sae.num_latents
        if self.recipe.rows == "data":
            return centred[torch.randperm(len(centred), generator=generator)[:count]]
        noise = torch.randn(count, centred.shape[1], generator=generator)
        if self.recipe.rows == "cov":
            return noise @ torch.linalg.cholesky(torch.cov(centred.T)).T
        values, vectors = torch.linalg.eigh(torch.cov(centred.T).double())
        return noise @ (vectors * values.clamp_min(0) ** 0.25 @ vectors.T).float()

    def _capped(self, dtype: torch.dtype) -> CappedAdam:
        r = self.recipe
        first = {"W_dec": self.parameters["W_dec"], "log_length": torch.zeros(self.sae.num_latents)}
        return CappedAdam(
            first | self.parameters,
            beta1=r.beta1,
            beta2=r.beta2,
            followers={"W_dec": ("encoder.weight", r.following)},
            log_lengths={"encoder.weight": "log_length"},
            product_dtype=dtype,
        )

    @torch.no_grad()
    def _best_length(self, x: Tensor) -> float:
        centred = x - self.sae.b_dec
        recon = self.sae(x).recon - self.sae.b_dec
        return float((recon * centred).sum() / recon.square().sum())

    def factor(self) -> float:
        """Of the learning rate at this step."""
        done = (self.step_index + 0.5) / self.steps
        r = self.recipe
        if done < r.warmup:
            return done / r.warmup
        left = min(1.0, (1 - done) / (1 - max(r.warmup, r.decay_from)))
        return {
            "linear": left,
            "sqrt": 1 - math.sqrt(1 - left),
            "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
            "constant": 1.0,
        }[r.decay]

    @torch.no_grad()
    def step(self, x: Tensor) -> float:
        """Train on these tokens; returns Σ‖x̂ − x‖² per token over the variance."""
        scale = 1 / (self.batch * self.variance)
        before = self.sae.b_dec.detach().clone()
        done = self.step_index / self.steps
        select = self.select
        if self.recipe.k_start > 1 and done < self.recipe.k_until:
            more = 1 + (self.recipe.k_start - 1) * (1 - done / self.recipe.k_until)
            k = round(self.sae.cfg.k * more)
            select = lambda pre_acts: ops.topk(pre_acts, k)  # noqa: E731
        limit = self.recipe.token_limit * self.variance or None
        code = encoded(self.weights, x, select)
        grads, recon = pullback(self.weights, code, None, Objective(scale, limit))
        if self.recipe.auxk and len(self.dead.indices):
            add_auxk_gradients_(grads, self.weights, recon, self.dead.indices, scale=scale * self.recipe.auxk)
        self.fired.zero_().index_add_(0, recon.top_indices.flatten(), recon.fired.flatten().int())
        if self.recipe.rarity:
            self.counts.lerp_(self.fired.float(), 0.1 if self.step_index > 10 else 0.5)
        self._descend(Gradients(*grads.dense()))
        if self.recipe.wake and len(self.dead.indices) and done < self.recipe.resample_until:
            self._wake(recon)
        if self.recipe.resample and len(self.dead.indices) and done < self.recipe.resample_until:
            self._resample(recon.residual, recon.centred)
        self.dead.update(self.fired > 0, len(x))
        self.weights = Weights.of(self.sae, self.weights.W_enc_compute.dtype)
        if self.recipe.massive:
            longest = math.sqrt(self.recipe.massive * self.variance)
            is_massive = (torch.linalg.vector_norm(recon.centred, dim=1) > longest).to(recon.centred.dtype)
            self.massive.add(recon.centred, before, is_massive)
            self.massive.end_step(count=True)
            if self.massive.some():
                self.massive.reconstruct_(self.weights, self.select, unit_norm=self.recipe.unit)
        self.step_index += 1
        return float(recon.squared_error) * scale

    def _resample(self, residual: Tensor, centred: Tensor) -> None:
        """Let dead latents start anew: where a badly reconstructed token lacks something."""
        dead = self.dead.indices[: len(residual) // 16]
        tokens = torch.multinomial(residual.square().sum(1), len(dead), generator=self.generator)
        rows = -torch.nn.functional.normalize(residual[tokens], dim=1)
        alive = self.sae.encoder.weight.norm(dim=1).mean()
        self.sae.W_dec[dead] = rows
        self.sae.encoder.weight[dead] = rows * alive
        self.sae.encoder.bias[dead] = 0
        for moments in (self.first_moment, self.second_moment):
            for name in ("encoder.weight", "encoder.bias", "W_dec"):
                moments[name][dead] = 0
        self.dead.tokens_since_fired[dead] = 0
        self.resampled += len(dead)

    def _wake(self, recon: Reconstruction) -> None:
        W, b, dead = self.sae.encoder.weight, self.sae.encoder.bias, self.dead.indices
        least = (ops.gather_dot(recon.centred, recon.top_indices, W) + b[recon.top_indices]).amin(1)
        missing = least.unsqueeze(1) - (recon.centred @ W[dead].T + b[dead])
        b[dead] += missing.amin(0)
        self.resampled += len(dead)

    def _descend(self, grads: Gradients) -> None:
        if self.recipe.unit:
            grads.W_dec.addcmul_(self.sae.W_dec.detach(), grads.radial.unsqueeze(1), value=-1)
        by_name = {
            "encoder.weight": grads.W_enc,
            "encoder.bias": grads.b_enc,
            "W_dec": grads.W_dec,
            "b_dec": grads.b_dec,
            "log_length": grads.radial - self.sae.encoder.bias.detach() * grads.b_enc,
        }
        if self.capped:
            self._step_capped(self.capped, by_name)
        else:
            for name, parameter in self.parameters.items():
                self._update(name, parameter, by_name[name])
        if self.recipe.unit:
            self.sae.set_decoder_norm_to_unit_norm()
        if self.recipe.encoder_norm:
            W = self.sae.encoder.weight
            W.mul_(self.row_length / W.norm(dim=1, keepdim=True))
        for name, mean in self.mean.items():
            mean.lerp_(self.parameters[name], 1 - self.recipe.ema)

    def _step_capped(self, capped: CappedAdam, grads: dict[str, Tensor]) -> None:
        r = self.recipe
        bias = (r.bias_lr or 1.0) * math.sqrt(self.variance / self.sae.d_in)
        length = r.length_rate * math.sqrt(self.sae.d_in)
        capped.rates = {"encoder.weight": r.encoder_lr, "encoder.bias": bias, "b_dec": bias, "log_length": length}
        if r.rarity:
            rows = self._row_rates(r.rarity)
            capped.row_rates = {"encoder.weight": rows, "encoder.bias": rows, "log_length": rows}
        capped.step(grads, r.lr * self.factor(), skip=torch.zeros(()))

    def _row_rates(self, power: float) -> Tensor:
        """(latents,): less for latents that fire rarely, the full rate for dead ones."""
        usual = self.batch * self.sae.cfg.k / self.sae.num_latents
        rate = (self.counts / usual).clamp(1e-9, 1) ** power
        return rate.clamp(self.recipe.slowest).index_fill(0, self.dead.indices, 1.0)

    def _update(self, name: str, parameter: Tensor, grad: Tensor) -> None:
        r, t = self.recipe, self.step_index + 1
        lr = r.lr * self.factor()
        if name == "encoder.weight":
            lr *= r.encoder_lr
        if parameter.dim() == 1 and r.bias_lr:
            lr *= r.bias_lr * math.sqrt(self.variance / self.sae.d_in)
        m, v = self.first_moment[name], self.second_moment[name]
        active = torch.ones(1)
        if r.lazy and name != "b_dec":
            active = (self.fired > 0).float()
            active = active.unsqueeze(1) if parameter.dim() == 2 else active
        m.addcmul_(active, grad - m, value=1 - r.beta1)
        if r.optimizer == "signum":
            parameter.add_(m.sign(), alpha=-lr)
        elif r.optimizer == "muon" and parameter.dim() == 2:
            nesterov = grad.lerp(m, r.beta1)
            parameter.add_(orthogonalised(nesterov), alpha=-lr * math.sqrt(len(parameter) / parameter.shape[1]))
        else:
            square = grad.square().mean(1, keepdim=True) if v.shape != grad.shape else grad.square()
            v.addcmul_(active, square - v, value=1 - r.beta2)
            unbiased = v / (1 - r.beta2**t)
            if r.amsgrad:
                unbiased = torch.maximum(self.largest[name], unbiased, out=self.largest[name])
            denominator = unbiased.sqrt().add_(6.25e-10)
            if name == "encoder.weight" and r.columns:
                denominator = denominator / self.column_rates
            if r.rarity and name != "b_dec":
                power = r.decoder_rarity if name == "W_dec" and r.decoder_rarity >= 0 else r.rarity
                rate = self._row_rates(power)
                denominator = denominator / (rate.unsqueeze(1) if parameter.dim() == 2 else rate)
            unbiased = m / (1 - r.beta1**t)
            if r.nesterov:
                unbiased = m * (r.beta1 / (1 - r.beta1 ** (t + 1))) + grad * ((1 - r.beta1) / (1 - r.beta1**t))
            if r.cautious:
                agrees = (m * grad > 0).float()
                unbiased = unbiased * agrees / agrees.mean().clamp_min(1e-3)
            parameter.addcdiv_(unbiased * active, denominator.expand_as(m), value=-lr)


def orthogonalised(G: Tensor) -> Tensor:
    """About U Vᵀ of the singular value decomposition, by five Newton-Schulz steps (Jordan et al. 2024, Muon)."""
    X = (G / (G.norm() + 1e-30)).bfloat16()
    for _ in range(5):
        A = X.T @ X
        X = 3.4445 * X + X @ (-4.7750 * A + 2.0315 * A @ A)
    return X.float()


@torch.no_grad()
def measure(sae: Sae, x: Tensor) -> dict[str, float]:
    """FVU, unused latents and L0 on these tokens."""
    used = torch.zeros(sae.num_latents, dtype=torch.bool)
    error, active = 0.0, 0
    for part in x.split(2048):
        out = sae(part)
        error += (part - out.recon).square().sum().item()
        used[out.top_indices[out.top_acts > 0]] = True
        active += int((out.top_acts > 0).sum())
    variance = VarianceSums.of(x - x.mean(0)).total_variance().item()
    return {"fvu": error / variance, "unused": 1 - used.float().mean().item(), "l0": active / len(x)}


def run(
    recipe: Recipe, source: Source, *, num_latents: int, k: int, tokens: int, batch: int, seed: int
) -> dict[str, Any]:
    """Train and measure."""
    data, validation = source.train(), source.validation()
    steps = tokens // batch
    first = data[: max(32768, batch)].float()
    rotation = None
    if recipe.rotate:
        rotation = torch.linalg.eigh(torch.cov(first.T.double()))[1].float()
        first, validation = first @ rotation, validation @ rotation
    started = time.perf_counter()
    trainee = Trainee(recipe, first, num_latents=num_latents, k=k, batch=batch, steps=steps, seed=seed)
    recent = 0.0
    for step in range(steps):
        start = step * batch % (len(data) // batch * batch)
        x = data[start : start + batch].float()
        loss = trainee.step(x @ rotation if rotation is not None else x)
        if not math.isfinite(loss):
            break
        recent = loss if step == 0 else 0.9 * recent + 0.1 * loss
    seconds = time.perf_counter() - started
    for name, mean in trainee.mean.items():
        trainee.parameters[name].data.copy_(mean)
    result = {key: round(value, 5) for key, value in measure(trainee.sae, validation).items()}
    return result | {
        "train": round(recent, 5),
        "dead": round(len(trainee.dead.indices) / num_latents, 5),
        "resampled": trainee.resampled,
        "enc_norm": round(trainee.sae.encoder.weight.norm(dim=1).mean().item(), 3),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--text", choices=TEXTS, default="english")
    parser.add_argument("--layer", type=int, choices=LAYERS, default=9)
    parser.add_argument("--latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    source = Source(chosen.text, chosen.layer)
    for text in chosen.recipes:
        setting = {"layer": chosen.layer, "num_latents": chosen.latents, "k": chosen.k, "tokens": chosen.tokens}
        setting |= {"batch": chosen.batch, "seed": chosen.seed}
        found = run(
            parse(text),
            source,
            num_latents=chosen.latents,
            k=chosen.k,
            tokens=chosen.tokens,
            batch=chosen.batch,
            seed=chosen.seed,
        )
        line = json.dumps({"recipe": text, **setting, "text": chosen.text, **found})
        print(line, flush=True)
        if chosen.out:
            with chosen.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()

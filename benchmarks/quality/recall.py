"""Recall of the true k largest latents by each product, on real activations: `python -m benchmarks.quality.recall`.

Trains with the default recipe on kept activations (`quality/data.py`), and at several steps looks at validation tokens:
the share of the true k largest positive pre-activations, computed in float32, that are among the candidates of int8 and
of fp8 (`sae.ops.eight_bit`), or among the k that a bf16 product would select. It says what `--encode_in_8bit` costs.
"""

import argparse
import itertools
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness import inputs
from benchmarks.quality.data import LAYERS, TEXTS, Source
from sae import ops
from sae.config import SaeConfig
from sae.dictionary.autoencoder import Sae
from sae.ops import eight_bit
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe, firings, peak_lr, schedule, warmup_steps

TOKENS = 2048


def main() -> None:
    """Train and print one row a look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", choices=TEXTS, default="english")
    parser.add_argument("--layers", type=int, nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--latents", type=int, nargs="+", default=[4608, 18432])
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=2048)
    chosen = parser.parse_args()
    print("| block, latents, k | step | bf16 | int8 | fp8 |\n|---|---:|---:|---:|---:|")
    for layer, num_latents, k in itertools.product(chosen.layers, chosen.latents, chosen.k):
        data, look = Source(chosen.text, layer), {0, chosen.steps // 4, chosen.steps}
        validation = data.validation()[:TOKENS]
        learner = _learner(num_latents, k, chosen.steps, chosen.batch)
        for step, x in enumerate(data.train().split(chosen.batch)):
            x = x.float()
            if step == 0:
                learner.initialise(x)
            if step in look:
                found = " | ".join(f"{share:.5f}" for share in _shares(learner.sae, validation, k))
                print(f"| {layer}, {num_latents}, {k} | {step} | {found} |", flush=True)
            if step == chosen.steps:
                break
            learner.begin_step(step, chosen.steps)
            learner.accumulate(x)
            lr = peak_lr(num_latents, chosen.steps, firings(chosen.batch, k, num_latents))
            learner.update(lr * schedule(step, chosen.steps, warmup_steps(chosen.steps, None)))


def _learner(num_latents: int, k: int, steps: int, batch: int) -> SaeLearner:
    sae = Sae(inputs.REAL_D_IN, SaeConfig(num_latents=num_latents, k=k), generator=torch.Generator().manual_seed(0))
    return SaeLearner(
        sae,
        tokens_per_step=batch,
        auxk_alpha=1 / 32,
        dead_feature_threshold=steps * batch // 20,
        recipe=Recipe.named("default", steps, firings(batch, k, num_latents)),
        compute_dtype=torch.bfloat16,
    )


@torch.no_grad()
def _shares(sae: Sae, x: Tensor, k: int) -> list[float]:
    """Of the true k largest: found in bf16, int8 and fp8."""
    centred, W, b = x - sae.b_dec, sae.encoder.weight.detach(), sae.encoder.bias.detach()
    low = (t.bfloat16() for t in (centred, W, b))
    selected = ops.encode(*low, partial(ops.topk, k=k))[1]
    found = [selected, eight_bit.candidates(centred, W, b, k)]
    # What a GPU would find: fp8 is multiplied on a CPU too, only slowly.
    with (
        mock.patch.object(eight_bit, "Int8Product", eight_bit.Fp8Product),
        mock.patch.dict(eight_bit.CANDIDATES, cpu=eight_bit.CANDIDATES["cuda"]),
    ):
        found.append(eight_bit.candidates(centred, W, b, k))
    return [float(eight_bit.share_found(each, centred, W, b, k)) for each in found]


if __name__ == "__main__":
    main()

"""A step of a cross-layer transcoder beside one in plain PyTorch that decodes densely: time and peak memory.

    python benchmarks/cross_layer.py --layers 8 --num_latents 4608 --k 32 --tokens 2048

Each runs in a process of its own, on random activations of SmolLM2-135M's width. The reference is what a user would
write: dense codes, a decoder for every pair of layers in one product per source, autograd and torch's Adam, in float32.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sae import Sae, SaeConfig, lm
from sae.dictionary.spec import Spec
from sae.training.joint import joints
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe, firings

D = 576
"""Width of the model, of what is read and of what is written."""
WARM_UP = 2
"""Steps that are not timed."""


def ours(layers: int, num_latents: int, k: int, tokens: int) -> Callable[[Tensor, Tensor], None]:
    """The product's own step."""
    names = [f"layers.{layer}.mlp" for layer in range(layers)]
    learners = {}
    for layer, name in enumerate(names):
        cfg, later = SaeConfig(num_latents=num_latents, k=k, cross_layer=True), tuple(names[layer:])
        spec = Spec(
            cfg, D, D * len(later), num_latents, reads=(f"{name}.input",), writes=later, widths=(D,) * len(later)
        )
        recipe = Recipe.named("default", 1000, firings(tokens, k, num_latents))
        learners[name] = SaeLearner(
            Sae(D, cfg, d_out=spec.d_out, spec=spec), tokens_per_step=tokens, auxk_alpha=1 / 32,
            dead_feature_threshold=10**7, compute_dtype=lm.compute_dtype(torch.device("cpu")), recipe=recipe,
        )  # fmt: skip
    (joint,) = joints(learners)
    begun = False

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal begun
        pairs = {name: (x[layer], y[:, layer * D :]) for layer, name in enumerate(names)}
        for name, learner in learners.items():
            if not begun:
                learner.initialise(*pairs[name])
            learner.begin_step(500, 1000)
        begun = True
        joint.accumulate(pairs)
        for learner in learners.values():
            learner.update(1e-3)

    return step


def dense(layers: int, num_latents: int, k: int, tokens: int) -> Callable[[Tensor, Tensor], None]:
    """Plain PyTorch."""
    encoders = nn.ModuleList(nn.Linear(D, num_latents) for _ in range(layers))
    decoders = nn.ParameterList(0.01 * torch.randn(num_latents, D * (layers - layer)) for layer in range(layers))
    bias = nn.Parameter(torch.zeros(D * layers))
    optimizer = torch.optim.Adam([*encoders.parameters(), *decoders, bias], lr=1e-3)

    def step(x: Tensor, y: Tensor) -> None:
        total = bias.expand_as(y)
        for layer, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
            values, indices = encoder(x[layer]).relu().topk(k)
            code = torch.zeros(tokens, num_latents).scatter(1, indices, values)
            total = total + nn.functional.pad(code @ decoder, (layer * D, 0))
        optimizer.zero_grad()
        (total - y).square().sum(1).mean().backward()
        optimizer.step()

    return step


KINDS = {"sae": ours, "dense": dense}


def run(given: argparse.Namespace) -> dict[str, float]:
    """Median CPU seconds of a step, which the load of the machine changes little, and the peak memory."""
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    step = KINDS[given.kind](given.layers, given.num_latents, given.k, given.tokens)
    seconds = []
    for _ in range(WARM_UP + given.steps):
        x, y = torch.randn(given.layers, given.tokens, D), torch.randn(given.tokens, given.layers * D)
        begun = time.process_time()
        step(x, y)
        seconds.append(time.process_time() - begun)
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": statistics.median(seconds[WARM_UP:]), "peak_GiB": gigabytes}


def main() -> None:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--num_latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, help="run this one here; without it each in a process of its own")
    given = parser.parse_args()
    if given.kind:
        print(json.dumps(run(given)))
        return
    for kind in KINDS:
        command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{kind:<6} {found['seconds']:.2f} CPU s a step, {found['peak_GiB']:.2f} GiB")


if __name__ == "__main__":
    main()

"""A step of a cross-layer transcoder beside one in plain PyTorch that decodes densely: time and peak memory.

    python -m benchmarks.speed.cross_layer --layers 8 --num_latents 4608 --k 32 --tokens 2048 --rounds 3

Each runs in a process of its own, in turn, on random activations of SmolLM2-135M's width. The reference is what a user
would write: dense codes, a decoder for every pair of layers in one product per source, autograd and torch's Adam; in
float32, under autocast to bfloat16, and with decoders that are tied by source as ours are.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sae import Sae, SaeConfig, lm
from sae.dictionary.spec import Spec
from sae.dictionary.wiring import Pair
from sae.training.joint import Joint
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe, firings

D = 576
"""Width of the model, of what is read and of what is written."""
Step = Callable[[Tensor, Tensor], None]
"""A step on what is read (layers, tokens, d) and what is to be written (tokens, layers · d)."""
WARM_UP = 2
"""Steps that are not timed."""


def ours(
    layers: int, num_latents: int, k: int, tokens: int, *, tied: bool | Literal["source", "target"] = False
) -> Step:
    """The product's own step."""
    names = [f"layers.{layer}.mlp" for layer in range(layers)]
    learners = {}
    for layer, name in enumerate(names):
        cfg, later = SaeConfig(num_latents=num_latents, k=k, cross_layer=True, tie_decoders=tied), tuple(names[layer:])
        widths = (D,) * len(later)
        d_out = D if tied else sum(widths)
        spec = Spec(cfg, D, d_out, num_latents, reads=(f"{name}.input",), writes=later, widths=() if tied else widths)
        recipe = Recipe.named("default", 1000, firings(tokens, k, num_latents))
        learners[name] = SaeLearner(
            Sae(D, cfg, d_out=spec.d_out, spec=spec), tokens_per_step=tokens, auxk_alpha=1 / 32,
            dead_feature_threshold=10**7, compute_dtype=lm.compute_dtype(torch.device("cpu")), recipe=recipe,
            encode_in_8bit=None, tokens_per_pass=tokens,
        )  # fmt: skip
    joint = Joint.whole(learners)
    begun = False

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal begun
        ends = [layer + 1 if tied else layers for layer in range(layers)]
        pairs = {name: Pair(x[layer], y[:, layer * D : ends[layer] * D]) for layer, name in enumerate(names)}
        for name, learner in learners.items():
            if not begun:
                learner.initialise(*pairs[name])
            learner.begin_step(500, 1000)
        begun = True
        joint.accumulate(pairs)
        for learner in learners.values():
            learner.update(1e-3)

    return step


def dense(
    layers: int, num_latents: int, k: int, tokens: int, *, tied: bool = False, dtype: torch.dtype | None = None
) -> Step:
    """Plain PyTorch; `dtype` is that of autocast."""
    encoders = nn.ModuleList(nn.Linear(D, num_latents) for _ in range(layers))
    widths = [D if tied else D * (layers - layer) for layer in range(layers)]
    decoders = nn.ParameterList(0.01 * torch.randn(num_latents, width) for width in widths)
    scales, bias = nn.Parameter(torch.eye(layers)), nn.Parameter(torch.zeros(D * layers))
    optimizer = torch.optim.Adam([*encoders.parameters(), *decoders, scales, bias], lr=1e-3)

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            written = []
            for layer, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
                values, indices = encoder(x[layer]).relu().topk(k)
                code = torch.zeros(tokens, num_latents, dtype=values.dtype).scatter(1, indices, values)
                written.append(code @ decoder)
        total = bias.expand_as(y)
        if tied:
            total = total + (scales.tril() @ torch.stack(written, 1).float()).flatten(1)
        for layer, own in enumerate([] if tied else written):
            total = total + nn.functional.pad(own, (layer * D, 0))
        optimizer.zero_grad()
        (total - y).square().sum(1).mean().backward()
        optimizer.step()

    return step


KINDS: dict[str, Callable[[int, int, int, int], Step]] = {
    "sae": ours,
    "sae tied": partial(ours, tied=True),
    "sae by target": partial(ours, tied="target"),
    "dense": dense,
    "dense bf16": partial(dense, dtype=torch.bfloat16),
    "dense tied": partial(dense, tied=True),
}


def run(given: argparse.Namespace) -> dict[str, float]:
    """Median CPU seconds of a step, which the load of the machine changes little, and the peak memory."""
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    before = peak_gigabytes()
    step = KINDS[given.kind](given.layers, given.num_latents, given.k, given.tokens)
    seconds = []
    for _ in range(WARM_UP + given.steps):
        x, y = torch.randn(given.layers, given.tokens, D), torch.randn(given.tokens, given.layers * D)
        begun = time.process_time()
        step(x, y)
        seconds.append(time.process_time() - begun)
    return {"seconds": statistics.median(seconds[WARM_UP:]), "peak_GiB": peak_gigabytes(), "before_GiB": before}


def peak_gigabytes() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(kind: str) -> dict[str, float]:
    """What a process of its own measures, with the options of this one."""
    command = [sys.executable, "-m", "benchmarks.speed.cross_layer", *sys.argv[1:], "--kind", kind]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    """Print a line for each kind: medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--num_latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kind", choices=KINDS, help="run this one here; without it each in a process of its own")
    given = parser.parse_args()
    if given.kind:
        print(json.dumps(run(given)))
        return
    rounds = [{kind: measured(kind) for kind in given.kinds} for _ in range(given.rounds)]
    for kind in given.kinds:
        seconds, peak, before = (
            statistics.median(each[kind][name] for each in rounds) for name in ("seconds", "peak_GiB", "before_GiB")
        )
        print(f"{kind:<13} {seconds:6.2f} CPU s a step, {peak:.2f} GiB, of which {before:.2f} before it began")


if __name__ == "__main__":
    main()

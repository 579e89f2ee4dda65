"""Rows of the table: the stages of our step, each beside a yardstick and the plain PyTorch way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import sae.ops.naive as naive
from benchmarks.harness.measure import Turn, interleave, timed
from benchmarks.harness.report import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import OURS, Contestant, Shape
from benchmarks.peers.product import fastest_buffer, product
from benchmarks.speed.steps import activations_of
from sae import lm, ops
from sae.config import SaeConfig
from sae.dictionary.autoencoder import Sae
from sae.ops.encode import chunk_tokens
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe

ADAM_BYTES = 28
"""Adam in fp32, in one pass, reads and writes this much for each parameter."""
FEW = 64
"""Tokens whose gradients an optimizer step is given: it is dense, so their number does not matter."""


@dataclass(frozen=True)
class Task:
    """What a contestant does, and what has to happen before it each time."""

    work: Callable[[], object]
    prepare: Callable[[], object] | None = None

    def turn(self, seconds: float, device: str) -> Turn:
        """Time it."""
        return timed(self.work if device == "cpu" else self._finished, seconds, prepare=self.prepare)

    def _finished(self) -> None:
        self.work()
        torch.cuda.synchronize()


Tasks = dict[Contestant, Task]


class Bench:
    """The tensors of one step, and what each stage does with them."""

    def __init__(self, shape: Shape, tokens: int, device: str) -> None:
        self.shape = shape
        self.dtype = lm.compute_dtype(torch.device(device))
        data = np.load(activations_of(shape, tokens)[0], mmap_mode="r")[:tokens]
        self.x = torch.from_numpy(data.copy()).to(device)
        self.sae = Sae(shape.d_in, SaeConfig(num_latents=shape.num_latents, k=shape.k), device=device)
        self.W_enc, self.W_dec = self.sae.encoder.weight.detach(), self.sae.W_dec.detach()
        self.centred = self.x - self.x.mean(0)
        self.low, self.W_low, self.b_low = (
            t.to(self.dtype) for t in (self.centred, self.W_enc, self.sae.encoder.bias.detach())
        )
        acts, self.indices = ops.encode(self.low, self.W_low, self.b_low, self._topk)
        self.acts = acts.float()
        self.gather = Task(self._traffic(tokens * shape.k * shape.d_in * 4))

    def stages(self) -> Iterator[tuple[str, Tasks]]:
        """One stage after the other, so that its tensors need not live longer than it."""
        yield "encoder product", self._encoder_product()
        yield "selection", self._selection()
        yield "encode", self._encode()
        yield "decode", self._decode()
        yield "gather-dot", self._gather_dot()
        yield "segment sums", self._segment_sums()
        yield "optimizer", self._optimizer()

    def _topk(self, pre_acts: Tensor) -> tuple[Tensor, Tensor]:
        return ops.topk(pre_acts, self.shape.k)

    def _encoder_product(self) -> Tasks:
        """Ours is the product as the step does it, with the bias, and a selection that costs nothing."""

        def first_column(pre_acts: Tensor) -> tuple[Tensor, Tensor]:
            return pre_acts[:, :1].clone(), pre_acts[:, :1].long()

        low = fastest_buffer(self.low, self.W_low)
        wide = fastest_buffer(self.centred, self.W_enc)
        bias = self.sae.encoder.bias.detach()
        return {
            OURS: Task(lambda: ops.encode(self.low, self.W_low, self.b_low, first_column)),
            Contestant("product", _name(self.dtype)): Task(lambda: product(self.low, self.W_low, low)),
            Contestant("product", "fp32"): Task(lambda: product(self.centred, self.W_enc, wide)),
            Contestant("F.linear", "fp32"): Task(lambda: torch.nn.functional.linear(self.centred, self.W_enc, bias)),
        }

    def _selection(self) -> Tasks:
        pre_acts = self.low @ self.W_low.T
        wide = pre_acts.float()
        chunk = chunk_tokens(self.shape.num_latents, self.low)
        return {
            OURS: Task(lambda: [self._topk(part) for part in pre_acts.split(chunk)]),
            Contestant("torch.topk", _name(self.dtype)): Task(lambda: naive.topk(pre_acts, self.shape.k)),
            Contestant("torch.topk", "fp32"): Task(lambda: naive.topk(wide, self.shape.k)),
            Contestant("memory", "one read"): Task(self._traffic(pre_acts.numel() * pre_acts.element_size())),
        }

    def _encode(self) -> Tasks:
        """Product and selection together, as the step does it."""
        bias = self.sae.encoder.bias.detach()

        def plain() -> None:
            naive.topk(torch.nn.functional.linear(self.centred, self.W_enc, bias), self.shape.k)

        low = fastest_buffer(self.low, self.W_low)
        return {
            OURS: Task(lambda: ops.encode(self.low, self.W_low, self.b_low, self._topk)),
            Contestant("product", _name(self.dtype)): Task(lambda: product(self.low, self.W_low, low)),
            Contestant("F.linear, torch.topk", "fp32"): Task(plain),
        }

    def _decode(self) -> Tasks:
        arguments = (self.acts, self.indices, self.W_dec)
        return {
            OURS: Task(lambda: ops.decode(*arguments)),
            Contestant("W[indices]", "product, sum"): Task(lambda: naive.decode(*arguments)),
            Contestant("memory", "one gather"): self.gather,
        }

    def _gather_dot(self) -> Tasks:
        arguments = (self.centred, self.indices, self.W_dec)
        return {
            OURS: Task(lambda: ops.gather_dot(*arguments)),
            Contestant("W[indices]", "product, sum"): Task(lambda: naive.gather_dot(*arguments)),
            Contestant("memory", "one gather"): self.gather,
        }

    def _segment_sums(self) -> Tasks:
        """Both weight gradients and that of the encoder's bias, from the same code."""
        num_latents, flat = self.shape.num_latents, self.indices.flatten()

        def ours() -> None:
            segments = ops.LatentSegments(self.indices, num_latents)
            segments.sum(self.acts, self.centred)
            segments.sum(self.acts, self.centred)
            segments.sum_weights(self.acts)

        def plain() -> None:
            naive.segment_sum(self.acts, self.indices, self.centred, num_latents)
            naive.segment_sum(self.acts, self.indices, self.centred, num_latents)
            self.acts.new_zeros(num_latents).index_add_(0, flat, self.acts.flatten())

        num_bytes = 2 * 4 * (self.indices.numel() * self.shape.d_in + self.W_dec.numel())
        return {
            OURS: Task(ours),
            Contestant("index_add_", "of the products"): Task(plain),
            Contestant("memory", "two gathers, two writes"): Task(self._traffic(num_bytes)),
        }

    def _optimizer(self) -> Tasks:
        """Projection of W_dec's gradient, the optimizer, unit norm, zero gradients; ours also makes the bf16 copy."""

        def ours(recipe: Recipe) -> Task:
            learner = SaeLearner(
                self.sae,
                tokens_per_step=FEW,
                auxk_alpha=0.0,
                dead_feature_threshold=10**7,
                compute_dtype=self.dtype,
                recipe=recipe,
            )
            learner.initialise(self.x)
            return Task(lambda: learner.update(1e-6), prepare=lambda: learner.accumulate(self.x[:FEW]))

        plain = torch.nn.Parameter(self.W_enc.clone()), torch.nn.Parameter(self.W_dec.clone())
        W_dec = plain[1]
        for parameter in plain:
            parameter.grad = torch.full_like(parameter, 1e-6)
        loop = torch.optim.Adam(plain, lr=1e-6, foreach=False, fused=False)

        def plainly() -> None:
            assert W_dec.grad is not None
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(-1, keepdim=True) * W_dec)
            loop.step()
            W_dec.div_(W_dec.norm(dim=-1, keepdim=True))
            loop.zero_grad(set_to_none=False)

        return {
            OURS: ours(Recipe(capped=True)),
            Contestant("sae", "Adam (gao2024)"): ours(Recipe()),
            Contestant("for-loop Adam", "projection, norm"): Task(plainly),
            Contestant("memory", f"{ADAM_BYTES} B a parameter"): Task(
                self._traffic(ADAM_BYTES * self.shape.num_parameters)
            ),
        }

    def _traffic(self, num_bytes: int) -> Callable[[], object]:
        """A copy that reads and writes `num_bytes` in all."""
        source = torch.ones(max(1, num_bytes // 2), dtype=torch.uint8, device=self.x.device)
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


@torch.no_grad()
def stage_rows(shape: Shape, tokens: int, settings: Settings) -> Iterator[Row]:
    """The rows of every stage, interleaved within the stage."""
    torch.set_num_threads(settings.threads)
    for stage, tasks in Bench(shape, tokens, settings.device).stages():
        turns = {
            c.name: (lambda task=task: task.turn(settings.turn_seconds / 2, settings.device))
            for c, task in tasks.items()
        }
        taken = interleave(turns, settings.repeats)
        for c in tasks:
            yield Row.of("stage", f"{shape.name}: {stage}", tokens, c, taken[c.name])

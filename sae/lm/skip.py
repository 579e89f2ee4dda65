"""Start a forward behind a block whose output is known, so that what comes before is not computed again."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .forward import alone, as_before, forward_instead, is_hooked
from .graft import graft
from .harvest import first_tensor
from .hookpoints import block_list, block_names, locate
from .logits import Head, probe_tokens
from .wrappers import base_model

_PROBE_TOKENS = 8


class Skips:
    """Blocks of a model behind which a forward can begin.

    Whether it can is tried with a few tokens: the hidden states must be those of the whole forward, bit for bit. A
    model whose blocks hand each other more than one tensor, such as keys and values, fails that.
    """

    def __init__(self, model: nn.Module, head: Head) -> None:
        """`head` is what runs the model."""
        self._model, self._head, self._base = model, head, base_model(model)
        self._tried: dict[int, bool] = {}
        self._before: dict[str, int] = {}
        """The last block before each hookpoint that was asked for; every batch asks anew."""
        self._width: int | None = 0
        """Length of the tuple that a block puts out; 0 for a tensor."""

    def behind(self, hookpoints: Iterable[str]) -> str:
        """The last block whose output comes before all these hookpoints, or is one; empty if none can be begun behind.

        A forward that changes the activations at these hookpoints alone is whole from there on.
        """
        last = min(map(self._last_before, hookpoints), default=-1)
        return self._names[last] if last >= 0 and self._can_begin(last) else ""

    @contextmanager
    def begin(self, name: str, states: Float[Tensor, "batch seq d"]) -> Iterator[None]:
        """Inside `with`, a forward has `states` as the output of the block `name`, and runs none before it."""
        last = self._names.index(name)
        with ExitStack() as stack:
            stack.enter_context(alone(self._base))
            for block in self._blocks[:last]:
                stack.enter_context(forward_instead(block, lambda: self._shaped(states)))
            # what runs later may write into it
            stack.enter_context(forward_instead(self._blocks[last], lambda: self._shaped(states.clone())))
            yield

    def _shaped(self, states: Tensor) -> Tensor | tuple[Any, ...]:
        """Hidden states as a block puts them out."""
        return states if self._width == 0 else (states, *[None] * ((self._width or 1) - 1))

    @cached_property
    def _names(self) -> list[str]:
        return block_names(self._base) if self._blocks else []

    @cached_property
    def _blocks(self) -> list[nn.Module]:
        """The blocks, in the order of the forward; none where one runs several times."""
        try:
            path, count = block_list(self._base)
        except ValueError:
            return []
        return [self._base.get_submodule(f"{path}.{layer}") for layer in range(count)]

    def _last_before(self, hookpoint: str) -> int:
        if hookpoint not in self._before:
            self._before[hookpoint] = self._find_last_before(hookpoint)
        return self._before[hookpoint]

    def _find_last_before(self, hookpoint: str) -> int:
        module, side, call = locate(self._base, hookpoint)
        if call:
            return -1
        for layer, block in enumerate(self._blocks):
            if module is block:
                return layer if side == "output" else layer - 1
            if any(part is module for part in block.modules()):
                return layer - 1
        return -1

    def _can_begin(self, last: int) -> bool:
        # A user's hook would change known states once more, and perhaps at positions that no trial has.
        if any(is_hooked(block) for block in self._blocks[: last + 1]):
            return False
        if last not in self._tried:
            try:
                with torch.no_grad(), as_before(self._model):
                    self._tried[last] = self._keeps_the_law(last)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a forward of any architecture trips over without its first blocks
                self._tried[last] = False
        return self._tried[last]

    def _keeps_the_law(self, last: int) -> bool:
        tokens = probe_tokens(self._model, _PROBE_TOKENS)
        ran: list[tuple[nn.Module, Any]] = []
        read: list[Tensor] = []

        def look(x: Tensor) -> Tensor:
            read.append(x.clone())
            return x

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            ran.append((module, output))

        with ExitStack() as stack:
            stack.enter_context(graft(self._model, {self._names[last]: look}))  # which may run the model
            for block in self._blocks[: last + 1]:
                stack.callback(block.register_forward_hook(keep).remove)
            clean = self._head.run(tokens).states
        modules, outputs = zip(*ran, strict=True)
        widths = {_width(output) for output in outputs}
        states = first_tensor(outputs[-1])
        if list(modules) != self._blocks[: last + 1] or len(widths) > 1 or None in widths or states is None:
            return False
        (self._width,) = widths
        if states.shape != read[0].shape or states.shape[:2] != tokens.shape:
            return False
        self._head.run(tokens.flip(1))  # what a block may keep for later ones is then of other tokens
        with self.begin(self._names[last], read[0]):
            return torch.equal(self._head.run(tokens).states, clean)


def _width(output: Any) -> int | None:
    """How many values a block puts out with its hidden states, 0 for these alone; None if others matter."""
    if isinstance(output, Tensor):
        return 0
    plain = type(output) is tuple and isinstance(output[0], Tensor) and all(each is None for each in output[1:])
    return len(output) if plain else None

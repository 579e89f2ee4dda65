"""Run a language model with reconstructions in place of its activations: to measure, to ablate, to steer, to train."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .forward import alone, recorders_of
from .harvest import Runs, check_one_stream, first_tensor, layouts, positions_first, vectors
from .hookpoints import ARROW, locate
from .layout import Layout, like, received
from .pair import models_in
from .wrappers import base_model, check_hooks_are_alone, eagerly, unwrapped


@runtime_checkable
class Coder(Protocol):
    """What encodes an activation into few latents and decodes them: `Sae` is one."""

    num_latents: int

    def encode(self, x: Tensor) -> Any:
        """Activations x (…, d_in) -> (top_acts, top_indices), both (…, k)."""

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """Any number of latents a token -> (…, d_in).

        The encoded x is a third argument if `decodes_with_input` is true. If `reads_input` is true, x is the input of
        the module, or A of A->B, or the hookpoint `reads`. The result then stands in the place of the module's output,
        or of B. What it stands in for is given to `replaces` afterwards, if there is such a method.
        """


class Latents:
    """The latents of every token at one hookpoint, to read and to change: `latents[7]` is latent 7's activation.

    `latents[7] = 0` ablates, `latents[7] += 3` and `latents[7] *= 2` steer. An activation may become negative. Only
    latents that fired or were set take memory: the dense code never exists. Gradients flow through all of it.
    """

    top_acts: Float[Tensor, "batch seq active"]
    """Activations of the active latents; a row may hold zeros."""
    top_indices: Int[Tensor, "batch seq active"]
    """Which latents. One that was set stands last; where it fired before, with activation 0."""

    def __init__(self, hookpoint: str, num_latents: int, top_acts: Tensor, top_indices: Tensor) -> None:
        self.hookpoint, self.num_latents = hookpoint, num_latents
        self.top_acts, self.top_indices = top_acts, top_indices

    def __getitem__(self, latent: int) -> Float[Tensor, "batch seq"]:
        self._check(latent)
        return self.top_acts.where(self.top_indices == latent, 0).sum(-1)

    def __setitem__(self, latent: int, value: float | Tensor) -> None:
        self._check(latent)
        column = self.top_acts.new_zeros(self.top_acts.shape[:-1]) + value
        rest = self.top_acts.where(self.top_indices != latent, 0)
        self.top_acts = torch.cat([rest, column.unsqueeze(-1)], -1)
        index = self.top_indices.new_full(column.shape, latent).unsqueeze(-1)
        self.top_indices = torch.cat([self.top_indices, index], -1)

    def _check(self, latent: int) -> None:
        if not 0 <= latent < self.num_latents:
            raise ValueError(
                f"a latent of {self.hookpoint} must be between 0 and {self.num_latents - 1}, got {latent}; "
                "is it of another autoencoder?"
            )


Edit = Callable[[Latents], None]
"""Changes latents in place, at every hookpoint that is grafted; `latents.hookpoint` says which it is."""


@contextmanager
def graft(
    model: nn.Module,
    saes: Mapping[str, Coder | Callable[[Tensor], Tensor]],
    *,
    keep_error: bool = False,
    edit: Edit | None = None,
    mask: Bool[Tensor, "batch seq"] | None = None,
) -> Iterator[nn.Module]:
    """Inside `with`, `model` runs with the reconstruction of each hookpoint in place of its activation.

    Reconstructions are rounded to the type of the activation. Gradients flow to the weights of `saes` and back into the
    model. A module that runs several times in one forward is replaced the first time, or as its `.call2` says. So does
    `harvest`. A transcoder reads what all other grafts leave there. The model's `hidden_states` show what was replaced.
    A model that is compiled or wrapped (`torch.compile`, PEFT) is grafted inside, and runs uncompiled meanwhile; give
    the wrapper, if that is what runs.
    The model is as before afterwards, also after an error. Another thread that harvests or grafts it waits meanwhile,
    ten minutes at most.

    Args:
        model: Model of transformers, wrapped or not.
        saes: An `Sae`, or any function of the activation (batch, seq, d_in), by hookpoint. A transcoder's is the one
            that it writes, or A->B.
        keep_error: Add what the reconstruction misses, held constant. Without `edit` the model then computes what it
            always does, bit for bit.
        edit: Function that changes the latents between encoding and decoding.
        mask: Tokens (batch, seq) to replace; where it is False the activation stays. None: all.

    Yields:
        The model.

    Raises:
        ValueError: For a hookpoint that the model lacks, and for `edit` without something to decode. When the model
            runs, for an activation or a reconstruction of a wrong shape.
    """
    check_hooks_are_alone(model)
    if len(models_in(model)) > 1:
        raise ValueError("the model that is grafted must be one, got a pair; graft its .a or its .b")
    base = base_model(model)
    turned = positions_first(base, dict.fromkeys(end for each in saes.items() for end in _ends(*each) if end))
    known = layouts(base)
    splices = [
        _Splice(name, sae, keep_error=keep_error, edit=edit, mask=mask, turned=turned, layouts=known)
        for name, sae in saes.items()
    ]
    with ExitStack() as stack:
        stack.enter_context(alone(base))
        stack.enter_context(eagerly(model))
        for splice in splices:
            module, side, call = locate(base, splice.writes)
            splice.runs = Runs(call)
            if side == "input":
                stack.enter_context(module.register_forward_pre_hook(splice.on_input, with_kwargs=True))
            else:
                stack.enter_context(module.register_forward_hook(splice.on_output))
                stack.enter_context(_recorders_last(module))
            for around in _around(unwrapped(model), module):
                stack.enter_context(around.register_forward_pre_hook(splice.on_start, with_kwargs=True))
                stack.enter_context(around.register_forward_hook(splice.on_end, always_call=True))
        for splice in splices:  # after all replacements, so that these are what is read
            if splice.reads_input:
                splice.hook_what_it_reads(base, stack)
        yield model


@contextmanager
def _recorders_last(module: nn.Module) -> Iterator[None]:
    """Meanwhile transformers records a hidden state after all other hooks.

    Its hooks are registered when hidden states are asked for the first time, and stay: they would see what is replaced.
    """
    hooks = module._forward_hooks
    before = list(hooks)
    _reorder(hooks, recorders_of(module))
    try:
        yield
    finally:
        _reorder(hooks, [*before, *(key for key in hooks if key not in before)])


def _reorder(hooks: dict[int, Callable[..., Any]], last: Sequence[int]) -> None:
    """Put the hooks of these keys at the end, in this order; those that are gone stay away."""
    for key in last:
        if key in hooks:
            hooks[key] = hooks.pop(key)


def _ends(name: str, sae: object) -> tuple[str, str]:
    """The hookpoints that are read and replaced; the first is empty where it is the input of the replaced module."""
    reads, _, writes = name.rpartition(ARROW)
    return reads.strip() or str(getattr(sae, "reads", "")), writes.strip()


def _around(model: nn.Module, module: nn.Module) -> list[nn.Module]:
    """The modules that hold this one, any of which may be what a forward of the model begins with."""
    path = next(path for path, each in model.named_modules() if each is module)
    parts = path.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _shape_of_tokens(values: tuple[Any, ...]) -> tuple[int, ...] | None:
    """(batch, seq) of what a forward was given: token ids, or their embeddings; None if it was given neither."""
    tensors = [each for each in values if isinstance(each, Tensor)]
    ids = [each for each in tensors if each.ndim == 2 and not each.is_floating_point()]
    vectors = [each for each in tensors if each.ndim == 3 and each.is_floating_point()]
    return next((tuple(each.shape[:2]) for each in (*ids, *vectors)), None)


def _instead(value: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
    return next((new for old, new in pairs if old is value), value)


class _Splice:
    """Replaces what passes one hookpoint."""

    def __init__(
        self,
        hookpoint: str,
        sae: Coder | Callable[[Tensor], Tensor],
        *,
        keep_error: bool,
        edit: Edit | None,
        mask: Tensor | None,
        turned: set[str],
        layouts: Mapping[str, Layout],
    ) -> None:
        """`hookpoint` may be A->B. At hookpoints that are `turned` (seq, batch, d_in) passes; `layouts` are others'."""
        if getattr(sae, "reads_several", False):
            raise ValueError(
                f"what is grafted at {hookpoint} must read one hookpoint, got a crosscoder, whose later hookpoints are "
                "not known when the first one is replaced; sae.evaluate measures it, with the clean model's code"
            )
        if getattr(sae, "writes_several", False):
            raise ValueError(
                f"what is grafted at {hookpoint} must write one hookpoint, got a layer of a cross-layer transcoder, to "
                "which others add; graft sae.dictionary.cross_layer.coders of all its layers"
            )
        if edit is not None and not isinstance(sae, Coder):
            raise ValueError(
                f"edit needs latents to change, and what is grafted at {hookpoint} is {type(sae).__name__}, without "
                "encode and decode; graft an Sae, or leave edit out"
            )
        self._hookpoint, self._sae, self._keep_error, self._edit, self._mask = hookpoint, sae, keep_error, edit, mask
        (self._reads, self.writes), self._done = _ends(hookpoint, sae), False
        self._turned, self._reads_turned = self.writes in turned, (self._reads or self.writes) in turned
        self._layout, self._reads_layout = layouts.get(self.writes), layouts.get(self._reads or self.writes)
        self.reads_input = bool(getattr(sae, "reads_input", False))
        self.runs, self._reads_runs = Runs(), Runs()
        self._input: Tensor | None = None
        self._shape: tuple[int, ...] | None = None
        self._outermost: nn.Module | None = None

    def on_start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward begins, or a part of the one that runs."""
        if self._outermost is None:
            self._outermost, self._done, self._input = module, False, None
            self.runs.restart()
            self._reads_runs.restart()
            self._shape = _shape_of_tokens((*args, *kwargs.values()))

    def on_end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward ends, or a part of the one that runs; also by an error."""
        if self._outermost is module:
            self._outermost = None

    def hook_what_it_reads(self, base: nn.Module, stack: ExitStack) -> None:
        """Let a transcoder see what it reads: the input of its module, or A of A->B."""
        module, side, call = locate(base, self._reads or self.writes)
        self._reads_runs = Runs(call)
        if side == "input" or not self._reads:
            stack.enter_context(module.register_forward_pre_hook(self.on_read, with_kwargs=True))
        else:
            stack.enter_context(module.register_forward_hook(self.on_read_output))

    def on_read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the module receives."""
        self._keep(received(args, kwargs))

    def on_read_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep what the module puts out."""
        self._keep(output)

    def _keep(self, values: Any) -> None:
        """Keep what is read, the first time in a forward, or at the call that the hookpoint names."""
        reached = self._reads_runs.reached()
        if self._done or self._input is not None or not reached:
            return
        what = self._reads or f"{self.writes}.input"
        shape = self._known_shape(first_tensor(values), turned=self._reads_turned)
        self._input = vectors(what, values, shape, turned=self._reads_turned, layout=self._reads_layout)

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._is_its_turn():
            return output
        if self._layout is None:
            check_one_stream(self._hookpoint, output)
        return self._replaced(output)

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_its_turn():
            return args, kwargs
        given = received(args, kwargs)
        changed = self._replaced(given)
        return (changed, kwargs) if given is args else (args, kwargs | changed)

    def _is_its_turn(self) -> bool:
        """Whether this run of the module is the one to be replaced; asked once in each."""
        if not self.runs.reached() or self._done:
            return False
        self._done = True
        return True

    def _replaced(self, values: Any) -> Any:
        """`values`, a tensor or several, with what holds the vectors of the tokens replaced."""
        x = first_tensor(values)
        read = vectors(self._hookpoint, values, self._known_shape(x), turned=self._turned, layout=self._layout)
        if x is None:
            return values
        new = self.replace(read)
        pairs = [(x, like(new, x, positions_first=self._turned))]
        if self._layout is not None:
            pairs = self._layout.replaced(values, new)
        if isinstance(values, Tensor):
            return pairs[0][1]
        if isinstance(values, dict):  # transformers' ModelOutput
            changed = copy.copy(values)
            for key, value in values.items():
                changed[key] = _instead(value, pairs)
            return changed
        several = [_instead(value, pairs) for value in values]
        return type(values)(*several) if hasattr(values, "_fields") else type(values)(several)

    def _known_shape(self, x: Tensor | None, *, turned: bool | None = None) -> tuple[int, ...] | None:
        """(batch, seq) of the tokens, where the value's own axes do not say it."""
        if x is None or x.ndim < 3:
            return None
        if x.ndim == 3:
            return (x.shape[1], x.shape[0]) if (self._turned if turned is None else turned) else None
        return self._shape

    def replace(self, x: Float[Tensor, "batch seq d_in"]) -> Float[Tensor, "batch seq d_in"]:
        """What stands in x's place."""
        new = self._reconstruct(x)
        if new is x or self._mask is None:
            return new
        if self._mask.shape != x.shape[:2]:
            raise ValueError(
                f"mask must have one entry per token, (batch, seq) = {tuple(x.shape[:2])} at {self._hookpoint}, "
                f"got {tuple(self._mask.shape)}; leave it out to replace all"
            )
        return torch.where(self._mask.to(x.device).unsqueeze(-1), new, x)

    def _reconstruct(self, x: Tensor) -> Tensor:
        if self._keep_error and self._edit is None:
            return x
        if not isinstance(self._sae, Coder):
            return self._checked(self._sae(x), x)
        if self.reads_input and self._reads and self._input is None:
            raise ValueError(
                f"what is grafted at {self.writes} must read what comes before, got {self._reads}, which comes after; "
                "such a transcoder can be measured alone, and not grafted"
            )
        read = self._input if self.reads_input and self._input is not None else x
        also = (read,) if getattr(self._sae, "decodes_with_input", False) else ()
        acts, indices = self._sae.encode(read)
        recon = self._sae.decode(acts, indices, *also)
        if hasattr(self._sae, "replaces"):
            self._sae.replaces(x)
        if self._edit is None:
            return self._checked(recon, x)
        latents = Latents(self._hookpoint, self._sae.num_latents, acts, indices)
        self._edit(latents)
        edited = self._sae.decode(latents.top_acts, latents.top_indices, *also)
        if not self._keep_error:
            return self._checked(edited, x)
        return self._checked(x.detach() + (edited - recon.detach()), x)

    def _checked(self, new: Any, x: Tensor) -> Tensor:
        if not isinstance(new, Tensor) or new.shape != x.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(
                f"what is grafted at {self._hookpoint} must return activations of shape {tuple(x.shape)}, got {found}"
            )
        # The model may write into it (residuals added in place): never into what the caller keeps.
        return new.to(x.dtype, copy=True, memory_format=torch.contiguous_format)

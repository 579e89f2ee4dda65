"""One vector for each token, whatever shape a module gives the residual stream, where its token axis is certain."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Layout(NamedTuple):
    """Which part of a module's values holds one vector for each token, where it is not all of the first tensor."""

    tensors: tuple[int, ...] = (0,)
    """Which of its tensors; several are side by side in d_in."""
    before: int = 0
    """Positions before those of the tokens, such as a prompt's."""
    after: int = 0
    """Positions after them."""

    def read(self, values: Any) -> Tensor:
        """The part. Raises ValueError, without saying where, for values that have no such part."""
        found = tensors_in(values)
        if len(found) <= max(self.tensors):
            raise ValueError(f"{len(found)} tensors, where there were {max(self.tensors) + 1}")
        parts = [found[i] for i in self.tensors]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if whole.shape[1] <= self.before + self.after:
            raise ValueError(
                f"{whole.shape[1]} positions, where {self.before + self.after} are none of the tokens'; "
                "give all tokens at once, without a cache (use_cache=False)"
            )
        return whole[:, self.before : whole.shape[1] - self.after]

    def replaced(self, values: Any, new: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each tensor that takes part, and what it is when `new` stands in the part's place."""
        found = [tensors_in(values)[i] for i in self.tensors]
        pairs = []
        for old, part in zip(found, new.chunk(len(found), -1), strict=True):
            whole = old.clone()
            whole[:, self.before : old.shape[1] - self.after] = part
            pairs.append((old, whole))
        return pairs


def received(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
    """What a module receives: its arguments, or if no tensor is among them the named ones, hidden_states first."""
    if any(isinstance(each, Tensor) for each in args):
        return args
    return {name: kwargs[name] for name in sorted(kwargs, key="hidden_states".__ne__)}


def tensors_in(values: Any) -> list[Tensor]:
    """The value itself, or all tensors of several."""
    if isinstance(values, dict):  # transformers' ModelOutput
        values = tuple(values.values())
    several = values if isinstance(values, tuple | list) else (values,)
    return [each for each in several if isinstance(each, Tensor)]


def as_tokens(
    value: Tensor, shape: Sequence[int], *, positions_first: bool = False
) -> Float[Tensor, "batch seq d_in"] | None:
    """The value as (batch, seq, d_in), for tokens of `shape` (batch, seq); None if nothing says where the tokens are.

    Several streams are one after the other in d_in: (batch, seq, streams, d) are DeepSeek-V4's,
    (streams, batch, seq, d) Gemma 3n's. XLNet's are (seq, batch, d), which `positions_first` says where batch and seq
    are equal.
    """
    batch_and_seq = tuple(shape)
    if not value.is_floating_point() or value.ndim not in (3, 4):
        return None
    first, second = value.shape[:2] == batch_and_seq, value.ndim == 4 and value.shape[1:3] == batch_and_seq
    if value.ndim == 3 and value.shape[:2] == batch_and_seq[::-1] and (positions_first or not first):
        return value.transpose(0, 1)
    if value.ndim == 3:
        return value if first else None
    if first == second:  # neither, or both by chance
        return None
    return (value if first else value.movedim(0, 2)).flatten(2)


def like(new: Float[Tensor, "batch seq d_in"], value: Tensor, *, positions_first: bool) -> Tensor:
    """What `as_tokens` made of `value`, changed, in the shape of `value`."""
    if value.ndim == 3 and (positions_first or new.shape != value.shape):
        return new.transpose(0, 1)
    if new.shape == value.shape:
        return new
    if value.shape[:2] == new.shape[:2]:
        return new.reshape(value.shape)
    return new.unflatten(2, (value.shape[0], value.shape[3])).movedim(2, 0)


def found_instead(value: Tensor | None, shape: Sequence[int] | None) -> str:
    """What a value is that is not one vector for each token, and a way out where its shape tells one."""
    if value is None:
        return "no tensor; name another module, e.g. the block that holds it"
    text = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if shape is None or value.ndim != 3:
        return f"{text}; name another module, e.g. the block that holds it"
    batch, seq = shape
    if value.shape[0] == batch and value.shape[1] > seq:
        each, rest = divmod(value.shape[1], seq)
        streams = "" if rest else f"{each} vectors for each token cannot be told apart: name another module; "
        return (
            f"{text}, {value.shape[1]} positions for {seq} tokens; {streams}if the model pads, a --ctx_len of "
            f"{value.shape[1]} fits it"
        )
    if value.shape[0] == batch and value.shape[1] < seq:
        return f"{text}, {value.shape[1]} vectors for {seq} tokens, which it brings together; name another module"
    return f"{text}; name another module, e.g. the block that holds it"

"""One vector for each token, whatever shape a module gives the residual stream, where its token axis is certain."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


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


def like(new: Float[Tensor, "batch seq d_in"], value: Tensor, *, positions_first: bool = False) -> Tensor:
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
        return (
            f"{text}, {value.shape[1]} positions for {seq} tokens; if the model pads, a --ctx_len of "
            f"{value.shape[1]} fits it"
        )
    if value.shape[0] == batch and value.shape[1] < seq:
        return f"{text}, {value.shape[1]} vectors for {seq} tokens, which it brings together; name another module"
    return f"{text}; name another module, e.g. the block that holds it"

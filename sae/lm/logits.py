"""The language model in two halves: its hidden states for all tokens, then its logits for a few tokens at a time."""

import copy
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .forward import alone, as_before, device_of, evaluating, forward_instead, without_cache
from .fused import fused
from .load import class_with_head, is_masked, vocab_size
from .wrappers import base_model, eagerly, unwrapped


class NoHeadError(ValueError):
    """A model that does not turn tokens into logits over its vocabulary, and why; one line."""


class Hidden(NamedTuple):
    """What the first half of a model has made of tokens."""

    states: Float[Tensor, "batch seq d"]
    """The last hidden states; of a model that cannot be halved, its logits."""
    rest: Any = None
    """What else the trunk returned."""


class Head:
    """The way from hidden states to logits: a model's own forward around a trunk that hands out given states.

    What an architecture does to its logits, such as capping them, is done. Found by `find_head`.
    """

    is_causal: bool
    """Whether a token sees only those before it, so that the cross-entropy of the next one means something."""

    def __init__(self, model: nn.Module, trunk: nn.Module | None, *, is_causal: bool = False) -> None:
        """`trunk` is the module whose hidden states the logits are made of; None: the model cannot be halved."""
        self._model, self._trunk, self.is_causal = model, trunk, is_causal

    @property
    def halves(self) -> bool:
        """Whether logits are made for a few positions at a time; else all of them exist at once."""
        return self._trunk is not None

    def run(self, tokens: Int[Tensor, "batch seq"]) -> Hidden:
        """The hidden states of `tokens`, in evaluation mode; gradients are the caller's affair."""
        if self._trunk is None:
            return Hidden(full_logits(self._model, tokens))
        found: list[Any] = []

        def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(output)
            raise _Stop

        with alone(self._model), self._trunk.register_forward_hook(stop), suppress(_Stop):
            _forward(self._model, tokens)
        (output,) = found
        if "past_key_values" in output:  # as large as all hidden states together
            output["past_key_values"] = None
        return Hidden(output["last_hidden_state"], output)

    def logits(
        self, tokens: Int[Tensor, "batch seq"], hidden: Hidden, part: slice
    ) -> Float[Tensor, "batch part vocab"]:
        """The logits at the positions `part`, from what `run` returned or `hidden._replace(states=…)`."""
        if self._trunk is None:
            return hidden.states[:, part]
        # Contiguous: of a view PyTorch makes a batched product, which copies the matrix for each sequence.
        cut = _with_states(hidden.rest, hidden.states[:, part].contiguous())
        with alone(self._model), forward_instead(self._trunk, lambda: cut):
            return full_logits(self._model, tokens[:, part])


def find_head(model: nn.Module, ctx_len: int = 64) -> Head:
    """How `model` makes logits, asked of the model itself with a few forwards of up to `ctx_len` random tokens.

    The trunk is what the forward takes its last hidden states from. It is used if logits of other states, of a part of
    the positions, equal those of the whole forward. Else the model is run as a whole, which takes the memory of all
    logits. Raises NoHeadError for a model without a language-modelling head.
    """
    model = unwrapped(model)
    if not hasattr(model, "config") or (base_model(model) is model and _output_embeddings(model) is None):
        raise NoHeadError(_no_head(model, "it ends in hidden states"))
    most = num_positions_per_chunk(1, vocab_size(model), device_of(model))
    tokens = probe_tokens(model, max(2, min(ctx_len, most)))
    with torch.no_grad(), as_before(model):
        trunks: list[nn.Module] = []
        with _watched(model, trunks.append):
            try:
                clean = full_logits(model, tokens)
            except (NoHeadError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever a model that reads something else than tokens trips over
                reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
                raise NoHeadError(_no_head(model, f"tokens alone do not run it: {reason}")) from error
        whole = Head(model, None, is_causal=_is_causal(model, tokens, clean))
        for trunk in trunks[-1:]:
            halved = Head(model, trunk, is_causal=whole.is_causal)
            if _keeps_the_law(halved, trunk, model, tokens, clean):
                return halved
        return whole


def full_logits(model: nn.Module, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
    """The logits of one forward, in evaluation mode. Raises NoHeadError if it returns none over a vocabulary."""
    logits = getattr(_forward(model, tokens), "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != tokens.shape:
        shape = f"its logits are {tuple(logits.shape)}, not a row for each token" if isinstance(logits, Tensor) else ""
        raise NoHeadError(_no_head(model, shape or "it returns no logits"))
    if _output_embeddings(model) is None and logits.shape[-1] < vocab_size(model):
        raise NoHeadError(_no_head(model, f"it tells {logits.shape[-1]} classes apart"))
    return logits


def probe_tokens(model: nn.Module, seq: int, *, seed: int = 0) -> Int[Tensor, "1 seq"]:
    """Random token ids that mean nothing special: no padding, no image."""
    special = _special_ids(model.config) | _special_ids(model.config.get_text_config())  # type: ignore[operator, union-attr]
    usual = [token for token in range(3, min(1000, vocab_size(model))) if token not in special] or [0]
    chosen = torch.randint(len(usual), (1, seq), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(usual)[chosen]


def num_positions_per_chunk(batch: int, vocab_size: int, device: torch.device) -> int:
    """How many positions' logits to hold at once, for `batch` sequences: 64 MiB of float32, on a GPU 1 GiB."""
    budget = 2**30 if device.type == "cuda" else 2**26
    return max(1, budget // (4 * batch * vocab_size))


class _Stop(Exception):
    """The hidden states are there: what is left of the forward is not needed."""


def _forward(model: nn.Module, tokens: Tensor) -> Any:
    with evaluating(model), eagerly(model), fused(model):
        return model(input_ids=tokens.to(device_of(model)), **without_cache(model))


def _with_states(output: Any, states: Tensor) -> Any:
    """A copy of a trunk's output with other hidden states."""
    changed = copy.copy(output)
    changed["last_hidden_state"] = states
    return changed


@contextmanager
def _watched(model: nn.Module, on_trunk: Callable[[nn.Module], None]) -> Iterator[None]:
    """Meanwhile `on_trunk` hears of every module that returns last hidden states and is in none that does, in order."""
    running: list[tuple[nn.Module, list[nn.Module]]] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        running.append((module, []))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while running and running[-1][0] is not module:
            running.pop()
        _, inside = running.pop()
        states = output.get("last_hidden_state") if isinstance(output, dict) else None
        found = [module] if isinstance(states, Tensor) and states.ndim == 3 and running else inside
        if running:
            running[-1][1].extend(found)
        else:
            for trunk in found:
                on_trunk(trunk)

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeps_the_law(head: Head, trunk: nn.Module, model: nn.Module, tokens: Tensor, clean: Tensor) -> bool:
    """Whether half a forward's logits are the whole one's, also of hidden states that are changed, part by part."""
    hidden = head.run(tokens)
    if hidden.states.shape[:2] != tokens.shape:
        return False
    other = hidden._replace(states=hidden.states.roll(1, dims=-1))
    with trunk.register_forward_hook(lambda module, args, output: _with_states(output, other.states)):
        changed = full_logits(model, tokens)
    if torch.equal(changed, clean):
        return False
    middle = tokens.shape[1] // 2
    for one, expected in ((hidden, clean), (other, changed)):
        try:
            parts = [head.logits(tokens, one, part) for part in (slice(0, middle), slice(middle, None))]
        except (RuntimeError, ValueError, TypeError, IndexError):  # a forward that reads more of the trunk than states
            return False
        if not _close(torch.cat(parts, 1), expected):
            return False
    return True


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding (which TF32 makes coarse), infinities included."""
    relative = 2e-3 if other.dtype in (torch.float32, torch.float64) else 2e-2
    scale = other.where(other.isfinite(), 0).abs().max().item()
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=relative * scale)


def _is_causal(model: nn.Module, tokens: Tensor, clean: Tensor) -> bool:
    """Whether other tokens in the second half leave the predictions of the first alone.

    A mixture of experts may move them by rounding: by less than a hundredth, in float32 a ten-thousandth, of what the
    second half's move. An encoder's may not move at all.
    """
    middle = tokens.shape[1] // 2
    second = probe_tokens(model, tokens.shape[1] - middle, seed=1)
    moved = (
        full_logits(model, torch.cat([tokens[:, :middle], second], 1)).float().sub_(clean.float()).nan_to_num_().abs_()
    )
    before, after = moved[:, :middle].max().item(), moved[:, middle:].max().item()
    if before == 0 or is_masked(model.config):  # type: ignore[arg-type]
        return before == 0
    return before < (1e-4 if clean.dtype == torch.float32 else 1e-2) * after


def _special_ids(config: Any) -> set[int]:
    """The ids of tokens that a config gives a name, such as `pad_token_id`."""
    named = [value for name, value in vars(config).items() if re.search(r"token_(id|index)s?$", name)]
    ids = [each for value in named for each in (value if isinstance(value, list | tuple) else [value])]
    return {each for each in ids if isinstance(each, int)}


def _output_embeddings(model: nn.Module) -> Any:
    try:
        return model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def _no_head(model: nn.Module, reason: str) -> str:
    advice = class_with_head(model)
    way_out = f"; load it with {advice}" if advice else ""
    return f"{type(model).__name__} has no language-modelling head ({reason}){way_out}"

"""Attention of transformers' models by ours, which takes a third of the time, in bf16 on a CPU without matrix units."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from threading import Lock, local
from typing import Any

import torch
from torch import Tensor, nn

from sae.ops.native.attention import attend, covers, has_attention

_NAME = "sdpa"
"""What transformers calls PyTorch's own attention, which it takes by default."""
_FUNCTIONS = "transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS"
_PLAIN = "transformers.integrations.sdpa_attention", "sdpa_attention_forward"
_KNOWN = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"}
_CLOSE = 2**-7
"""A trial's largest relative difference."""

Attention = Callable[..., Any]
_CHANGING = Lock()


class _Here(local):
    """How often a thread is inside `attention_in_c`."""

    depth = 0


_here = _Here()
_users = 0


@contextmanager
def attention_in_c() -> Iterator[None]:
    """Meanwhile what transformers calls sdpa in this thread is computed by `attend`, where it can be.

    Then all is as before. What somebody registered under that name stays.
    """
    begun = _begin()
    _here.depth += begun
    try:
        yield
    finally:
        _here.depth -= begun
        if begun:
            _end()


def _begin() -> bool:
    global _users
    functions, plain = _loaded(*_FUNCTIONS), _loaded(*_PLAIN)
    if functions is None or plain is None or not has_attention():
        return False
    with _CHANGING:
        if not _users and (functions.get(_NAME) is not plain or not _is_attention(plain)):
            return False
        if not _users:
            functions[_NAME] = partial(_attention, plain)
        _users += 1
    return True


def _end() -> None:
    global _users
    functions, plain = _loaded(*_FUNCTIONS), _loaded(*_PLAIN)
    with _CHANGING:
        _users -= 1
        now = functions.get(_NAME)
        if _users or not isinstance(now, partial) or now.func is not _attention:
            return
        del functions[_NAME]
        if _NAME not in functions:  # a plain dictionary, in which nothing lies beneath
            functions[_NAME] = plain


def _loaded(module: str, name: str) -> Any:
    """What a module of transformers has; None if it is not loaded, as no model of transformers is then."""
    return getattr(sys.modules.get(module), name, None)


@cache
def _is_attention(plain: Attention) -> bool:
    """Whether the function of transformers computes what `attend` does: a trial says."""
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    q, k, v = (torch.randn(2, heads, 40, 16, **options).bfloat16() for heads in (4, 2, 2))
    module = nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    try:
        theirs = plain(module, q, k, v, None, dropout=0.0, scaling=0.3, is_causal=True)
        ours = attend(q, k, v, scale=0.3, causal=True)
        return len(theirs) == 2 and theirs[1] is None and _differ(ours.float(), theirs[0].float()) < _CLOSE
    except Exception:  # another signature
        return False


def _differ(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item() if ours.shape == theirs.shape else float("inf")


def _attention(
    plain: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> Any:
    """`plain`, by ours where it covers these: with no mask but that of causal attention, and nothing else to heed."""
    bare = _here.depth and attention_mask is None and not dropout and not _others(plain, kwargs)
    if not (bare and _fits(module, query, key, value) and (scaling is None or isinstance(scaling, float))):
        rest = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal} | kwargs
        return plain(module, query, key, value, attention_mask, **rest)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, scale=scale, causal=bool(causal)), None


def _fits(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether ours takes these, wants no gradient of them, and repeats the heads of keys as the module says."""
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    groups = getattr(module, "num_key_value_groups", 1)
    return not with_gradient and covers(query, key, value) and query.shape[1] == key.shape[1] * groups


def _others(plain: Attention, kwargs: dict[str, Any]) -> bool:
    """Whether there is something besides that `plain` may heed."""
    given = {name for name, value in kwargs.items() if value is not None}
    return bool(given & (_heeded(plain) | {"softcap"}))


@cache
def _heeded(plain: Attention) -> frozenset[str]:
    return frozenset(inspect.signature(plain).parameters) - _KNOWN

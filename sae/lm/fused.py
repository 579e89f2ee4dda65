"""A language model's elementwise work in one pass each, in bf16 on a CPU, where half of a block's time is such work.

A trial decides what a module computes, not its name. It is RMSNorm, a gated MLP or rotary position embedding if it does
the same to random vectors, in some model's rounding. Of the results, 99.9 % are the same to the bit.
"""

import copy
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae.ops.native import library, transformer
from sae.ops.native.transformer import covers

from .attention import attention_in_c
from .forward import is_hooked
from .wrappers import has_compiled_blocks

_SCALES = (1e-3, 1.0, 300.0)
"""Lengths of the vectors that a module is tried on; with the first, ε shows."""
_ROWS = 16
"""Vectors of each."""
_ALIKE = 0.999
"""Share of the results that must be the same to the bit; the others may differ by one rounding."""
_TINY = 1e-28
"""Bound below which a value counts as 0: an activation far below 0."""
_CANCELLED = 1e-6
"""What 1 + tanh loses in float32, of a value far below 0: GELU there is 0 in one way and nearly 0 in another."""
_WIDTH = 64
"""Values of a row that a gated activation is tried on."""
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""What models call ε."""
_LINEAR = ("gate_proj", "up_proj", "down_proj")
"""What models call the three matrices of a gated MLP."""
_ROTARY = "apply_rotary_pos_emb"
"""The function of a file of transformers, which its attention calls by this name."""

Forward = Callable[..., Any]


class _Norm(NamedTuple):
    """How a module computes RMSNorm; see `transformer.rms_norm`."""

    epsilon: float
    widely: bool
    plus_one: bool

    def forward(self, module: nn.Module, plain: Forward, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        weight = module.weight.detach()  # type: ignore[operator]
        if type(x) is not Tensor or x.shape[-1:] != weight.shape or torch.is_grad_enabled() or not covers(x, weight):
            return plain(*args, **kwargs)
        return transformer.rms_norm(x, weight, self.epsilon, widely=self.widely, plus_one=self.plus_one)


class _GatedMlp(NamedTuple):
    """How a module computes down(act(gate(x)) · up(x)); see `transformer.gated`."""

    is_gelu: bool

    def forward(self, module: nn.Module, plain: Forward, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or torch.is_grad_enabled() or _is_watched(module.act_fn):
            return plain(*args, **kwargs)
        gate, up = module.gate_proj(*args), module.up_proj(*args)  # type: ignore[operator]
        if not covers(gate, up):
            return module.down_proj(module.act_fn(gate) * up)  # type: ignore[operator]
        out = torch.empty_like(gate) if _is_watched(module.gate_proj) else gate
        return module.down_proj(transformer.gated(gate, up, is_gelu=self.is_gelu, out=out))  # type: ignore[operator]


_WAYS: WeakKeyDictionary[nn.Module, _Norm | _GatedMlp | None] = WeakKeyDictionary()
_FOUND: dict[Hashable, _Norm | _GatedMlp | None] = {}
"""Findings about modules that are alike."""
_SETTINGS = (bool, int, float, str, type(None))
_FILES = Lock()
_USERS: dict[Any, tuple[int, Forward]] = {}
"""Files of transformers whose rotary function is replaced: by how many, and the original."""
_ROTATES: WeakKeyDictionary[Forward, bool] = WeakKeyDictionary()


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Meanwhile such work takes one pass where no gradient is wanted; the model is then as before."""
    first, modules = next(model.parameters(), None), list(model.modules())
    on_cpu = first is not None and first.is_cpu and library() is not None
    if not on_cpu or has_compiled_blocks(model):
        yield
        return
    found = [(module, way) for module in modules if (way := _way_of(module)) is not None]
    files = {file for module in modules if (file := _file_of(module)) is not None} if found else set()
    for module, way in found:
        module.forward = partial(way.forward, module, module.forward)
    for file in files:
        _replace(file)
    try:
        with attention_in_c():
            yield
    finally:
        for module, _ in found:
            del module.forward
        for file in files:
            _restore(file)


def _way_of(module: nn.Module) -> _Norm | _GatedMlp | None:
    """How this module computes, asked once of all alike; None if otherwise, or if its forward is not its class's."""
    if "forward" in vars(module):
        return None
    if isinstance(module._modules.get("down_proj"), nn.Linear):
        find: Callable[[nn.Module], _Norm | _GatedMlp | None] = _mlp_of
    elif "weight" in module._parameters and not module._modules:
        find = _norm_of
    else:
        return None
    if module not in _WAYS:
        if next(module.parameters()).dtype != torch.bfloat16:
            return None  # it may be so later
        key = _alike(module)
        with torch.no_grad():
            _WAYS[module] = _FOUND[key] = _FOUND[key] if key in _FOUND else find(module)
    return _WAYS[module]


def _alike(module: nn.Module) -> Hashable:
    """What modules that compute alike have in common: their classes, settings and shapes. A model has many of each."""
    kinds = tuple((name, type(each), _settings(each)) for name, each in module.named_modules())
    return kinds, tuple((name, p.shape, p.dtype, p.device) for name, p in module.named_parameters())


def _settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Numbers, words and functions that are attributes of a module."""
    own = sorted(vars(module).items())
    return tuple((name, value) for name, value in own if isinstance(value, _SETTINGS) or callable(value))


def _norm_of(module: nn.Module) -> _Norm | None:
    found = module._parameters["weight"]
    epsilon = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if found is None or len(list(module.parameters())) != 1 or found.ndim != 1 or epsilon is None:
        return None
    weight = found.detach()
    if not covers(weight):
        return None
    # Weights of its own hide how they are rounded where they are all 1, or 0.
    x, weight = _noise(len(weight)), 1 + _noise(len(weight))[_ROWS]
    tried = copy.copy(module)
    tried.__dict__["_parameters"] = {"weight": nn.Parameter(weight, requires_grad=False)}
    for widely, plus_one in ((False, False), (True, False), (True, True)):
        if _does(tried, x, transformer.rms_norm(x, weight, epsilon, widely=widely, plus_one=plus_one)):
            return _Norm(epsilon, widely, plus_one)
    return None


def _mlp_of(module: nn.Module) -> _GatedMlp | None:
    linear = [getattr(module, name, None) for name in _LINEAR]
    act = getattr(module, "act_fn", None)
    if any(type(layer) is not nn.Linear or not covers(layer.weight.detach()) for layer in linear) or act is None:
        return None
    gate, up, down = linear
    # What stands between the matrices is tried on values of all sizes, whatever the weights: it may be bounded.
    values = 30 * _noise(2 * _WIDTH)
    given, also = values[:, :_WIDTH].contiguous(), values[:, _WIDTH:].contiguous()
    tried = copy.copy(module)
    own = {"gate_proj": _Given(given), "up_proj": _Given(also), "down_proj": nn.Identity()}
    tried.__dict__["_modules"] = dict(module._modules) | own
    x = _noise(gate.in_features)[::_ROWS]  # type: ignore[union-attr]
    for is_gelu, function in ((False, F.silu), (True, partial(F.gelu, approximate="tanh"))):
        between = transformer.gated(given, also, is_gelu=is_gelu, out=torch.empty_like(given))
        slack = _CANCELLED * (given.float() * also.float()).abs()
        if _does(tried, x, between, slack) and _does(module, x, down(function(gate(x)) * up(x))):  # type: ignore[misc]
            return _GatedMlp(is_gelu)
    return None


class _Given(nn.Module):
    """What returns one value, whatever it reads."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def _does(module: nn.Module, x: Tensor, ours: Tensor, slack: float | Tensor = 0.0) -> bool:
    """Whether the module's class does to x what we do, up to `slack`."""
    try:
        theirs = type(module).forward(module, x)
    except Exception:  # whatever wants more than one tensor
        return False
    if not isinstance(theirs, Tensor) or (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape):
        return False
    wide, other = ours.float(), theirs.float()
    difference = (wide - other).abs() - slack - _TINY
    return bool((difference <= 0).float().mean() >= _ALIKE and (difference <= 2**-7 * other.abs()).all())


def _file_of(module: nn.Module) -> Any:
    """The file of transformers that defines the module, if it has the function that this one computes."""
    file = sys.modules.get(type(module).__module__)
    function = getattr(file, _ROTARY, None)
    if file in _USERS:
        return file
    return file if callable(function) and _is_rotary(function) else None


def _is_rotary(function: Forward) -> bool:
    """Whether the function does what `transformer.rotate` does, asked of it once."""
    if function not in _ROTATES:
        _ROTATES[function] = _rotates(function)
    return _ROTATES[function]


def _rotates(function: Forward) -> bool:
    q, k = _noise(8).view(2, 3, 8, 8).transpose(1, 2), _noise(8).view(2, 3, 8, 8)[:, :, :4].contiguous().transpose(1, 2)
    angles = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    try:
        theirs = function(q, k, cos, sin)
        ours = _rotate(q, cos, sin), _rotate(k, cos, sin)
        return len(theirs) == 2 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    except Exception:  # another signature
        return False


def _rotary(plain: Forward, *args: Any, **kwargs: Any) -> Any:
    """`plain`, by ours where it covers these: q, k, cos and sin, and nothing else, in this order."""
    if len(args) != 4 or kwargs or torch.is_grad_enabled() or not all(type(t) is Tensor for t in args):
        return plain(*args, **kwargs)
    q, k, cos, sin = args
    if not (_is_headed(q, cos) and _is_headed(k, cos) and cos.shape == sin.shape and covers(cos, sin)):
        return plain(q, k, cos, sin)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _is_headed(x: Tensor, cos: Tensor) -> bool:
    """Whether x is (batch, heads, seq, width), seen from (batch, seq, heads, width), and has these angles."""
    if x.ndim != 4 or cos.ndim != 3 or x.shape[-1] % 2:
        return False
    wanted = (x.shape[2], x.shape[3])
    return cos.shape[1:] == wanted and cos.shape[0] in (1, x.shape[0]) and covers(x.transpose(1, 2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = x.shape[-1]
    return transformer.rotate(x.transpose(1, 2), cos.view(-1, width), sin.view(-1, width)).transpose(1, 2)


def _replace(file: Any) -> None:
    with _FILES:
        users, plain = _USERS.get(file, (0, getattr(file, _ROTARY)))
        _USERS[file] = users + 1, plain
        setattr(file, _ROTARY, partial(_rotary, plain))


def _restore(file: Any) -> None:
    with _FILES:
        users, plain = _USERS.pop(file)
        if users > 1:
            _USERS[file] = users - 1, plain
        else:
            setattr(file, _ROTARY, plain)


def _is_watched(module: Any) -> bool:
    """Whether hooks wait for what the module returns."""
    return isinstance(module, nn.Module) and is_hooked(module)


def _noise(d: int) -> Tensor:
    """(48, d) in bf16, of three lengths."""
    noise = torch.randn(len(_SCALES), _ROWS, d, generator=torch.Generator().manual_seed(0))
    return (noise * torch.tensor(_SCALES)[:, None, None]).bfloat16().view(-1, d)

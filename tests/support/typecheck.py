"""The checker of annotations that tests run with: beartype, where an int is a float as PEP 484 has it.

Training calls a thousand functions a step, with the same shapes in each, and checking took more than half of the tests'
time. So a function with arrays is checked where its arguments or its result look as none before them.
"""

import threading
from collections.abc import Callable, Hashable
from functools import cache, wraps
from itertools import islice
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from torch import Tensor

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped, _returned = jaxtyping.jaxtyped, threading.local()
SEVERAL = 16
"""So many elements of a container are looked at; beartype looks at one."""


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """jaxtyping's decorator, for its import hook."""

    def decorate(one: Any) -> Any:
        if isinstance(one, type):
            return _jaxtyped(one, typechecker=typechecker)
        if not any(map(has_shape, getattr(one, "__annotations__", {}).values())):
            return checked(one)
        return once_for_each_look(one, typechecker)

    return decorate


def once_for_each_look(one: Callable[..., Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """`one`, of which jaxtyping checks arguments that it has not seen, and results that such arguments had not yet."""

    @wraps(one)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return _returned.value

    @cache
    def checking(this: Callable[..., Any]) -> Callable[..., Any]:  # at the first call: making it takes milliseconds
        return _jaxtyped(this, typechecker=typechecker)

    seen: dict[Hashable, set[Hashable]] = {}

    @wraps(one)
    def looking(*args: Any, **kwargs: Any) -> Any:
        results = seen.get(given := (look(args), look(kwargs)))
        if results is None:
            result = checking(one)(*args, **kwargs)
            seen[given] = {look(result)}
            return result
        result = one(*args, **kwargs)
        if (found := look(result)) not in results:
            _returned.value = result
            try:
                checking(stand_in)(*args, **kwargs)
            finally:
                del _returned.value  # a thread that waits for work would keep it
            results.add(found)
        return result

    return looking


def look(value: Any) -> Hashable:
    """What an annotation can say of a value: types, a text, and dtype and shape of a tensor."""
    if isinstance(value, Tensor):
        return type(value), value.dtype, value.shape
    if isinstance(value, list | tuple):
        return (type(value), len(value), *map(look, value[:SEVERAL]))
    if isinstance(value, dict):
        return (dict, len(value), *((look(key), look(each)) for key, each in islice(value.items(), SEVERAL)))
    return (str, value) if isinstance(value, str) else type(value)


def has_shape(annotation: Any) -> bool:
    """Whether the annotation has an array in it; a name that is not known yet may have."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return isinstance(annotation, str) or any(map(has_shape, get_args(annotation)))


jaxtyping.jaxtyped = jaxtyped

"""Saved positions in the data. They may come from a stranger, or from another run."""

from typing import Any

from sae.storage.files import short


def count_in(state: dict[str, Any], name: str, most: int = 2**62) -> int:
    """`state[name]`. Raises ValueError unless it is a whole number between 0 and `most`."""
    value = state[name]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(
            f"{name} of a saved place must be a whole number between 0 and {most}, got {short(value)}; "
            "resume with the same data and options"
        )
    return value

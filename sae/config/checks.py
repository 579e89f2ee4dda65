"""Rules that options of every kind keep."""

from typing import Any


def check(name: str, value: Any, holds: bool, rule: str, way_out: str) -> None:
    """Raise ValueError with the rule and the way out unless the option's value keeps it."""
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {value}; {way_out}")


def check_positive(config: object, *names: str) -> None:
    """Raise ValueError unless these options are greater than 0."""
    for name in names:
        value = getattr(config, name)
        check(name, value, value > 0, "greater than 0", f"set --{name} to a positive number")


def several(value: Any) -> list[Any]:
    """The values of an option as a list; one value is a list of one."""
    return value if isinstance(value, list) else [value]

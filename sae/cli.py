"""From a command's arguments to its configuration: one option for each field of a dataclass, errors of one line."""

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

Groups = Mapping[str, Sequence[str]]
"""Headings of --help, and the names of the fields under each, in order."""

Config = TypeVar("Config")


def parse(
    config: type[Config],
    groups: Groups,
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    positional: Sequence[str],
) -> Config:
    """The configuration that the arguments say. A field that is a dataclass itself is filled by its fields' names.

    Raises ValueError, in one line, for an unknown option or a bad value; exits for --help.
    """
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            parsed: Any = tyro.cli(
                _command_line(config, groups, positional),
                args=list(arguments),
                prog=prog,
                description=description,
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_unboxed(message.getvalue(), prog)) from None
    values = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    for name, value in values.items():
        if value == [] and f"--{name}" in arguments:
            raise ValueError(
                f"{name} must be followed by at least one value, got none; leave out --{name} for the default"
            )
    parts = {name: part(**_take(values, part)) for name, part in _nested(config).items()}
    return config(**parts, **values)


def _nested(config: type) -> dict[str, Any]:
    """The fields of a configuration that are configurations themselves, and their types."""
    fields = dataclasses.fields(config)
    return {field.name: field.type for field in fields if dataclasses.is_dataclass(field.type)}


def _take(values: dict[str, Any], config: type) -> dict[str, Any]:
    """Remove from `values` what belongs to `config`, and return it."""
    names = [field.name for field in dataclasses.fields(config)]
    return {name: values.pop(name) for name in names if name in values}


def _command_line(config: type, groups: Groups, positional: Sequence[str]) -> type:
    """A class with one field per heading of --help, whose fields are the options under it."""
    configs = (config, *_nested(config).values())
    fields = {field.name: field for each in configs for field in dataclasses.fields(each)}
    docs = {name: doc for each in configs for name, doc in field_docs(each).items()}
    headings = []
    for heading, names in groups.items():
        members = [(name, _option(fields[name], docs[name], positional), _default(fields[name])) for name in names]
        group = dataclasses.make_dataclass(heading, members)
        headings.append((heading, group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("CommandLine", headings)


def _option(field: dataclasses.Field[Any], doc: str, positional: Sequence[str]) -> Any:
    kind: Any = field.type
    if field.name in positional:
        kind = tyro.conf.Positional[Annotated[kind, tyro.conf.arg(metavar=field.name.upper())]]  # type: ignore[misc]
    return Annotated[kind, tyro.conf.arg(help=doc)]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return dataclasses.field(default_factory=field.default_factory)


def field_docs(config: type) -> dict[str, str]:
    """The string under each field of a dataclass, inherited or its own: its documentation, and its option's help."""
    own = [_own_docs(base) for base in reversed(config.__mro__) if dataclasses.is_dataclass(base)]
    return {name: doc for docs in own for name, doc in docs.items()}


def _own_docs(config: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[before.target.id] = " ".join(str(after.value.value).split())
    return docs


def _unboxed(text: str, prog: str) -> str:
    """The command-line parser's message without its frame, in one line."""
    frame = re.compile(r"[─-╿]+|^[|+]|[|+]$|-{4,}")
    lines = [" ".join(frame.sub(" ", line).split()) for line in text.splitlines()]
    # The first line is the frame's title, the second the message; then come options that were perhaps meant.
    meant = [line for line in lines if line.startswith("--")]
    message = next((line for line in lines[1:] if line), "the options cannot be read")
    # What stands beside an unknown option may be a secret that was meant for a known one.
    if message.startswith("Unrecognized options:") and (unknown := re.findall(r"--?[^\s,=]+", message)):
        message = f"there is no option {', '.join(unknown)}"
    perhaps = f"; perhaps you meant {' or '.join(meant)}" if meant and "no option" in message else ""
    return f"{message}{perhaps}; {prog} --help lists the options"

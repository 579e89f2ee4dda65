"""From a command's arguments to its configuration: one option for each field of a dataclass, errors of one line."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import operator
import os
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

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
    swept: Sequence[str] = (),
) -> Config:
    """The configuration that the arguments say. A field that is a dataclass itself is filled by its fields' names.

    The options `swept` may be followed by several numbers, or several of their choices. The field then holds their
    list. A field of a nested dataclass gives a list of dataclasses with all combinations. Raises ValueError, in one
    line, for an unknown option or a bad value; exits for --help.
    """

    def read(words: Sequence[str]) -> Config:
        return _parse_one(config, groups, words, prog=prog, description=description, positional=positional, swept=swept)

    alone = {name for name, field in _fields(config).items() if _words_after(field.type)}
    arguments = [part for word in arguments for part in _apart(word, alone)]
    _check_commas(arguments, {name for name, field in _fields(config).items() if _takes_several(field)} | set(swept))
    words, several = _first_of_several(arguments, {name: _literals(config, name) for name in swept})
    cfg: Any = read(words)
    values = {
        name: [_value(read([*words[:place], value, *words[place + 1 :]]), name) for value in found]
        for name, (place, found) in several.items()
    }
    for part, kind in _nested(config).items():
        own = {name: values.pop(name) for name in _names(kind) if name in values}
        if own:
            combinations = [dict(zip(own, each, strict=True)) for each in itertools.product(*own.values())]
            values[part] = [dataclasses.replace(getattr(cfg, part), **each) for each in combinations]
    filled: Config = dataclasses.replace(cfg, **values) if values else cfg
    return filled


def typed(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the options among the arguments, also those that were given their default."""
    words = [word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")]
    names = [word.replace("-", "_") for word in words]
    return frozenset([*names, *(name.removeprefix("no_") for name in names)])


def _apart(word: str, alone: Collection[str]) -> list[str]:
    """`--name=value` as the two words that mean the same: what is told about the one is told about the other.

    As it is if its value would then be taken for an option, or need not be the option's, which may stand `alone`.
    """
    name, is_set, value = word.partition("=")
    is_option = value.startswith("-") and not _NUMBER.fullmatch(value)
    is_whole = name.removeprefix("--").replace("-", "_").removeprefix("no_") in alone
    return [word] if not word.startswith("--") or not is_set or is_option or is_whole else [name, value]


def _takes_several(field: dataclasses.Field[Any]) -> bool:
    """Whether an option takes a list of values."""
    return any(get_origin(kind) is list for kind in (field.type, *get_args(field.type)))


def _check_commas(arguments: Sequence[str], lists: Collection[str]) -> None:
    """Raise ValueError for several values of an option that are separated by commas."""
    name, first = "", 0
    for place, word in enumerate(arguments):
        value = word
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            name, first = name.replace("-", "_"), place + 1
        outside = re.sub(r"\[[^\]]*\]", "", value)  # [0,3] is a glob
        if name in lists and "," in outside and not os.path.exists(value):
            given = [value] if word.startswith("--") else [*_values_at(arguments, first)]
            spaced = " ".join(each for one in given for each in re.split(r",(?![^\[]*\])", one) if each)
            one = value.replace(",", "")
            way = f"{spaced} for several, or --{name} {one} for one" if _THOUSANDS.fullmatch(value) else spaced
            raise ValueError(f"the values of {name} must have spaces between them, got {value}; write --{name} {way}")


_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")
"""A whole number as people write it, with a comma before each three digits."""


def _values_at(arguments: Sequence[str], place: int) -> Iterator[str]:
    """The words from a place on, up to the next option."""
    return itertools.takewhile(lambda word: not word.startswith("--"), arguments[place:])


def _first_of_several(
    arguments: Sequence[str], swept: Mapping[str, Sequence[str]]
) -> tuple[list[str], dict[str, tuple[int, list[str]]]]:
    """The arguments with one value after each option, and {option: (place of its value, all its values)}.

    A `swept` option takes numbers and its choices.
    """
    words: list[str] = []
    several: dict[str, tuple[int, list[str]]] = {}
    name, values = "", 0
    for word in arguments:
        is_option = word.startswith("--")
        is_value = bool(_NUMBER.fullmatch(word)) or word in swept.get(name, ())
        values = 0 if is_option else values + 1 if is_value else -len(arguments)
        name = word.removeprefix("--").replace("-", "_") if is_option else name
        if values > 1 and name in swept:
            several.setdefault(name, (len(words) - 1, [words[-1]]))[1].append(word)
        else:
            words.append(word)
    return words, several


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|None", re.IGNORECASE)


def _literals(config: type, name: str) -> tuple[str, ...]:
    """The words that an option chooses among; none if it does not."""
    field = _fields(config).get(name)
    return () if field is None else _words_of(field.type)


def _value(cfg: Any, name: str) -> Any:
    """A field of the configuration, or of one that it holds."""
    holders = [cfg, *(getattr(cfg, part) for part in _nested(type(cfg)))]
    return next(getattr(holder, name) for holder in holders if hasattr(holder, name))


def _parse_one(
    config: type[Config],
    groups: Groups,
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    positional: Sequence[str],
    swept: Collection[str],
) -> Config:
    message = io.StringIO()
    choices = {name: words for name, field in _fields(config).items() if (words := _words_after(field.type))}
    try:
        with contextlib.redirect_stderr(message):
            parsed: Any = tyro.cli(
                _command_line(config, groups, positional),
                args=list(_spelled_out(arguments, choices)),
                prog=prog,
                description=description,
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        told, like = _unboxed(message.getvalue())
        fields = _fields(config)
        unread = [word for word in re.split(r",?\s+", told.removeprefix(_UNREAD)) if word] if _UNREAD in told else []
        meant = _bad_value(told, arguments, fields) or _misplaced(unread, arguments, fields, swept)
        raise ValueError(meant or f"{_unreadable(told, unread, like)}; {prog} --help lists the options") from None
    values = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    alone = {name for name, field in _fields(config).items() if field.metadata.get("alone")}
    for name, value in values.items():
        if value == [] and f"--{name}" in arguments and name not in alone:
            raise ValueError(
                f"{name} must be followed by at least one value, got none; leave out --{name} for the default"
            )
    parts = {name: part(**_take(values, part)) for name, part in _nested(config).items()}
    return config(**parts, **values)


def _words_after(kind: Any) -> tuple[str, ...]:
    """The words that may follow an option that also stands alone: `bool | None`, or a bool or words."""
    members = get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else ()
    if bool not in members:
        return ()
    return ("True", "False", *["None"] * (type(None) in members), *_words_of(kind))


def _spelled_out(arguments: Sequence[str], choices: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The arguments with the value of each option that may stand alone (`choices`): --name and --no_name have one."""
    for word, following in itertools.pairwise([*arguments, ""]):
        name = word.removeprefix("--").replace("-", "_")
        if name.removeprefix("no_") not in choices or not word.startswith("--"):
            yield word
        elif name.startswith("no_"):
            yield from (f"--{name.removeprefix('no_')}", "False")
        else:
            yield word
            if following not in choices[name]:
                yield "True"


def _nested(config: type) -> dict[str, Any]:
    """The fields of a configuration that are configurations themselves, or lists of them, and their types."""
    kinds = {field.name: _scalar(field.type) for field in dataclasses.fields(config)}
    return {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}


def _fields(config: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a configuration and of those that it holds, by name."""
    return {field.name: field for each in (config, *_nested(config).values()) for field in dataclasses.fields(each)}


def _scalar(kind: Any) -> Any:
    """The type of one value, for a field that may be a list of such: `int` for `int | list[int]`."""
    members = get_args(kind) if isinstance(kind, UnionType) else ()
    several = [member for member in members if get_origin(member) is list]
    elements = {element for member in several for each in get_args(member) for element in get_args(each) or (each,)}
    if not elements or not elements <= set(members):
        return kind
    return functools.reduce(operator.or_, [member for member in members if member not in several])


def _names(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _take(values: dict[str, Any], config: type) -> dict[str, Any]:
    """Remove from `values` what belongs to `config`, and return it."""
    return {name: values.pop(name) for name in _names(config) if name in values}


def _command_line(config: type, groups: Groups, positional: Sequence[str]) -> type:
    """A class with one field per heading of --help, whose fields are the options under it."""
    fields = _fields(config)
    docs = {name: doc for each in (config, *_nested(config).values()) for name, doc in field_docs(each).items()}
    headings = []
    for heading, names in groups.items():
        members = [(name, _option(fields[name], docs[name], positional), _default(fields[name])) for name in names]
        group = dataclasses.make_dataclass(heading, members)
        headings.append((heading, group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("CommandLine", headings)


def _option(field: dataclasses.Field[Any], doc: str, positional: Sequence[str]) -> Any:
    kind: Any = _scalar(field.type)
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


@functools.cache  # finding a class in its file takes as long as all the rest of the parsing
def _own_docs(config: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[before.target.id] = " ".join(str(after.value.value).split())
    return docs


_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}
"""What people write behind a number, and what it stands for."""


def _bad_value(told: str, arguments: Sequence[str], fields: Mapping[str, dataclasses.Field[Any]]) -> str:
    """The rule that a value broke and the way out, if that is what the parser told; empty if it is not."""
    if missing := re.match(r"Missing value for argument '--(\w+)'", told):
        return f"{missing[1]} must be followed by a value, got none; leave out --{missing[1]} for the default"
    found = re.match(r"Error parsing --(\w+):|invalid choice .* for argument '--(\w+)'", told)
    field = fields.get(found[1] or found[2]) if found else None
    if field is None:
        return ""
    words, rule = _words_of(field.type), _rule_of(field)
    places = [place for place, word in enumerate(arguments) if word.replace("-", "_") == f"__{field.name}"]
    given = _values_at(arguments, places[-1] + 1) if places else re.findall(r"invalid choice '([^']*)'", told)
    bad = [" ".join(value.split()) for value in given if value not in words and not re.fullmatch(r"[-+]?\d+", value)]
    return _told_bad(field.name, rule, bad[0]) if bad and rule else ""


def _rule_of(field: dataclasses.Field[Any]) -> str:
    """What a value of an option that takes words or numbers must be; empty for others."""
    scalar, words = _scalar(field.type), _words_of(field.type)
    kinds = {scalar, *get_args(scalar)} | {each for kind in get_args(field.type) for each in get_args(kind)}
    if not words and not kinds & {int, float}:
        return ""
    *others, last = words or ("a number" if float in kinds else "a whole number",)
    return f"{', '.join(others)} or {last}" if others else last


def _told_bad(name: str, rule: str, value: str) -> str:
    return f"{name} must be {rule}, got {_shown(value)}; {_written_out(value, name) or 'choose another'}"


def _misplaced(
    unread: Sequence[str],
    arguments: Sequence[str],
    fields: Mapping[str, dataclasses.Field[Any]],
    swept: Collection[str],
) -> str:
    """What an option takes that stands before the first `unread` word; empty if none does, or an option is unknown."""
    place = next((place for place, word in enumerate(arguments) if word in unread), 0)
    options = [before for before in range(place) if arguments[before].startswith("--")]
    name = arguments[options[-1]].removeprefix("--").replace("-", "_") if options else ""
    field, word = fields.get(name), arguments[place] if arguments else ""
    if field is None or _unknown(unread) or word != _shown(word):
        return ""
    values, rule = arguments[options[-1] + 1 : place], _rule_of(field)
    if bool in (field.type, *get_args(field.type)):
        if values or rule:
            return "" if values else _told_bad(name, rule, word)
        way = f"--no_{name}" if word.lower() in ("false", "no", "off", "0") else f"--{name} alone, or --no_{name}"
        return f"{name} takes no value, got {word}; write {way}"
    if name in swept and rule and all(_NUMBER.fullmatch(each) or each in _words_of(field.type) for each in values):
        return _told_bad(name, rule, word)
    return f"{name} takes one value, got {values[0]} and {word}; leave out one" if len(values) == 1 else ""


def _shown(value: str) -> str:
    """A value for a message; one that looks like a token of the hub is not told."""
    return "hf_…" if value.startswith("hf_") else value or "nothing"


def _written_out(value: str, name: str) -> str:
    """The way out for a whole number with a suffix, or in powers of ten."""
    if _THOUSANDS.fullmatch(value):
        return f"write --{name} {value.replace(',', '')}"
    if re.fullmatch(r"\d+,\d+", value):
        return f"write --{name} {value.replace(',', '.')}"
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(?:e(\d|1[0-2])|([kmb]))", value, re.IGNORECASE)
    if not parts:
        return ""
    number = Decimal(parts[1]) * (10 ** int(parts[2]) if parts[2] else _SUFFIXES[parts[3].lower()])
    return f"write --{name} {int(number)}" if number == int(number) else ""


def _words_of(kind: Any) -> tuple[str, ...]:
    """The words that an option chooses among, also as one of several types."""
    literals = [each for each in (kind, *get_args(kind)) if get_origin(each) is Literal]
    return tuple(word for each in literals for word in get_args(each))


_UNREAD = "Unrecognized options:"
"""How the command-line parser's message about words begins that it cannot place."""


def _unboxed(text: str) -> tuple[str, list[str]]:
    """The command-line parser's message without its frame, in one line, and the options that were perhaps meant."""
    frame = re.compile(r"[─-╿]+|^[|+]|[|+]$|-{4,}")
    without_colours = re.sub(r"\x1b\[[\d;]*m", "", text)
    lines = [" ".join(frame.sub(" ", line).split()) for line in without_colours.splitlines()]
    # The first line is the frame's title, then come the message, a rule, and options that were perhaps meant.
    told = list(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines[1:])))
    like = [line for line in lines if line.startswith("--") and line not in told]
    return " ".join(told) or "the options cannot be read", like


def _unknown(unread: Sequence[str]) -> list[str]:
    """The options among words that the command-line parser cannot place."""
    return [word.partition("=")[0] for word in unread if word.startswith("-")]


def _unreadable(told: str, unread: Sequence[str], like: Sequence[str]) -> str:
    """The sentence on words that the command-line parser cannot place, else what it told itself."""
    if unknown := _unknown(unread):  # what stands beside one may be a secret that was meant for a known option
        message = f"there is no option {', '.join(unknown)}"
        meant = [line for line in like if line.startswith(tuple(unknown))] or like  # --layer is rather --layers
        return f"{message}; perhaps you meant {' or '.join(meant)}" if meant else message
    if unread:
        return f"there is no place for {', '.join(map(_shown, unread))}: what stands before takes no more words"
    return told

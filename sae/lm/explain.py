"""What went wrong with a model, in one line for the person who named it."""

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sae.storage.files import near_here


class Access(NamedTuple):
    """Which model, and how the Hub is asked for it. The token is never part of a message."""

    name: str
    revision: str | None = None
    token: str | None = None


# What a library's error means, by the exception's class or a piece of its text. The first that fits is told.
EXPLANATIONS = {
    "GatedRepoError": "is gated; accept its terms at https://huggingface.co/{name}, then pass --hf_token",
    "RevisionNotFoundError": "has no revision {revision}; look at its branches on the Hub, or leave --revision out",
    "RepositoryNotFoundError": "does not exist on the Hub, or is private; check the spelling, or pass --hf_token{near}",
    "HFValidationError": "must be a hub id (owner/name), a local folder or a .gguf file; check the spelling{near}",
    "OfflineModeIsEnabled": "cannot be reached offline; {offline}{near}",
    "LocalEntryNotFoundError": "cannot be reached; {offline}{near}",
    "custom code": "must run on transformers' own code, and asks to execute code that comes with it, which sae never "
    "does; use a model that transformers knows",
    "does not recognize this architecture": "has an architecture that must be known to the installed transformers, "
    "and is not ({text}); pip install -U transformers",
    "RemoteEntryNotFoundError": "is not a transformers model ({text}); use a repository with a config.json and weights",
    "Should have a `model_type`": "is no language model: its config.json names no model_type; give the folder of one, "
    "or a hub id",
    "config.json": "must have a readable config.json ({text}); download it again",
    "SafetensorError": "has a damaged weights file ({text}); download it again",
    "ignore_mismatched_sizes": "has weights of other shapes than its config says; use those that belong to it",
    "file named": "has no weights ({text}); use a folder with model.safetensors",
}


@contextmanager
def model_errors_explained(access: Access, otherwise: str = "cannot be loaded: {text}") -> Iterator[None]:
    """Turn whatever a library raises into a ValueError of one line about the model; `otherwise` when in doubt."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"model {access.name} {_reason(access, error, otherwise)}") from error


def one_line(error: BaseException, token: str | None = None) -> str:
    """A library's message on one line, cut to about 200 characters, without the token."""
    text = _words(error)
    if token:
        text = text.replace(token, "***")
    return textwrap.shorten(text, 200, placeholder=" …")


def _words(error: BaseException) -> str:
    """What an error says, for those that say it to programmers alone."""
    if any(isinstance(each, UnicodeDecodeError) for each in _chain(error)):
        return "a text in it is not UTF-8"
    if isinstance(error, KeyError):
        return f"{error} is not in it"
    return str(error).rstrip(".") or type(error).__name__


def _reason(access: Access, error: BaseException, otherwise: str) -> str:
    chain = list(_chain(error))
    classes = {cls.__name__ for each in chain for cls in type(each).__mro__}
    messages = " ".join(map(str, chain))
    text = one_line(error, access.token)
    fitting = (meaning for sign, meaning in EXPLANATIONS.items() if sign in classes or sign in messages)
    meaning = next(fitting, otherwise)
    told = {"text": text, "offline": _offline(), "near": near_here(access.name)}
    return meaning.format(name=access.name, revision=access.revision, **told)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _offline() -> str:
    """What to do when the Hub does not answer: the user switched it off, or the network is away."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set (offline) and the local cache does not hold it; unset it, or give a local folder"
    return "huggingface.co does not answer (offline?) and the local cache does not hold it; give a local folder"

"""What an index says of a latent: lists of these are tables."""

from typing import NamedTuple


class Context(NamedTuple):
    """A passage around a token on which a latent fires."""

    activation: float
    """On the token in question."""
    token: str
    text: str
    """The passage, as one text."""
    tokens: list[str]
    activations: list[float]
    """The latent's activation on each of the tokens; 0 where it does not fire."""
    peak: int
    """Index, in `tokens`, of the token in question."""
    position: int
    """Position of that token in the index: sequence · ctx_len + position in the sequence."""
    sequence: int
    ids: list[int]


class TokenShare(NamedTuple):
    """A token that a latent fires on, and which share of its events stands there, or its mean activation there."""

    token: str
    value: float
    id: int


class Logit(NamedTuple):
    """A token, and what an activation of 1 adds to its logit, up to the final norm's factor."""

    token: str
    logit: float
    id: int


class Neighbour(NamedTuple):
    """A latent whose decoder row points the same way."""

    place: str
    latent: int
    cosine: float


class Active(NamedTuple):
    """A latent that fires on a token."""

    latent: int
    activation: float


class Match(NamedTuple):
    """A latent that fires where a text stands."""

    latent: int
    score: float
    """Its activation there, as a share of its maximum, in the mean over the places where the text stands."""
    hits: int
    """Tokens of the text on which it fires."""

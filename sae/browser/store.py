"""An index, opened: which latents there are, what each fires on, and what goes with it. Needs numpy alone.

`Index.open("checkpoints/my-run")["layers.6"][1234]` is a latent. Lists are of named tuples: `pandas.DataFrame(list)`
makes a table of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sae.storage.files import MANIFEST

from .findings import Active, Context, Logit, Match, Neighbour, TokenShare
from .layout import (
    COLUMNS,
    NONE,
    RELATIVE_NORMS,
    TOP,
    CheckedFile,
    DamagedError,
    Header,
    PlaceHeader,
    place_files,
    read_manifest,
    read_vocabulary,
)
from .search import JoinedText, best_matches
from .statistics import Corpus, Events, top_of
from .together import ENOUGH, TOKENS, Coactive, Sample, coactive

RARE, DENSE, SINGLE = 1e-4, 0.1, 0.8
"""Shares of the tokens below which a latent is rare, and from which it is dense. SINGLE: share of its events on one
token that makes it a latent of that token."""
BEFORE, AFTER = 24, 12
"""Tokens that are shown around the strongest one of a context."""
FLAGS = ("dead", "massive only", "rare", "dense", "single token", "first token")
SECOND_MODEL = "b:"
"""Beginning of a hookpoint's name in the second of two models."""
_EVENTS_AT_ONCE = 2**22


class Index:
    """Findings of one pass of a language model over some tokens. `Index.open` opens one."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        self.ctx_len = header.ctx_len
        self._tokens, self._counted = self._file("tokens.u32"), self._file("counted.u8")
        self.num_tokens = len(self._tokens)
        if self.num_tokens != header.sequences * header.ctx_len or len(self._counted) != self.num_tokens:
            raise DamagedError(f"{folder} is damaged: its files are of another number of tokens than it says")
        self.places = {name: Place(self, name, at, place) for at, (name, place) in enumerate(header.places.items())}

    @classmethod
    def open(cls, folder: Path | str) -> "Index":
        """Open an index, or the newest one of a run.

        Args:
            folder: Folder of an index, or of a run.

        Returns:
            The index; files are read when they are needed.

        Raises:
            ValueError: If there is none, or naming what is damaged.
        """
        return cls(path := find_index(Path(folder)), read_manifest(path))

    def __getitem__(self, name: str) -> "Place":
        """The dictionary of that name, mostly its hookpoint. Raises KeyError for one that was not indexed."""
        if name not in self.places:
            raise KeyError(f"{name} was not indexed; what was: {', '.join(self.places)}")
        return self.places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def check_latents(self, latents: Iterable[int]) -> None:
        """Refuse numbers of latents that no place has.

        Args:
            latents: Numbers of latents.

        Raises:
            ValueError: Names the first that is too large.
        """
        largest = max(place.num_latents for place in self.places.values())
        if wrong := [latent for latent in latents if latent >= largest]:
            raise ValueError(f"latents must be below {largest}, got {wrong[0]}; leave --latents out for all")

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token."""
        return read_vocabulary(self.folder, self.header.vocabulary)

    def token(self, token: int) -> str:
        """The text of a token.

        Args:
            token: Token id.

        Returns:
            Its text; ⟨id⟩ for one outside the vocabulary.
        """
        return self.vocabulary[token] if 0 <= token < len(self.vocabulary) else f"⟨{token}⟩"

    @property
    def tokens(self) -> np.ndarray:
        """All token ids."""
        return self._tokens.read()

    @property
    def counted(self) -> np.ndarray:
        """1 for each token that counts, 0 for an excluded one."""
        return self._counted.read()

    def window(self, position: int, before: int, after: int) -> tuple[int, np.ndarray]:
        """Tokens around one token, within its sequence.

        Args:
            position: Position of the token in the index.
            before: Tokens before it, at most.
            after: Tokens after it, at most.

        Returns:
            Position of the first token, and the ids of all.
        """
        first = position - position % self.ctx_len
        start, stop = max(first, position - before), min(first + self.ctx_len, position + after + 1)
        return start, self._tokens.read(start, stop)

    def positions_of(self, text: str) -> np.ndarray:
        """Positions of the tokens where a text stands, upper and lower case alike.

        Args:
            text: Text to look for.

        Returns:
            Positions (n,) of the first few thousand places.
        """
        return self._text.positions_of(text)

    @cached_property
    def _text(self) -> JoinedText:
        return JoinedText(self.tokens, self.vocabulary)

    def _file(self, name: str) -> CheckedFile:
        return CheckedFile(self.folder / name, self.header.files.get(name, -1))


def find_index(folder: Path) -> Path:
    """The index `folder`, or the newest one below `folder`/browse. Raises ValueError if there is none."""
    if (folder / MANIFEST).is_file() and (folder / "places").is_dir():
        return folder
    found = [path.parent for path in (folder / "browse").glob(f"*/{MANIFEST}")]
    if not found:
        raise ValueError(f"{folder} must hold an index, but has none; make it with sae browse {folder}")
    return max(found, key=lambda path: (path / MANIFEST).stat().st_mtime_ns)


class Place:
    """One dictionary at one hookpoint. `place[1234]` is a latent, `place.column("max")` a number of each."""

    def __init__(self, index: Index, name: str, at: int, header: PlaceHeader) -> None:
        self.index, self.name, self.header = index, name, header
        self.hookpoint, self.num_latents, self.events = header.hookpoint, header.num_latents, header.events
        files = place_files(at, bool(header.ends))
        self._files = {what: index._file(path) for what, path in files.items()}
        sizes = {"starts": self.num_latents + 1, "positions": self.events, "values": self.events,
                 "massive": index.num_tokens, "decoder": self.num_latents * header.d}  # fmt: skip
        sizes |= {what: self.num_latents * width for what, (_, width) in COLUMNS.items()}
        sizes |= {RELATIVE_NORMS: self.num_latents * len(header.ends)} if header.ends else {}
        for what, size in sizes.items():
            if len(self._files[what]) != size:
                raise DamagedError(f"{files[what]} of {index.folder} must hold {size} numbers; it is damaged")

    def __len__(self) -> int:
        return self.num_latents

    def __getitem__(self, latent: int) -> "Latent":
        """A latent by its number. Raises IndexError if there is none of that number."""
        if not 0 <= latent < self.num_latents:
            raise IndexError(f"a latent of {self.name} must be between 0 and {self.num_latents - 1}, got {latent}")
        return Latent(self, int(latent))

    def __iter__(self) -> Iterator["Latent"]:
        return (Latent(self, latent) for latent in range(self.num_latents))

    def column(self, name: str) -> np.ndarray:
        """A number of each latent.

        Args:
            name: One of `layout.COLUMNS`, such as `max`.

        Returns:
            Values (num_latents,), or (num_latents, width) where each latent has several.
        """
        values = self._files[name].read()
        return values if COLUMNS[name][1] == 1 else values.reshape(self.num_latents, -1)

    @property
    def relative_norms(self) -> np.ndarray:
        """(num_latents, hookpoints): the share of each hookpoint that is written in the norms of a latent's rows.

        The hookpoints are `header.ends`: of a crosscoder, or of a layer of a cross-layer transcoder. None elsewhere.
        """
        ends = len(self.header.ends)
        return self._files[RELATIVE_NORMS].read().reshape(-1, ends) if ends else np.empty((self.num_latents, 0))

    @property
    def last_share(self) -> np.ndarray:
        """(num_latents,): the last hookpoint's share in the norms, or that of the second of two models; else NaN."""
        ends = self.header.ends
        if not ends:
            return np.full(self.num_latents, np.nan, np.float32)
        of_b = [at for at, end in enumerate(ends) if end.startswith(SECOND_MODEL)]
        found: np.ndarray = self.relative_norms[:, of_b or [-1]].sum(1)
        return found

    @cached_property
    def num_ordinary(self) -> int:
        """Tokens that count and are not massive here: the base of a density."""
        return int(((self.index.counted > 0) & (self.massive == 0)).sum())

    @property
    def massive(self) -> np.ndarray:
        """1 for each token that is massive here, such as an attention sink; 0 for the others."""
        return self._files["massive"].read()

    @cached_property
    def density(self) -> np.ndarray:
        """Share of the tokens on which each latent fires."""
        return (self.column("count") / max(1, self.num_ordinary)).astype(np.float32)

    @cached_property
    def flags(self) -> np.ndarray:
        """Which of FLAGS fit each latent, a bit each."""
        count, massive, density = self.column("count"), self.column("massive_count"), self.density
        fired = count > 0
        facts = [
            (count + massive) == 0,
            ~fired & (massive > 0),
            fired & (density < RARE),
            density >= DENSE,
            fired & (self.column("shares")[:, 0] >= SINGLE),
            fired & (self.column("last") == 0),
        ]
        bits = [fact.astype(np.uint8) << np.uint8(bit) for bit, fact in enumerate(facts)]
        found: np.ndarray = np.bitwise_or.reduce(bits)
        return found

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the events of each latent begin, and the last ones end."""
        starts = self._files["starts"].read()
        if starts[0] != 0 or starts[-1] != self.events or (np.diff(starts) < 0).any():
            raise DamagedError(f"the events of {self.name} in {self.index.folder} are damaged")
        return starts

    def slice(self, latent: int) -> Events:
        """All events of a latent, those on massive tokens too.

        Args:
            latent: Its number.

        Returns:
            Positions of the tokens, and the stored values there.

        Raises:
            DamagedError: For a damaged file.
        """
        start, stop = self.starts[latent : latent + 2].tolist()
        positions = self._files["positions"].read(start, stop)
        if stop > start and int(positions.max()) >= self.index.num_tokens:
            raise DamagedError(f"the events of {self.name} in {self.index.folder} are damaged")
        return Events(np.array([stop - start]), positions, self._files["values"].read(start, stop))

    def direction(self, latent: int) -> np.ndarray:
        """The latent's row of W_dec.

        Args:
            latent: Its number.

        Returns:
            The row (d,), of unit length, float32.
        """
        d = self.header.d
        return self._files["decoder"].read(latent * d, (latent + 1) * d).astype(np.float32)

    def directions(self) -> np.ndarray:
        """(num_latents, d): rows of W_dec of unit length, float16, not copied."""
        return self._files["decoder"].read().reshape(self.num_latents, -1)

    def where_active(self, marked: np.ndarray) -> np.ndarray:
        """Which events stand on a marked token.

        Args:
            marked: A bool for each token of the index.

        Returns:
            Numbers of the events.
        """
        return np.concatenate(
            [
                np.flatnonzero(marked[self._files["positions"].read(at, min(self.events, at + _EVENTS_AT_ONCE))]) + at
                for at in range(0, self.events, _EVENTS_AT_ONCE)
            ]
            or [np.empty(0, np.int64)]
        )

    @cached_property
    def first_tokens(self) -> Sample:
        """The events on the first `together.TOKENS` tokens."""
        return self._sample(min(TOKENS, self.index.num_tokens))

    @cached_property
    def all_tokens(self) -> Sample:
        """All events."""
        whole = self.first_tokens
        return whole if len(whole.ordinary) == self.index.num_tokens else self._sample(self.index.num_tokens)

    def _sample(self, tokens: int) -> Sample:
        ordinary = (self.index.counted[:tokens] > 0) & (self.massive[:tokens] == 0)
        return Sample(self._files["positions"].read(), self.starts, ordinary)

    def active_at(self, position: int) -> list[Active]:
        """The latents that fire on one token.

        Args:
            position: Position of the token in the index.

        Returns:
            Latents and activations, the strongest first.
        """
        marked = np.zeros(self.index.num_tokens, np.bool_)
        marked[position] = True
        events = self.where_active(marked)
        latents = np.searchsorted(self.starts, events, "right") - 1
        values = self._files["values"].read()[events].astype(np.float32) * self.header.scale
        order = np.argsort(-values, kind="stable")
        return [Active(int(latents[at]), float(values[at])) for at in order]

    def search(self, text: str, number: int = 50) -> list[Match]:
        """The latents that fire most strongly where a text stands in the index.

        Args:
            text: Text to look for.
            number: Latents to return, at most.

        Returns:
            Latents with their score and the tokens of the text on which they fire, best first.
        """
        tokens = self.index.positions_of(text)
        if not tokens.size:
            return []
        marked = np.zeros(self.index.num_tokens, np.bool_)
        marked[tokens] = True
        marked &= self.massive == 0
        events = self.where_active(marked)
        latents = np.searchsorted(self.starts, events, "right") - 1
        values = self._files["values"].read()[events].astype(np.float64) * self.header.scale
        return best_matches(latents, values, self.column("max"), int(marked.sum()), number)

    @property
    def corpus(self) -> Corpus:
        """The tokens behind the statistics; occurrences are left out."""
        return Corpus(self.index.tokens, self.index.ctx_len, np.empty(0, np.int64))

    def _repr_html_(self) -> str:
        from .card import place_card

        return place_card(self)


class Latent:
    """One latent: numbers about it, and lists of what it fires on."""

    def __init__(self, place: Place, index: int) -> None:
        self.place, self.index = place, index

    def _number(self, column: str) -> float:
        return float(self.place.column(column)[self.index])

    @property
    def count(self) -> int:
        """Tokens on which it fires, the massive ones left out."""
        return int(self._number("count"))

    @property
    def massive_count(self) -> int:
        """Massive tokens, such as attention sinks, on which it fires. No list and no other number is about them."""
        return int(self._number("massive_count"))

    @property
    def density(self) -> float:
        """Share of the tokens on which it fires."""
        return float(self.place.density[self.index])

    @property
    def max(self) -> float:
        """Its largest activation; 0 if it never fires."""
        return self._number("max")

    @property
    def mean(self) -> float:
        """Its mean activation over the tokens on which it fires."""
        return self._number("mean")

    @property
    def positions(self) -> tuple[int, int] | None:
        """The first and the last position in a sequence at which it fires."""
        return (int(self._number("first")), int(self._number("last"))) if self.count else None

    @property
    def alignment(self) -> float:
        """The cosine of its encoder and decoder rows; NaN where they are of different spaces."""
        return self._number("alignment")

    @property
    def relative_norms(self) -> dict[str, float]:
        """Where it writes: {hookpoint: its share in the norms of the latent's rows}; empty for a single hookpoint."""
        shares = self.place.relative_norms[self.index].tolist()
        return dict(zip(self.place.header.ends, shares, strict=True))

    @property
    def contexts(self) -> int:
        """Number of passages of 64 tokens in which it fires."""
        return int(self._number("contexts"))

    @property
    def flags(self) -> list[str]:
        """Oddities of the latent: some of `FLAGS`."""
        bits = int(self.place.flags[self.index])
        return [name for bit, name in enumerate(FLAGS) if bits >> bit & 1]

    @property
    def histogram(self) -> np.ndarray:
        """How many activations lie in each equal part of the range from 0 to `max`."""
        found: np.ndarray = self.place.column("histogram")[self.index]
        return found.astype(np.int64)

    @property
    def edges(self) -> np.ndarray:
        """The activations that part the fifths of its contexts, from the largest to the least."""
        found: np.ndarray = self.place.column("edges")[self.index]
        return found

    def activations(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions of all tokens on which it fires, massive ones too, and its activations there."""
        events = self.place.slice(self.index)
        return events.positions.astype(np.int64), events.values.astype(np.float32) * self.place.header.scale

    def top_contexts(self, number: int = 10, *, before: int = BEFORE, after: int = AFTER) -> list[Context]:
        """Passages with its largest activations, one context a passage; repeated passages are there once.

        Args:
            number: Passages, at most.
            before: Tokens before the strongest one, at most.
            after: Tokens after it, at most.

        Returns:
            Contexts, the strongest first.
        """
        found = self.place.column("top")[self.index]
        if number > TOP:
            events = self.place.slice(self.index)
            events = events.only(self.place.massive[events.positions] == 0)
            found = top_of(events, self.place.corpus, number)
        return [self.context(int(at), before, after) for at in found[found != NONE][:number]]

    def fifths(self, number: int = 5, *, before: int = BEFORE, after: int = AFTER) -> list[list[Context]]:
        """Passages from each fifth of its contexts by activation.

        Args:
            number: Passages of a fifth, at most.
            before: Tokens before the strongest one, at most.
            after: Tokens after it, at most.

        Returns:
            Contexts of each fifth, the strongest fifth first.
        """
        rows = self.place.column("fifths")[self.index].reshape(5, -1)[:, :number]
        return [[self.context(int(at), before, after) for at in row[row != NONE]] for row in rows]

    def context(self, position: int, before: int = BEFORE, after: int = AFTER) -> Context:
        """The passage around a token.

        Args:
            position: Position of the token in the index.
            before: Tokens before it, at most.
            after: Tokens after it, at most.

        Returns:
            Context with the latent's activation on each token.
        """
        start, ids = self.place.index.window(position, before, after)
        activations = self.activations_at(start, len(ids))
        tokens = [self.place.index.token(int(token)) for token in ids]
        peak = position - start
        return Context(
            float(activations[peak]), tokens[peak], "".join(tokens), tokens, activations.tolist(), peak, position,
            position // self.place.index.ctx_len, ids.tolist(),
        )  # fmt: skip

    def activations_at(self, start: int, number: int) -> np.ndarray:
        """Its activations on neighbouring tokens.

        Args:
            start: Position of the first token in the index.
            number: Tokens.

        Returns:
            Activations (number,), 0 where it does not fire.
        """
        positions, values = self._events
        low, high = np.searchsorted(positions, [start, start + number])
        found = np.zeros(number, np.float32)
        found[positions[low:high].astype(np.int64) - start] = values[low:high].astype(np.float32)
        return found * np.float32(self.place.header.scale)

    @cached_property
    def _events(self) -> tuple[np.ndarray, np.ndarray]:
        events = self.place.slice(self.index)
        return events.positions, events.values

    def fires_on(self, *, by: str = "share") -> list[TokenShare]:
        """Tokens that it fires on.

        Args:
            by: `share` of its events there, or its `mean` activation there.

        Returns:
            Tokens, the largest first.
        """
        ids, values = {"share": ("share_tokens", "shares"), "mean": ("mean_tokens", "means")}[by]
        return [TokenShare(*each) for each in self._tokens(ids, values)]

    @property
    def promotes(self) -> list[Logit]:
        """The tokens whose logits it raises most."""
        return [Logit(*each) for each in self._tokens("up_tokens", "up_logits")]

    @property
    def suppresses(self) -> list[Logit]:
        """The tokens whose logits it lowers most."""
        return [Logit(*each) for each in self._tokens("down_tokens", "down_logits")]

    @property
    def logit_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens' logits it moves by how much: the counts of equal bins, and their edges.

        All counts are 0 where the index has no effects on the logits.
        """
        counts: np.ndarray = self.place.column("logit_histogram")[self.index].astype(np.int64)
        low, high = self.place.column("logit_range")[self.index].tolist()
        return counts, np.linspace(low, high, len(counts) + 1)

    def _tokens(self, ids: str, values: str) -> list[tuple[str, float, int]]:
        found = zip(self.place.column(ids)[self.index], self.place.column(values)[self.index], strict=True)
        return [
            (self.place.index.token(int(token)), float(value), int(token)) for token, value in found if token != NONE
        ]

    def neighbours(self, number: int = 10, *, across: bool = True) -> list[Neighbour]:
        """The latents whose decoder rows have the largest cosine with its own.

        Args:
            number: Latents, at most.
            across: Whether all places of that width are searched, or this one alone.

        Returns:
            Latents with their place and cosine, the nearest first.
        """
        own = self.place.direction(self.index)
        found: list[Neighbour] = []
        for place in self.place.index.places.values() if across else [self.place]:
            if place.header.d == len(own):
                found += [Neighbour(place.name, *each) for each in _nearest(place, own, number + 1)]
        others = [each for each in found if (each.place, each.latent) != (self.place.name, self.index)]
        return sorted(others, key=lambda each: -each.cosine)[:number]

    def coactive(self, number: int = 10) -> list[Coactive]:
        """The latents whose firing correlates most with its own.

        Args:
            number: Latents, at most.

        Returns:
            Latents, the largest correlation first.
        """
        return list(_coactive(self.place, self.index))[:number]

    def to_dict(self) -> Mapping[str, Any]:
        """The numbers about the latent, by name."""
        first, last = self.positions or (None, None)
        return {
            "place": self.place.name, "latent": self.index, "density": self.density, "max": self.max,
            "mean": self.mean, "count": self.count, "massive_count": self.massive_count, "contexts": self.contexts,
            "first": first, "last": last, "alignment": self.alignment, "flags": self.flags,
        }  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"<latent {self.index} of {self.place.name}: fires on {self.density:.3%} of the tokens, max {self.max:.4g}>"
        )

    def _repr_html_(self) -> str:
        from .card import latent_card

        return latent_card(self)


def _nearest(place: Place, own: np.ndarray, number: int) -> list[tuple[int, float]]:
    rows = place.directions()
    cosines = np.concatenate([part.astype(np.float32) @ own for part in _split(rows)])
    best = np.argpartition(-cosines, min(number, len(cosines)) - 1)[:number]
    return [(int(latent), float(cosines[latent])) for latent in best]


def _split(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[at : at + 4096] for at in range(0, len(rows), 4096))


@lru_cache(256)
def _coactive(place: Place, latent: int) -> tuple[Coactive, ...]:
    """The fifty latents whose firing correlates most."""
    positions, sample = place.slice(latent).positions, place.first_tokens
    if sample.counts[latent] < ENOUGH:
        sample = place.all_tokens
    return tuple(coactive(sample, positions, latent, 50))

"""Text to index and its activations: from a language model, or from a cache that `sae cache` wrote."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from sae import lm
from sae.activations.cache.format import HELD_OUT, TRAIN
from sae.activations.cache.read import ActivationCache, CachedRows
from sae.activations.first import first_activations
from sae.activations.source import Activations, CountedTokens, check_finite, counted


class Part(NamedTuple):
    """Some sequences."""

    tokens: Int64[Tensor, "batch seq"]
    counted: Bool[Tensor, "batch seq"]
    """Which tokens are not excluded."""
    read: Callable[[], Activations]
    """The activations of the tokens that count, {hookpoint: (tokens, d)}."""


@runtime_checkable
class Text(Protocol):
    """Sequences of tokens, the same as often as they are asked for, and their activations at some hookpoints."""

    @property
    def ctx_len(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of a part, the last one apart."""

    def widths(self, hookpoints: Sequence[str]) -> dict[str, int]:
        """{hookpoint: d}. Raises ValueError for one that cannot be read."""

    def parts(self, hookpoints: Sequence[str]) -> Iterator[Part]:
        """All sequences, some after the other. Nothing is read of the hookpoints before it is asked for."""

    def first(self, hookpoints: Sequence[str], tokens: int) -> Activations:
        """Activations (tokens, d), float32, of the first sequences with at least so many tokens that count."""


@runtime_checkable
class Sample(Protocol):
    """Token ids in batches (batch, ctx_len), the same as often as they are asked for."""

    @property
    def ctx_len(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]: ...


class LiveText:
    """Text that a language model reads."""

    def __init__(
        self,
        model: nn.Module,
        sample: Sample,
        *,
        exclude_tokens: Sequence[int] = (),
        exclude_positions: Sequence[int] = (),
    ) -> None:
        self._model, self._sample = model, sample
        self._excluded = (exclude_tokens, exclude_positions)
        self.ctx_len, self.num_tokens = sample.ctx_len, sample.num_tokens
        self.batch_tokens = next((batch.numel() for batch in sample), 0)

    def widths(self, hookpoints: Sequence[str]) -> dict[str, int]:
        return dict(lm.widths(self._model, list(hookpoints), self.ctx_len))

    def parts(self, hookpoints: Sequence[str]) -> Iterator[Part]:
        for tokens, kept in self._counting():
            yield Part(tokens, kept, partial(self._read, list(hookpoints), tokens, kept))

    def first(self, hookpoints: Sequence[str], tokens: int) -> Activations:
        return first_activations(self._model, hookpoints, self._counting(), tokens)

    def _counting(self) -> Iterator[CountedTokens]:
        return ((batch, counted(batch, *self._excluded)) for batch in self._sample)

    def _read(self, hookpoints: list[str], tokens: Tensor, kept: Tensor) -> Activations:
        seen = lm.harvest(self._model, tokens, hookpoints)
        check_finite(seen, "the tokens to index")
        return {name: acts[kept.to(acts.device)] for name, acts in seen.items()}


class CachedText:
    """Text of a cache: its held-out sequences first, then those to train on, in the order of a live run."""

    def __init__(
        self,
        cache: ActivationCache,
        max_tokens: int,
        batch_size: int,
        *,
        spelled: Callable[[str], str] = lambda hookpoint: hookpoint,
    ) -> None:
        """Open the text of a cache.

        Args:
            cache: Cache of activations.
            max_tokens: Tokens to read, at most, but at least a sequence.
            batch_size: Sequences that are read at a time.
            spelled: The cache's name of a hookpoint.

        Raises:
            ValueError: For a cache that does not say which tokens it holds.
        """
        self._cache, self._batch_size, self.ctx_len = cache, batch_size, cache.header.ctx_len
        self._spelled = spelled
        train = cache.tokens(TRAIN)
        if train is None and cache.num_tokens:
            raise ValueError(
                f"activations must name a cache that holds its tokens, but an older sae wrote {cache.folder}; "
                "write it again with sae cache"
            )
        held_out = cache.held_out_tokens()
        sequences = max(1, max_tokens // self.ctx_len)
        self._sections = {HELD_OUT: held_out[:sequences]}
        if train is not None:
            self._sections[TRAIN] = train[: max(0, sequences - len(held_out))]
        self.num_tokens = sum(tokens.numel() for tokens in self._sections.values())
        self.batch_tokens = min(self.num_tokens, batch_size * self.ctx_len)

    def widths(self, hookpoints: Sequence[str]) -> dict[str, int]:
        has = self._cache.header.hookpoints
        if missing := [name for name in hookpoints if self._spelled(name) not in has]:
            raise ValueError(
                f"activations must hold every hookpoint that the dictionaries read, and lack {', '.join(missing[:4])}; "
                f"choose among {', '.join(list(has)[:20])} with --hookpoints, or cache them"
            )
        return {name: has[self._spelled(name)] for name in hookpoints}

    def parts(self, hookpoints: Sequence[str]) -> Iterator[Part]:
        for section, tokens in self._sections.items():
            if not len(tokens):
                continue
            rows = {name: self._cache.rows(section, self._spelled(name)) for name in hookpoints}
            order = self._cache.row_of_token() if section == TRAIN else None
            start = 0
            for batch, counts in self._counting(section, tokens):
                own = slice(start, start := start + int(counts.sum()))
                yield Part(batch, counts, partial(_read, rows, own, order))

    def _counting(self, section: str, tokens: Int64[Tensor, "sequences ctx_len"]) -> Iterator[CountedTokens]:
        """Batches of a section. Raises ValueError if other tokens count than those that the cache holds."""
        options, kept = self._cache.header.options, self._cache.kept(section)
        counts = counted(tokens, options["exclude_tokens"], options["exclude_positions"])
        if kept is None or not np.array_equal(counts.sum(1).numpy(), kept[: len(tokens)]):
            raise ValueError(f"{self._cache.folder} is damaged: {section} holds other tokens than it says")
        return zip(tokens.split(self._batch_size), counts.split(self._batch_size), strict=True)

    def first(self, hookpoints: Sequence[str], tokens: int) -> Activations:
        found: dict[str, list[Tensor]] = {}
        for part in self.parts(hookpoints):
            for name, acts in part.read().items():
                found.setdefault(name, []).append(acts.float())
            tokens -= int(part.counted.sum())
            if tokens <= 0:
                break
        return {name: torch.cat(parts) for name, parts in found.items()}


def _read(rows: Mapping[str, CachedRows], own: slice, order: Int64[np.ndarray, " tokens"] | None) -> Activations:
    if order is None:
        return {name: of_hookpoint.read(own.start, own.stop) for name, of_hookpoint in rows.items()}
    return {name: of_hookpoint.take(order[own]) for name, of_hookpoint in rows.items()}

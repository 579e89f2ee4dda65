"""Which sequences are never trained on: whole documents, where it is known which sequences hold them."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

RUN = 4  # sequences held out side by side: only two others then share documents with them
UNUSED = 20  # at most one sequence in 20 is neither trained on nor held out, because it shares a document
TRIES = 10  # sequences that are tried for each one that is needed, before documents count as too long
NGRAM = 50  # tokens in a row that two texts do not share by chance
ENDS = 2  # special tokens that may stand around a sequence
FEWEST = 16  # tokens in a row that say anything: shorter sequences are alike by chance
DISTINCT = 10  # different tokens among these: rulers and empty lines repeat in any text


class Documents(NamedTuple):
    """Which documents sequences hold: those from `first` to `last`, by number."""

    first: Int64[np.ndarray, " sequences"]
    last: Int64[np.ndarray, " sequences"]

    @property
    def are_in_order(self) -> bool:
        """Whether sequences follow one another as their documents do, as after packing."""
        return bool((np.diff(self.first) >= 0).all() and (np.diff(self.last) >= 0).all())


class Split(NamedTuple):
    """Sequences that are held out and those that are trained on, in an order that a seed draws."""

    held_out: Int64[Tensor, " held_out"]
    trained: Int64[Tensor, " trained"]
    num_shared: int | None
    """How many held-out sequences share a document with training; None if documents are unknown."""

    @property
    def by(self) -> str:
        """Kind of what is held out: documents, or else sequences."""
        return "documents" if self.num_shared is not None and self.num_shared < len(self.held_out) else "sequences"


def split(num_sequences: int, count: int, seed: int, documents: Documents | None) -> Split:
    """Hold out `count` sequences at random: whole documents, as long as a twentieth of the data suffices for that.

    Sequences that share a document with a held-out one, and are not held out, are left unused. Sequences of documents
    that are too long are held out one by one.
    """
    order = torch.randperm(num_sequences, generator=torch.Generator().manual_seed(seed))
    known = documents is not None and len(documents.first) == num_sequences and documents.are_in_order
    if not known or not 0 < count < num_sequences:
        return Split(order[:count], order[count:], None)
    assert documents is not None
    held, touched = _whole_documents(order.numpy(), count, documents)
    is_held, is_free = torch.from_numpy(held)[order], torch.from_numpy(~touched)[order]
    missing = count - int(is_held.sum())
    free = order[is_free]
    return Split(torch.cat([order[is_held], free[:missing]]), free[missing:], missing)


def _whole_documents(
    order: Int64[np.ndarray, " sequences"], count: int, documents: Documents
) -> tuple[np.ndarray, np.ndarray]:
    """Which sequences are held out, and which of them or of their documents, both (sequences,) bool."""
    num_sequences, room = len(order), count + len(order) // UNUSED
    held, touched = np.zeros(num_sequences, bool), np.zeros(num_sequences, bool)
    num_held = num_touched = 0
    for start in order[: TRIES * count].tolist():
        if num_held == count:
            break
        first, end, inside, inside_end = _stretch(start, min(RUN, count - num_held), documents)
        fitting = (room - num_touched) // (end - first)
        if not fitting or inside == inside_end or touched[first:end].any():
            continue
        # of long documents a share, so that there are several of them
        take = min(inside_end - inside, count - num_held, max(RUN, -(-(count - num_held) // fitting)))
        held[inside : inside + take] = touched[first:end] = True
        num_held, num_touched = num_held + take, num_touched + end - first
    return held, touched


def _stretch(start: int, size: int, documents: Documents) -> tuple[int, int, int, int]:
    """Sequences around `start`, as two ranges: those that touch some documents, and those that hold nothing else."""
    first = documents.last[start]
    last = documents.last[min(start + size, len(documents.last) - 1)]
    touching = np.searchsorted(documents.last, first), np.searchsorted(documents.first, last, "right")
    inside = np.searchsorted(documents.first, first), np.searchsorted(documents.last, last, "right")
    return int(touching[0]), int(touching[1]), int(inside[0]), max(int(inside[0]), int(inside[1]))


def shared_length(ctx_len: int) -> int:
    """Tokens in a row by which sequences of so many count as sharing text.

    They are half of a sequence at most. Text that is cut at another place there lies in two sequences, and half of it
    in one of them.
    """
    return min(NGRAM, max(FEWEST, (ctx_len - ENDS) // 2))


def sharing_text(held_out: Int64[Tensor, "n ctx_len"], trained: Iterable[Int64[Tensor, "_ ctx_len"]]) -> int:
    """How many of the held-out sequences share `shared_length` tokens in a row with one that is trained on."""
    if held_out.shape[1] < FEWEST:
        return 0
    ours = _ngrams(held_out)
    wanted = np.unique(ours[_says_something(held_out)])
    if not len(wanted):
        return 0
    found = [_those_in(wanted, _ngrams(batch)) for batch in trained]
    return int(np.isin(ours, np.concatenate([wanted[:0], *found])).any(1).sum())


def _those_in(wanted: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The numbers that are among the few `wanted` ones, which are in order."""
    nearest = np.searchsorted(wanted, numbers).clip(max=len(wanted) - 1)
    return numbers[wanted[nearest] == numbers]


def _ngrams(tokens: Int64[Tensor, "n ctx_len"]) -> np.ndarray:
    """A number for each `shared_length` tokens in a row (n, places), equal where they are equal."""
    mixed, length = _mixed(tokens.numpy().astype(np.uint64)), shared_length(tokens.shape[1])
    windows = np.zeros((len(mixed), mixed.shape[1] - length + 1), np.uint64)
    for offset in range(length):  # a polynomial modulo 2**64, of mixed tokens
        windows *= np.uint64(0x9E3779B97F4A7C15)
        windows += mixed[:, offset : offset + windows.shape[1]]
    return windows


def _mixed(ids: np.ndarray) -> np.ndarray:
    mixed = (ids + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)


def _says_something(tokens: Int64[Tensor, "n ctx_len"]) -> np.ndarray:
    """Which of these tokens in a row hold at least DISTINCT different ones, or half as many as there are."""
    length = shared_length(tokens.shape[1])
    windows = tokens.unfold(1, length, 1).sort(-1).values
    return ((windows.diff(dim=-1) != 0).sum(-1) + 1 >= min(DISTINCT, (length + 1) // 2)).numpy()

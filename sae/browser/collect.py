"""From text, its activations and dictionaries to an index: one pass for all hookpoints.

The pass leaves chunks, which any process may make and which a killed one leaves behind for the next. They are merged
latent by latent, in memory that does not grow with the tokens.
"""

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch import Tensor, nn

from sae.activations.workers import ONE_WORKER, Workers
from sae.dictionary.losses import EVERYTHING, Ordinary, spread
from sae.runs.log import Progress
from sae.storage.lock import alone_in

from .chunks import Found, Merged, open_chunk, sort_events, write_chunk
from .layout import RELATIVE_NORMS, Header, PlaceHeader, place_files, write_manifest, write_vocabulary, writers
from .reading import Part, Text
from .reads import Read
from .statistics import Corpus, Events, describe
from .weights import Effects, decoder_columns, unit_rows

LOOK_TOKENS = 4096
"""Tokens, the first that count, that say which are massive and how large activations are."""
_CHUNK_BYTES = 2**25
"""Events that are held in memory before they are written, about."""
_BYTES_OF_EVENT = 16
_PRE_ACTS = 2**26
"""Entries of the dense code that exist at a time."""
_AT_ONCE = 4
"""Ranges of latents that are described side by side, at most."""
_FLOAT16 = (2.0**-24, 65504.0)


_HIDDEN = partial(Progress, hidden=True)


def collect(
    folder: Path,
    text: Text,
    reads: Mapping[str, Read],
    vocabulary: list[str],
    *,
    model: nn.Module,
    about: Mapping[str, Any],
    why_no_logits: str = "",
    workers: Workers = ONE_WORKER,
    bar: Callable[..., Progress] = _HIDDEN,
    tell: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Make the index of the dictionaries `reads`, by the names of their places, on `text`, in `folder`.

    Chunks of a call that was stopped are taken over. `vocabulary` has the text of every token. `model` is for the
    effects on the logits; with `why_no_logits`, a sentence, a skeleton without weights is enough. All processes of
    `workers` see the folder. Raises ValueError for a dictionary that does not fit the activations, and OSError in one
    line if the disk is full; finished chunks stay.
    """
    _check_widths(reads, text.widths(_hookpoints(reads)))
    with ExitStack() as stack:
        with workers.together():
            folder.mkdir(parents=True, exist_ok=True)
            if workers.rank == 0:
                stack.enter_context(alone_in(folder, tell=tell))
        with workers.together():
            done = _Pass(folder / "chunks", text, reads, _look(text, reads))
            with bar(total=text.num_tokens, what="reading") as progress:
                sequences = done.run(workers, progress)
        index = _Making(folder, text.ctx_len, sequences, model, vocabulary, dict(about), why_no_logits)
        workers.from_main(partial(_write_index, index, done, bar))


def _hookpoints(reads: Mapping[str, Read]) -> list[str]:
    return list(dict.fromkeys(hookpoint for read in reads.values() for hookpoint in read.reads))


class Look(NamedTuple):
    """Findings of the first tokens at a place."""

    ordinary: Ordinary
    """Rule of which tokens are ordinary, not massive."""
    scale: float
    """A power of two near the largest activation on an ordinary token. Activations are stored divided by it / 64."""


def _look(text: Text, reads: Mapping[str, Read]) -> dict[str, Look]:
    """First looks by place; the same on all ranks, whatever the batches."""
    found = text.first(_hookpoints(reads), LOOK_TOKENS)
    looks = {}
    for name, read in reads.items():
        x = read.of({name: each[:LOOK_TOKENS].cpu() for name, each in found.items()})
        alike = read.counted_alike(x).cpu()
        rule = spread(alike, alike).rule if len(x) else EVERYTHING
        looks[name] = Look(rule, _scale(read.dictionary, x[rule.counts(alike) > 0]))
    return looks


def _scale(dictionary: Any, x: Float[Tensor, "tokens d"]) -> float:
    largest = max((float(acts.max()) for acts, _ in _encoded(dictionary, x) if acts.numel()), default=0.0)
    return 2.0 ** round(math.log2(largest / 64)) if 0 < largest < math.inf else 1.0


def _encoded(dictionary: Any, x: Float[Tensor, "tokens d"]) -> Iterator[tuple[Tensor, Tensor]]:
    """(acts, indices) of some tokens after the other, so that no large dense code exists."""
    most = max(64, _PRE_ACTS // dictionary.num_latents)
    for part in x.tensor_split(-(-len(x) // most)) if len(x) else ():
        with torch.no_grad():
            code = dictionary.encode(part.to(dictionary.W_dec.device).float())
        yield code


class _Pass:
    """The pass over the tokens that leaves chunks."""

    def __init__(self, folder: Path, text: Text, reads: Mapping[str, Read], looks: Mapping[str, Look]) -> None:
        self.folder, self.text, self.reads, self.looks = folder, text, reads, looks

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{chunk:06d}"

    def run(self, workers: Workers, progress: Progress) -> int:
        """Make this rank's chunks that are not there yet; returns the number of sequences of all chunks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chunk, sequences, ctx_len = 0, 0, self.text.ctx_len
        parts, at_once = self.text.parts(_hookpoints(self.reads)), self._parts_of_chunk()
        while some := list(islice(parts, at_once)):
            number = sum(len(part.tokens) for part in some)
            if chunk % workers.size == workers.rank and open_chunk(self.path(chunk)) is None:
                self._make(chunk, some, sequences * ctx_len, progress)
            chunk, sequences = chunk + 1, sequences + number
            progress.reach(sequences * ctx_len)
        self.number = chunk
        return sequences

    def _parts_of_chunk(self) -> int:
        """Parts of the text in a chunk: the same for any number of processes, and in a call that continues."""
        if not self.text.num_tokens:
            raise ValueError("the data must have a sequence to index, got none; give more text")
        width = sum(getattr(read.dictionary.cfg, "k", 64) for read in self.reads.values())
        return max(1, _CHUNK_BYTES // (self.text.batch_tokens * width * _BYTES_OF_EVENT))

    def _make(self, chunk: int, parts: list[Part], start: int, progress: Progress) -> None:
        gathered: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in self.reads}
        massive: dict[str, list[np.ndarray]] = {name: [] for name in self.reads}
        position = start
        for part in parts:
            seen, counts = part.read(), part.counted.flatten()
            at = counts.nonzero().squeeze(1).numpy() + position
            for name, read in self.reads.items():
                x, look = read.of(seen), self.looks[name]
                gathered[name] += _events(read.dictionary, x, at.astype(np.uint32), look.scale)
                is_massive = np.zeros(len(counts), np.bool_)
                is_massive[at - position] = (look.ordinary.counts(read.counted_alike(x)) == 0).cpu().numpy()
                massive[name].append(is_massive)
            position += len(counts)
            progress.reach(position)
        ids = torch.cat([part.tokens.flatten() for part in parts]).numpy()
        is_counted = torch.cat([part.counted.flatten() for part in parts]).numpy()
        found = [
            Found(_sorted(gathered[name], read.dictionary.num_latents), np.concatenate(massive[name]))
            for name, read in self.reads.items()
        ]
        write_chunk(self.path(chunk), ids, is_counted, found)


def _sorted(parts: list[tuple[np.ndarray, ...]], num_latents: int) -> Events:
    latents, positions, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return sort_events(latents, positions, values, num_latents)


def _events(
    dictionary: Any, x: Float[Tensor, "tokens d"], at: UInt32[np.ndarray, " tokens"], scale: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Latents, positions and stored values of the events on tokens at these positions."""
    for acts, indices in _encoded(dictionary, x):
        acts, indices, own, at = acts.cpu(), indices.cpu(), at[: len(acts)], at[len(acts) :]
        fired = acts > 0
        values = (acts[fired].float() / scale).clamp(*_FLOAT16).to(torch.float16)
        yield indices[fired].to(torch.int32).numpy(), own[fired.nonzero()[:, 0].numpy()], values.numpy()


class _Making(NamedTuple):
    """Contents of an index, beside its events."""

    folder: Path
    ctx_len: int
    sequences: int
    model: nn.Module
    vocabulary: list[str]
    about: dict[str, Any]
    why_no_logits: str
    """Why the model has no weights, if it has none."""


def _write_index(index: _Making, done: _Pass, bar: Callable[..., Progress]) -> None:
    chunks = [open_chunk(done.path(number)) for number in range(done.number)]
    if not all(chunks):
        raise ValueError(f"{done.folder} must hold {done.number} chunks, but some are damaged; repeat the command")
    whole = [chunk for chunk in chunks if chunk is not None]
    folder, sizes = index.folder, dict[str, int]()
    with writers(folder, {"tokens": "tokens.u32", "counted": "counted.u8"}, sizes, "") as written:
        for chunk in whole:
            written["tokens"].write(chunk.tokens)
            written["counted"].write(chunk.counted)
    tokens, is_counted = (np.concatenate([getattr(chunk, name) for chunk in whole]) for name in ("tokens", "counted"))
    effects = Effects(index.model, index.why_no_logits)
    places = {}
    total = sum(int(chunk.found(at).events.counts.sum()) for chunk in whole for at in range(len(done.reads)))
    with bar(total=max(1, total), what="sorting", unit="events") as progress:
        for at, (name, read) in enumerate(done.reads.items()):
            found = [chunk.found(at) for chunk in whole]
            massive = np.concatenate([part.massive for part in found])
            occurrences = np.bincount(tokens[(is_counted > 0) & (massive == 0)], minlength=len(index.vocabulary))
            merged = Merged([part.events for part in found])
            scale = done.looks[name].scale
            corpus = Corpus(tokens, index.ctx_len, occurrences)
            _write_place(folder, at, merged, massive, corpus, scale, read, effects, sizes, progress)
            places[name] = PlaceHeader(
                read.hookpoint, read.dictionary.num_latents, read.dictionary.W_dec.shape[1], int(merged.totals.sum()),
                scale, effects.path(read), [end.hookpoint for end in read.ends],
            )  # fmt: skip
    sha256 = write_vocabulary(folder, index.vocabulary)
    header = Header(index.about, index.ctx_len, index.sequences, places, effects.why_none, sha256, sizes)
    write_manifest(folder, header)
    del chunks, whole
    shutil.rmtree(folder / "chunks", ignore_errors=True)


def _write_place(
    folder: Path,
    index: int,
    merged: Merged,
    massive: np.ndarray,
    corpus: Corpus,
    scale: float,
    read: Read,
    effects: Effects,
    sizes: dict[str, int],
    progress: Progress,
) -> None:
    with writers(folder, place_files(index, bool(read.ends)), sizes, "") as written:
        written["starts"].write(np.concatenate([[0], np.cumsum(merged.totals)]))
        written["massive"].write(massive)
        for rows in unit_rows(read.dictionary):
            written["decoder"].write(rows)
        if read.ends:
            written[RELATIVE_NORMS].write(read.relative_norms.cpu().numpy())
        for part in decoder_columns(read, effects):
            for name, values in part.items():
                written[name].write(values)
        for events, described in _described(merged, massive, corpus, scale):
            written["positions"].write(events.positions)
            written["values"].write(events.values)
            for name, values in described.items():
                written[name].write(values)
            progress.advance(len(events.positions))


def _described(
    merged: Merged, massive: np.ndarray, corpus: Corpus, scale: float
) -> Iterator[tuple[Events, dict[str, np.ndarray]]]:
    """Events of some latents after the other, and their columns, which threads compute side by side."""
    workers = min(_AT_ONCE, torch.get_num_threads())

    def columns_of(events: Events) -> dict[str, np.ndarray]:
        return describe(events, massive[events.positions] > 0, corpus, scale)

    with ThreadPoolExecutor(workers, thread_name_prefix="describe") as pool:
        running: deque[tuple[Events, Future[dict[str, np.ndarray]]]] = deque()
        for events in merged:
            running.append((events, pool.submit(columns_of, events)))
            if len(running) > workers:
                first, future = running.popleft()
                yield first, future.result()
        for first, future in running:
            yield first, future.result()


def _check_widths(reads: Mapping[str, Read], widths: Mapping[str, int]) -> None:
    for name, read in reads.items():
        if (d_in := read.dictionary.d_in) != (width := sum(widths[hookpoint] for hookpoint in read.reads)):
            raise ValueError(
                f"the dictionary of {name} must be {width} wide, as the model is, got {d_in}; is it of another model?"
            )

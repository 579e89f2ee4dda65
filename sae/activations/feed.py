"""What a run reads: activations of a language model at work, or of a cache. The trainer sees no difference."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sae import lm
from sae.activations.cache.read import ActivationCache, CachedActivations, held_out_batches
from sae.activations.source import Activations, ActivationSource, Batch, LiveActivations, check_excluded
from sae.config import TrainConfig, several
from sae.data.prefetch import ReadAhead
from sae.data.retry import Wait, patiently
from sae.data.source import TokenSource
from sae.data.tokens import TokenBatches, as_sequences, held_out_count
from sae.dictionary.wiring import ARROW, Wiring, to_harvest, written
from sae.storage.files import absolute


@runtime_checkable
class Extent(Protocol):
    """Amount of data."""

    @property
    def ctx_len(self) -> int:
        """Tokens per sequence."""

    @property
    def num_batches(self) -> int | None:
        """Batches to train on; None if unknown."""

    @property
    def held_out(self) -> int:
        """Sequences that are never trained on."""


@runtime_checkable
class Feed(Extent, Protocol):
    """Activations to train on, and some that are held out."""

    model_name: str
    data_seed: int
    """Seed of the order of the data, and so of what is held out."""
    device: torch.device
    chosen: list[str]
    """Where to train: hookpoints, and A->B."""
    widths: dict[str, int]
    """{hookpoint: d_in} of all that is read for it."""
    dtype: torch.dtype
    """Type of the activations."""
    read_with: dict[str, Any]
    """Options with which the data were read, where they are not the run's own."""

    @property
    def num_sequences(self) -> int | None:
        """Sequences of the data, the held-out ones included; None for a stream."""

    @property
    def source(self) -> ActivationSource:
        """Source of the activations to train on."""

    @property
    def batch_index(self) -> int:
        """How many batches of it were read."""

    @property
    def held_out_by(self) -> str:
        """Kind of what is held out: whole `documents`, or `sequences`."""

    def held_out_batches(self) -> Iterator[Batch]:
        """The held-out tokens and their activations."""

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights of the `model`, of the `held_out` sequences, and of a cache."""

    def about_held_out(self) -> list[str]:
        """Sentences on how many held-out tokens stand in the training text too."""


class Reading(NamedTuple):
    """Plan of what is read: at which hookpoints of the language model, on which tokens. It needs no weights."""

    chosen: list[str]
    """Where to train: hookpoints, and A->B."""
    tokens: TokenBatches
    rounds: int
    """How often the batches of a step, or of several, are read (`count_steps`)."""


class LiveFeed:
    """Runs `model` on the tokens of `dataset`."""

    def __init__(
        self,
        cfg: TrainConfig,
        dataset: Any,
        model: nn.Module,
        batches_at_once: int | None = None,
        *,
        whole_documents: bool = True,
        wait: Wait = time.sleep,
    ) -> None:
        """`dataset` may be a `Reading`. `wait` passes the time until data that failed are tried again.

        `whole_documents` is TokenBatches'. Raises ValueError, naming the option, for a choice that does not fit the
        model or the data.
        """
        self.model = model = lm.unwrapped(model)
        self.model_name, self.data_seed = model_name(dataset, model), cfg.data_seed
        self.device, self.dtype = next(model.parameters()).device, next(model.parameters()).dtype
        if not isinstance(dataset, Reading):
            hookpoints = chosen_hookpoints(cfg, model)
            dataset = plan_reading(
                cfg, dataset, model, hookpoints, batches_at_once, whole_documents=whole_documents, wait=wait
            )
        self.chosen, self.tokens, self.rounds = dataset
        hookpoints = to_harvest(self.chosen, transcode=cfg.transcodes)
        # Data on the disk are read in no time; a stream is fetched and tokenised, so it is read ahead.
        self.batches: TokenSource = self.tokens if self.tokens.num_sequences is not None else ReadAhead(self.tokens)
        """The tokens to train on. `tokens` knows about the data, and has what is held out."""
        self.source = LiveActivations(
            self.batches, self._harvest, exclude_tokens=cfg.exclude_tokens, exclude_positions=cfg.exclude_positions
        )
        self.widths = lm.widths(model, hookpoints, self.tokens.ctx_len)
        if cfg.compile_lm:
            lm.compile_blocks(model, hookpoints)
        self.read_with: dict[str, Any] = {}

    @property
    def ctx_len(self) -> int:
        """Tokens per sequence."""
        return self.tokens.ctx_len

    @property
    def num_sequences(self) -> int | None:
        """Sequences of the data, the held-out ones included; None for a stream."""
        return self.tokens.num_sequences

    @property
    def num_batches(self) -> int | None:
        """Batches to train on; None for a stream without max_tokens."""
        return self.tokens.num_batches

    @property
    def held_out(self) -> int:
        """Sequences that are never trained on."""
        return self.tokens.held_out

    @property
    def batch_index(self) -> int:
        """How many batches were read."""
        return self.source.batch_index

    def held_out_batches(self) -> Iterator[Batch]:
        """The held-out tokens and their activations."""
        return map(self.source.batch, self.tokens.held_out_batches())

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights of the `model` and of the `held_out` sequences."""
        return {"model": lm.fingerprint(self.model), "held_out": self.tokens.fingerprint()}

    @property
    def held_out_by(self) -> str:
        """Kind of what is held out: whole `documents`, or `sequences`."""
        return self.tokens.held_out_by

    def about_held_out(self) -> list[str]:
        """Sentences on how many held-out tokens stand in the training text too."""
        return self.tokens.about_held_out()

    def _harvest(self, tokens: Tensor) -> Activations:
        found = lm.harvest(self.model, tokens.to(self.device, non_blocking=True), list(self.widths))
        # a model that is laid over several devices leaves each where its layer is
        return {name: acts.to(self.device, non_blocking=True) for name, acts in found.items()}


class CachedFeed:
    """Reads a cache."""

    def __init__(self, cfg: TrainConfig, cache: ActivationCache) -> None:
        """Raises ValueError, naming the option, for a choice that does not fit the cache."""
        adopted(cfg, cache.header.options)
        _check_no_model_needed(cfg)
        header = cache.header
        self.chosen = chosen_of_cache(cfg, list(header.hookpoints), header.blocks)
        hookpoints = to_harvest(self.chosen, transcode=cfg.transcodes)
        if missing := [name for name in hookpoints if name not in header.hookpoints]:
            raise ValueError(
                f"the activations must hold what transcoders read, and lack {', '.join(missing[:4])}; "
                "cache them too, with --hookpoints"
            )
        self._cache, self._batch_size = cache, cfg.batch_size
        self.read_with = dict(header.options)
        self.model_name, self.data_seed = model_name(cache, None), header.seed
        self.ctx_len, self.num_sequences = header.ctx_len, header.num_sequences
        self.device, self.dtype = cache.device, cache.dtype
        self.widths = {name: header.hookpoints[name] for name in hookpoints}
        max_batches = cfg.max_tokens and cfg.max_tokens // (cfg.batch_size * header.ctx_len)
        self.source = CachedActivations(cache, hookpoints, cfg.batch_size, max_batches=max_batches)
        self.held_out = len(cache.held_out_tokens())
        self.held_out_by = str(header.options.get("held_out_by", "sequences"))

    @property
    def num_batches(self) -> int:
        """Batches to train on."""
        return self.source.num_batches

    @property
    def batch_index(self) -> int:
        """How many batches were read."""
        return self.source.batch_index

    def held_out_batches(self) -> Iterator[Batch]:
        """The held-out tokens and their activations."""
        return held_out_batches(self._cache, list(self.widths), self._batch_size)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints that the cache was written with, and `activations`, that of the cache itself."""
        return {**self._cache.header.fingerprints, "activations": self._cache.fingerprint}

    def about_held_out(self) -> list[str]:
        """No sentences: a cache does not hold the tokens that are trained on."""
        return []


def model_name(dataset: Any, model: nn.Module | None) -> str:
    """Name of the language model, also of a cache's or a feed's; empty if unknown."""
    if isinstance(dataset, Feed):
        return dataset.model_name
    if isinstance(dataset, ActivationCache):
        return str(dataset.header.options["model"])
    return "" if model is None else str(getattr(lm.unwrapped(model).config, "_name_or_path", ""))


def open_feed(
    cfg: TrainConfig,
    dataset: Any,
    model: nn.Module | None,
    batches_at_once: int | None = None,
    *,
    whole_documents: bool = True,
    wait: Wait = time.sleep,
) -> Feed:
    """The activations of `model` on `dataset`, or of the cache that `dataset` is; a `Feed` is what it is.

    Raises ValueError, naming the option, for a choice that does not fit.
    """
    if isinstance(dataset, Feed):
        return dataset
    if isinstance(dataset, ActivationCache):
        if model is not None:
            raise ValueError("model must be left out for a cache of activations, which needs none; pass None")
        return CachedFeed(cfg, dataset)
    if model is None:
        raise ValueError(f"model must be given unless the data are an ActivationCache, got {type(dataset).__name__}")
    return LiveFeed(cfg, dataset, model, batches_at_once, whole_documents=whole_documents, wait=wait)


def chosen_hookpoints(cfg: TrainConfig, model: nn.Module) -> list[str]:
    """The hookpoints of `model`, with weights or without, that the options name, and A->B.

    Raises ValueError if an option names nothing in the model.
    """
    plain, pairs = _pairs(cfg)
    found = [ARROW.join(_one_place(model, end, pair) for end in Wiring.of(pair, transcode=True).ends) for pair in pairs]
    if pairs and not plain:
        return list(dict.fromkeys(found))
    alone = lm.resolve_hookpoints(model, hookpoints=plain, layers=cfg.layers, layer_stride=cfg.layer_stride)
    return list(dict.fromkeys([*alone, *found]))


def _pairs(cfg: TrainConfig) -> tuple[list[str], list[str]]:
    """The hookpoints of the options: patterns, and pairs A->B. Raises ValueError unless all can be transcoded."""
    pairs = [name for name in cfg.hookpoints if ARROW in name]
    if pairs and not all(sae.transcode for sae in several(cfg.sae)):
        raise ValueError(
            f"hookpoints must name one place for an autoencoder, got {pairs[0]}, which transcoders read and write; "
            "add --transcode, or to cache them name both"
        )
    return [name for name in cfg.hookpoints if ARROW not in name], pairs


def _one_place(model: nn.Module, end: str, pair: str) -> str:
    """The one hookpoint that an end of A->B names."""
    found = lm.resolve_hookpoints(model, hookpoints=[end])
    if len(found) > 1:
        raise ValueError(
            f"hookpoints must name one place on each side of {ARROW}, got {pair!r}, in which {end} stands for "
            f"{len(found)}; name each pair"
        )
    return found[0]


def check_sequences(cfg: TrainConfig, model: nn.Module, ctx_len: int) -> None:
    """Raise ValueError for sequences of a length that the model cannot read, or if it lacks what is excluded."""
    lm.check_ctx_len(ctx_len, model)
    check_exclusions(cfg, vocab_size=lm.vocab_size(model), ctx_len=ctx_len)


def plan_reading(
    cfg: TrainConfig,
    dataset: Any,
    model: nn.Module,
    hookpoints: list[str],
    batches_at_once: int | None = None,
    *,
    checked: int | None = None,
    whole_documents: bool = True,
    wait: Wait = time.sleep,
) -> Reading:
    """The plan of reading `model`, with weights or without, on `dataset`; sequences of `checked` tokens are known to
    fit.

    `hookpoints` are the chosen ones. Raises ValueError, naming the option, for a choice that does not fit.
    """
    to_harvest(hookpoints, transcode=cfg.transcodes)  # what cannot be transcoded is told before the data is read
    tokens = token_batches(
        cfg, dataset, batches_at_once, vocab_size=lm.vocab_size(model), whole_documents=whole_documents, wait=wait
    )
    if tokens.ctx_len != checked:  # ready-made sequences have a length of their own
        check_sequences(cfg, model, tokens.ctx_len)
    return Reading(hookpoints, tokens, count_steps(cfg, tokens, batches_at_once))


def token_batches(
    cfg: TrainConfig,
    dataset: Any,
    batches_at_once: int | None = None,
    *,
    vocab_size: int,
    whole_documents: bool = True,
    wait: Wait = time.sleep,
) -> TokenBatches:
    """The batches of a run, in its order, with the held-out sequences set aside.

    `batches_at_once` counts the batches of all processes; None: one.
    """
    sequences = as_sequences(dataset)
    patiently(lambda: sequences.ctx_len, wait)  # may read the first row
    length = len(sequences) if isinstance(sequences, Sized) else None
    return TokenBatches(
        sequences,
        cfg.batch_size,
        seed=cfg.data_seed,
        vocab_size=vocab_size,
        # By the step, so that two batches of 4 leave the data that one of 8 leaves.
        held_out=held_out_count(length, cfg.batch_size * (batches_at_once or cfg.grad_acc_steps), sequences.ctx_len),
        whole_documents=whole_documents,
        max_batches=cfg.max_tokens and cfg.max_tokens // (cfg.batch_size * sequences.ctx_len),
        wait=wait,
    )


def check_exclusions(cfg: TrainConfig, *, vocab_size: int, ctx_len: int) -> None:
    """Raise ValueError for an excluded token or position that there is not; a run that began with one goes on."""
    if not cfg.resume or {"exclude_tokens", "exclude_positions"} & set(cfg.resume_changed):
        check_excluded(cfg.exclude_tokens, cfg.exclude_positions, vocab_size=vocab_size, ctx_len=ctx_len)


def count_steps(cfg: TrainConfig, data: Extent, batches_at_once: int | None = None) -> int:
    """How often a run reads `batches_at_once` batches, for an optimizer step, or several (`recipe.steps_per_batch`).

    Raises ValueError for a stream without max_tokens, and for less data than one step.
    """
    batches = data.num_batches
    if batches is None:
        raise ValueError(
            "max_tokens must be given for a stream, whose length is not known, got None; "
            "the learning rate decays over the whole run: give --max_tokens"
        )
    per_step = batches_at_once or cfg.grad_acc_steps
    if batches < per_step:
        raise ValueError(
            "the data must hold one step of batch_size × ctx_len × grad_acc_steps × processes = "
            f"{cfg.batch_size * data.ctx_len * per_step} tokens beside the {data.held_out} held-out "
            f"sequences, got {batches * cfg.batch_size} sequences of {data.ctx_len}; give more text, or lower "
            "--batch_size, --ctx_len or --grad_acc_steps, or raise --max_tokens"
        )
    return batches // per_step


# Choices that a cache has already made


def adopted(cfg: Any, options: Mapping[str, Any], typed: Collection[str] = ()) -> dict[str, Any]:
    """The options of a cache that `cfg` has too, to take over. Raises ValueError for one that was given otherwise.

    What has its default was not given, unless it was `typed`.
    """
    taken = {name: value for name, value in options.items() if hasattr(cfg, name)}
    defaults = type(cfg)()
    for name, value in taken.items():
        given = getattr(cfg, name)
        same = isinstance(given, str) and isinstance(value, str) and absolute(given) == absolute(value)
        was_given = name in typed or given != getattr(defaults, name)
        if was_given and given != value and not same:
            raise ValueError(f"{name} must be that of the activations, {value!r}, got {given!r}; leave it out")
    return taken


def _check_no_model_needed(cfg: TrainConfig) -> None:
    for name, default in (("loss_fn", "fvu"), ("eval_every", 0), ("compile_lm", False)):
        if getattr(cfg, name) != default:
            raise ValueError(
                f"{name} must be {default} on cached activations, got {getattr(cfg, name)}: it needs the model; "
                f"leave out --{name}, or --activations"
            )


def chosen_of_cache(cfg: TrainConfig, names: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Hookpoints to train at, of the cached `names`, as the options say; `blocks` are those that layers mean.

    Raises ValueError if that needs one that was not cached.
    """
    plain, pairs = _pairs(cfg)
    found = [ARROW.join(Wiring.of(pair, transcode=True).ends) for pair in pairs]
    if pairs and not plain:
        return list(dict.fromkeys(found))
    alone = cached_hookpoints(names, blocks, plain, cfg.layers, cfg.layer_stride)
    return list(dict.fromkeys([*written(alone, transcode=cfg.transcodes), *found]))


def cached_hookpoints(
    names: Sequence[str],
    blocks: Sequence[str],
    hookpoints: Sequence[str] = (),
    layers: Sequence[int] = (),
    layer_stride: int = 1,
) -> list[str]:
    """Cached hookpoints, of `names`, that a choice means; without a choice all. `blocks` are those that layers mean.

    Raises ValueError if it means one that was not cached, or nothing.
    """
    if hookpoints:
        missing = [one for one in hookpoints if not any(lm.fits(name, one) for name in names)]
        chosen = [name for name in names if any(lm.fits(name, one) for one in hookpoints)]
    else:
        wanted = layers or (range(0, len(blocks), layer_stride) if layer_stride > 1 else ())
        meant = [blocks[layer] if layer < len(blocks) else f"layer {layer}" for layer in wanted]
        missing = [name for name in meant if name not in names]
        chosen = [name for name in names if name in meant or not meant]
    if missing:
        raise ValueError(
            f"the activations must hold every hookpoint that is trained, and lack {', '.join(missing[:4])}; "
            f"choose among {', '.join(names)}, or cache them"
        )
    return chosen

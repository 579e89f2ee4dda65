"""Activations of a cache, and the choices that it has already made."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from sae import lm
from sae.activations.cache.read import ActivationCache, CachedActivations, held_out_batches
from sae.activations.reading import chosen_pairs
from sae.activations.source import Batch
from sae.activations.store import HeldOut, model_name
from sae.config import TrainConfig
from sae.dictionary.wiring import ARROW, Wiring, to_harvest, written
from sae.storage.files import absolute


class CachedStore(HeldOut):
    """Store of a run that reads a cache."""

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
        mixed = header.shuffled and bool(cfg.exclude_positions or cfg.exclude_tokens)
        self.num_to_train = None if mixed else header.sequences  # batches of what was mixed are of tokens
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
        """No sentences: the text is not read again."""
        return []


def adopted(cfg: Any, options: Mapping[str, Any], typed: Collection[str] = ()) -> dict[str, Any]:
    """The options of a cache that `cfg` has too, to take over. Raises ValueError for one that was given otherwise.

    What has its default was not given, unless it was `typed`.
    """
    of_one_model = {"model_b": None, "revision_b": None}  # unless it says otherwise
    taken = {name: value for name, value in (of_one_model | dict(options)).items() if hasattr(cfg, name)}
    defaults = {each.name: each for each in fields(cfg)}
    for name, value in taken.items():
        given = getattr(cfg, name)
        same = isinstance(given, str) and isinstance(value, str) and absolute(given) == absolute(value)
        was_given = name in typed or given != _default(defaults[name])
        if was_given and given != value and not same:
            raise ValueError(f"{name} must be that of the activations, {value!r}, got {given!r}; leave it out")
    return taken


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


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
    plain, pairs = chosen_pairs(cfg)
    found = [ARROW.join(Wiring.of(pair, transcode=True).ends) for pair in pairs]
    if pairs and not plain:
        return list(dict.fromkeys(found))
    alone = cached_hookpoints(names, blocks, plain, cfg.layers, cfg.layer_stride)
    return list(dict.fromkeys([*written(alone, transcode=cfg.transcodes), *found]))


def cached_hookpoints(
    names: Sequence[str], blocks: Sequence[str], hookpoints: Sequence[str], layers: Sequence[int], layer_stride: int
) -> list[str]:
    """Cached hookpoints, of `names`, that a choice means; without a choice all. `blocks` are those that layers mean.

    Raises ValueError if it means one that was not cached, or nothing.
    """
    if hookpoints:
        missing = [one for one in hookpoints if not any(lm.fits(name, one) for name in names)]
        chosen = [name for name in names if any(lm.fits(name, one) for one in hookpoints)]
    else:
        wanted = layers or (range(0, len(blocks), layer_stride) if layer_stride > 1 else ())
        lists = [
            [name for name in blocks if lm.side_of(name) == side] for side in dict.fromkeys(map(lm.side_of, names))
        ]
        meant = [each[layer] if layer < len(each) else f"layer {layer}" for each in lists for layer in wanted]
        missing = [name for name in meant if name not in names]
        chosen = [name for name in names if name in meant or not meant]
    if missing:
        raise ValueError(
            f"the activations must hold every hookpoint that is trained, and lack {', '.join(missing[:4])}; "
            f"choose among {', '.join(names)}, or cache them"
        )
    return chosen

"""The heavy half of `sae browse`: load model, data and dictionaries, and make an index of them."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sae import lm
from sae.activations.cache.format import read_manifest
from sae.activations.cache.read import ActivationCache
from sae.activations.cached import adopted
from sae.activations.source import check_excluded
from sae.browser.collect import collect
from sae.browser.plan import BrowsePlan, about, other_indexes
from sae.browser.reading import CachedText, LiveText, Text
from sae.browser.reads import Read, reads_of
from sae.browser.steering import Loaded
from sae.commands.load import load_language_model, load_skeleton, load_text
from sae.config import BrowseConfig
from sae.data.sequences import as_sequences
from sae.data.tokens import SampledSequences
from sae.dictionary.wiring import CROSSCODER
from sae.evaluation.command import load_dictionaries, other_models
from sae.evaluation.plan import EvalPlan, plan_evaluation
from sae.parallel.world import World
from sae.runs.folder import command, may_be_same, versions
from sae.runs.log import Progress, note
from sae.storage.damage import in_one_line
from sae.storage.remote import place_of

MAX_TOKENS = 1_000_000
"""Tokens that are indexed if nobody says how many."""


def make_index(cfg: BrowseConfig, plan: BrowsePlan) -> bool:
    """Make the index; whether this is the process that shows it."""
    world = World.from_environment()
    (device, *_) = world.local_devices(lm.check_device(cfg.device))
    cache = None if cfg.activations is None else ActivationCache(cfg.activations, device=device)
    what = _plan(cfg, plan)
    skeleton = load_skeleton(what.text)
    _check(what, skeleton)
    if world.is_main and (others := other_indexes(plan)):
        note(f"{plan.base} has {len(others)} of other checkpoints, data or options; this one is made beside them")
    reads = _reads(what, device)
    text: Text
    if cache is None:
        with world.one_first(note, "prepared the data"):
            dataset = load_text(what.text, skeleton)
        model, why_no_logits = load_language_model(what.text, device, head=True), ""
        text = LiveText(
            model,
            _sample(cfg, what, dataset, lm.vocab_size(skeleton)),
            exclude_tokens=what.exclude_tokens,
            exclude_positions=what.exclude_positions,
        )
    else:
        spelled = partial(_spelled, skeleton)
        text = CachedText(cache, cfg.max_tokens or MAX_TOKENS, cfg.batch_size, spelled=spelled)
        model, why_no_logits = _for_logits(cfg, what, skeleton, device, cache)
    weights = {
        name: cache.header.fingerprints.get(name, "") if cache else now for name, now in lm.fingerprints(model).items()
    }
    for sentence in other_models(what, weights) if world.is_main else ():
        note(sentence)
    collect(
        plan.folder, text, reads, lm.token_texts(_tokenizer(cfg, what), lm.vocab_size(skeleton)), model=model,
        why_no_logits=why_no_logits, about=about(plan, cfg, what.text, versions(), " ".join(command())), workers=world,
        bar=partial(Progress, hidden=not world.is_main), tell=note,
    )  # fmt: skip
    world.close()
    return world.is_main


def _check(what: EvalPlan, skeleton: Any) -> None:
    lm.check_ctx_len(what.text.ctx_len, skeleton)
    check_excluded(
        what.exclude_tokens, what.exclude_positions, vocab_size=lm.vocab_size(skeleton), ctx_len=what.text.ctx_len
    )
    for hookpoint in what.hookpoints:
        if hookpoint != CROSSCODER:
            lm.canonical_ends(skeleton, hookpoint)


def _spelled(skeleton: Any, hookpoint: str) -> str:
    """A hookpoint's name in a cache of this version."""
    model, name = lm.model_at(skeleton, hookpoint)
    return lm.side_of(hookpoint) + lm.canonical(model, name)


def _for_logits(
    cfg: BrowseConfig, what: EvalPlan, skeleton: Any, device: Any, cache: ActivationCache
) -> tuple[Any, str]:
    """The model for the effects on the logits; without its weights the skeleton, and why there are no effects."""
    try:
        model = load_language_model(what.text, device, head=True)
    except (OSError, ValueError, MemoryError) as error:
        why = f"the language model cannot be loaded ({in_one_line(error)})"
        note(f"{why}; the index has no effects on the logits")
        return skeleton, why
    for option, now in lm.fingerprints(model).items():
        if not may_be_same(cache.header.fingerprints.get(option, ""), now):
            raise ValueError(
                f"the {option} must be that of the activations in {cfg.activations}, but "
                f"{getattr(what.text, option)} has other weights; name that model, or write the cache again"
            )
    return model, ""


def load_live(cfg: BrowseConfig) -> Loaded:
    """The model, its tokenizer and the dictionaries, for texts that a user types."""
    what = _plan(cfg, None)
    device = lm.check_device(cfg.device)
    model = load_language_model(what.text, device, head=True)
    return Loaded(model, _tokenizer(cfg, what), _reads(what, device))


def _plan(cfg: BrowseConfig, plan: BrowsePlan | None) -> EvalPlan:
    """Which dictionaries and which data, as `sae eval` finds them."""

    def limit(model: str) -> int | None:
        return lm.context_limit(lm.load_skeleton(model, revision=cfg.revision, token=cfg.hf_token))

    out = str((plan.base if plan else Path(cfg.out or ".")) / "unused")
    return plan_evaluation(replace(_as_cached(cfg), out=out), context_limit=limit)


def _as_cached(cfg: BrowseConfig) -> BrowseConfig:
    """With the choices of the cache, if there is one. Raises ValueError for one that was made otherwise.

    The model may lie elsewhere by now, and so may the second of two.
    """
    if cfg.activations is None:
        return cfg
    options = read_manifest(place_of(cfg.activations)).header.options
    elsewhere = {"model"} if cfg.model else set()
    if cfg.model_b and options.get("model_b"):
        elsewhere |= {"model_b", "revision_b"}
    return replace(
        cfg, **adopted(cfg, {name: options[name] if name not in elsewhere else getattr(cfg, name) for name in options})
    )


def _reads(what: EvalPlan, device: Any) -> dict[str, Read]:
    """The dictionaries by the name of their place: the hookpoint, and the configuration too if there are several."""
    found = load_dictionaries(what, device)
    name = next(iter(what.records)).rstrip("/")
    groups = {label: label.removeprefix(name) if len(found) > 1 else "" for label in found}
    return {
        f"{groups[label]}/{hookpoint}".lstrip("/"): read
        for label, dictionaries in found.items()
        for hookpoint, read in reads_of(dictionaries).items()
    }


def _tokenizer(cfg: BrowseConfig, what: EvalPlan) -> Any:
    try:
        return lm.load_tokenizer(what.text.model, revision=what.text.revision, token=cfg.hf_token)
    except ValueError:  # the data may be tokens, which are then shown as numbers
        return None


def _sample(cfg: BrowseConfig, what: EvalPlan, dataset: Any, vocab_size: int) -> SampledSequences:
    source = as_sequences(dataset)
    by_document = what.record is not None and what.record.held_out_by == "documents"
    wanted = cfg.max_tokens or max(MAX_TOKENS, source.ctx_len)
    held_out = int(what.record.derived["held_out_sequences"]) if what.record is not None and by_document else None
    # More than was held out is asked for as sequences, of which the held-out documents are a part.
    of_documents = held_out if held_out is not None and wanted <= held_out * source.ctx_len else None
    return SampledSequences(
        source, wanted, cfg.batch_size, seed=what.seed, vocab_size=vocab_size, of_documents=of_documents
    )

"""One pass over the data: every autoencoder's reconstructions, and the model's predictions with them grafted in."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae import lm
from sae.activations.source import CountedTokens, check_finite
from sae.dictionary.cross_layer import coders
from sae.dictionary.losses import Ordinary, Spread, VarianceSums, at_least_float32
from sae.dictionary.partial import partial_errors
from sae.evaluation.moments import Sums, merge, on_cpu, tensors_of
from sae.evaluation.predictions import Predictions, compare_predictions
from sae.evaluation.sums import PREDICTION, ActivationSums, PredictionSums, ReconstructionSums
from sae.evaluation.targets import (
    Coded,
    Dictionaries,
    Target,
    Targets,
    coded_layers,
    harvested,
    reads_later,
    rows,
    targets,
)

Key = TypeVar("Key")

ALL = "all"
"""Name in the place of a hookpoint: all of a checkpoint's autoencoders grafted at once."""


class Reference(NamedTuple):
    """What the activations at a hookpoint are measured against."""

    mean: Float[Tensor, "d"]
    """Mean of all tokens that count."""
    ordinary_mean: Float[Tensor, "d"]
    """Mean of the ordinary ones among them."""
    rule: Ordinary
    """Which tokens are ordinary."""

    def to(self, device: torch.device) -> "Reference":
        """This reference on a device."""
        rule = Ordinary(self.rule.centre.to(device), self.rule.farthest.to(device))
        return Reference(self.mean.to(device), self.ordinary_mean.to(device), rule)


class Measured(NamedTuple):
    """The sums of a pass. `merge` of two adds those of other sequences, on other ranks too."""

    activations: dict[str, ActivationSums]
    """Sums by hookpoint."""
    reconstructions: dict[tuple[str, str], ReconstructionSums]
    """Sums by label and hookpoint."""
    predictions: dict[tuple[str, str], PredictionSums]
    """Sums by label and hookpoint or `ALL`; empty for a model without a head."""

    def add(self, other: "Measured") -> "Measured":
        """The sums over both sets of sequences."""
        return Measured(
            _merge_each(self.activations, other.activations),
            _merge_each(self.reconstructions, other.reconstructions),
            _merge_each(self.predictions, other.predictions),
        )

    def on_cpu(self) -> "Measured":
        """The same sums on the CPU."""
        return Measured(
            _each_on_cpu(self.activations), _each_on_cpu(self.reconstructions), _each_on_cpu(self.predictions)
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the keys: adding each over the ranks merges the ranks."""
        return [tensor for part in self for sums in part.values() for tensor in tensors_of(sums)]


def _merge_each(one: dict[Key, Sums], other: dict[Key, Sums]) -> dict[Key, Sums]:
    return one | {key: merge(one[key], sums) if key in one else sums for key, sums in other.items()}


def _each_on_cpu(found: dict[Key, Sums]) -> dict[Key, Sums]:
    return {key: on_cpu(sums) for key, sums in found.items()}


def nothing(dictionaries: Dictionaries, widths: Mapping[str, int], ctx_len: int, *, has_head: bool) -> Measured:
    """The sums over no sequence, with all keys that `measure` fills at hookpoints, in a fixed order, on the CPU"""
    found = targets(dictionaries)
    alone = [(label, hookpoint) for hookpoint in widths for label, of_one in found.items() if hookpoint in of_one]
    at_once = [(label, ALL) for group in _same_hookpoints(found) for label in group]
    return Measured(
        {hookpoint: ActivationSums.zeros(d_in) for hookpoint, d_in in widths.items()},
        {(label, at): _no_reconstructions(found[label][at], ctx_len) for label, at in alone},
        {key: PredictionSums.zeros(ctx_len) for key in alone + at_once if has_head},
    )


def _no_reconstructions(target: Target, ctx_len: int) -> ReconstructionSums:
    return ReconstructionSums.zeros(target.sae.num_latents, ctx_len, parts=len(target.parts))


def count_runs(dictionaries: Dictionaries, *, has_head: bool) -> int:
    """Runs of the model that `measure` makes of a batch: clean, and each graft with its two ablations."""
    found = targets(dictionaries)
    labels = Counter(hookpoint for of_one in found.values() for hookpoint in of_one)
    groups = [*labels.values(), *map(len, _same_hookpoints(found))]
    return 1 + has_head * sum(2 + grafts for grafts in groups)


def means(
    model: nn.Module, hookpoints: list[str], batches: Iterable[CountedTokens], rules: Mapping[str, Ordinary]
) -> dict[str, Spread]:
    """Sums of the activations at each hookpoint over the tokens that count; `rules` say which of them are ordinary.

    Raises NonFiniteError for a NaN or an infinity.
    """
    sums: dict[str, Spread] = {}
    for tokens, kept in batches:
        found = lm.harvest(model, tokens, hookpoints)
        check_finite(found, "a batch that is measured")
        for name, acts in found.items():
            x = acts[kept.to(acts.device)]
            part = Spread(VarianceSums.of(x.double()), VarianceSums.of(x.double(), rules[name].counts(x).double()))
            sums[name] = merge(sums[name], part) if name in sums else part
    return sums


@torch.no_grad()
def measure(
    model: nn.Module,
    batch: CountedTokens,
    dictionaries: Dictionaries,
    references: Mapping[str, Reference],
    *,
    head: lm.Head | None,
    skips: lm.Skips | None = None,
    on_part: Callable[[float], None] = lambda part: None,
) -> Measured:
    """The sums of one batch. `references` are by hookpoint of `dictionaries`, or A->B.

    `head` makes the model's logits; without it nothing is grafted, and the forward is cut short. With `skips` a graft's
    forward begins behind what is known of the clean one; the numbers are the same. Tokens that do not count keep their
    activations, and appear in no sum. `on_part` gets the share of the work that is done, by the runs of the model.

    A code may be made of activations that come after those that it replaces, as a crosscoder's. It is then made of the
    clean activations, also where all are replaced.
    """
    tokens, kept = batch
    found = targets(dictionaries)
    at = rows(found)
    known_before = _behind(found, skips)
    passed = harvested(found, (at[row] for row in references))
    seen, clean = _clean_run(model, head, tokens, list(dict.fromkeys([*passed, *filter(None, known_before.values())])))

    def begin(rows: Iterable[str]) -> AbstractContextManager[None]:
        behind = known_before.get(frozenset(rows), "")
        return skips.begin(behind, seen[behind]) if skips is not None and behind else nullcontext()

    references = {row: each.to(seen[at[row]].device) for row, each in references.items()}
    mean = {hookpoint: each.mean for hookpoint, each in references.items()}
    runs, number = count_runs(dictionaries, has_head=head is not None), count(1)

    def ran() -> None:
        on_part(next(number) / runs)

    ran()
    where = kept.to(next(iter(seen.values())).device)
    measured = Measured({}, {}, {})
    coded: dict[int, Coded] = {}
    known: dict[tuple[str, str], Tensor] = {}
    for hookpoint in references:
        x = seen[at[hookpoint]]
        measured.activations[hookpoint] = ActivationSums.of(x[where].to(mean[hookpoint]) - mean[hookpoint])
        recons = {}
        for label, of_one in found.items():
            if hookpoint in of_one:
                target = of_one[hookpoint]
                sums, recons[label] = reconstruct(target, _coded(coded, target, seen), x, references[hookpoint], where)
                measured.reconstructions[label, hookpoint] = sums
                if reads_later(target, list(seen)):
                    known[label, hookpoint] = recons[label]
        if head is not None and clean is not None:
            # One hookpoint alone: its input is the clean activation, whose reconstruction is known.
            grafts = {label: {hookpoint: _constant(recon)} for label, recon in recons.items()}
            with begin([hookpoint]):
                predicted = _predict(model, head, tokens, where, clean, grafts, {hookpoint: mean[hookpoint]}, ran)
            measured.predictions.update({(label, hookpoint): sums for label, sums in predicted.items()})
    if head is not None and clean is not None:
        for group in _same_hookpoints(found):
            hookpoints = next(iter(group.values()))
            at_once = {hookpoint: mean[hookpoint] for hookpoint in hookpoints}
            grafts = {label: _all_of(label, of_one, known) for label, of_one in group.items()}
            with begin(hookpoints):
                predicted = _predict(model, head, tokens, where, clean, grafts, at_once, ran)
            measured.predictions.update({(label, ALL): sums for label, sums in predicted.items()})
    return measured


def _behind(found: Targets, skips: lm.Skips | None) -> dict[frozenset[str], str]:
    """The block behind which the forwards can begin that change some rows, by these rows; "" where none can."""
    if skips is None:
        return {}
    ends: dict[str, set[str]] = {}
    for of_one in found.values():
        for row, target in of_one.items():
            ends.setdefault(row, set()).update([target.writes, *target.reads])
    changed = [{row} for row in ends] + [set(next(iter(group.values()))) for group in _same_hookpoints(found)]
    return {frozenset(rows): skips.behind(end for row in rows for end in ends[row]) for rows in changed}


def _coded(done: dict[int, Coded], target: Target, seen: Mapping[str, Tensor]) -> Coded:
    """The dictionary's output for the batch; several targets share it."""
    if target.part is None and not target.layers:
        return Coded.of(target, seen)
    if id(target.sae) not in done:
        layers = target.layers
        saes = [layer.sae for layer in layers] or [target.sae]
        made = coded_layers(layers, seen) if layers else [Coded.of(target, seen)]
        done.update(zip(map(id, saes), made, strict=True))
    return done[id(target.sae)]


def _all_of(label: str, of_one: Mapping[str, Target], known: Mapping[tuple[str, str], Tensor]) -> dict[str, Any]:
    """Grafts for all of a checkpoint at once: the dictionaries, or their reconstructions where they are `known`."""
    groups = {target.layers[0].name: target.layers for target in of_one.values() if target.layers}
    live: dict[str, Any] = {hookpoint: target.sae for hookpoint, target in of_one.items()}
    for layers in groups.values():
        live |= coders({layer.name: layer.sae for layer in layers})
    return live | {row: _constant(recon) for (of, row), recon in known.items() if of == label}


def _clean_run(
    model: nn.Module, head: lm.Head | None, tokens: Tensor, hookpoints: list[str]
) -> tuple[dict[str, Tensor], lm.Hidden | None]:
    """The activations, in the order of the forward, and the hidden states; None, and cut short, without a head."""
    if head is None:
        return lm.harvest(model, tokens, hookpoints), None
    seen: dict[str, Tensor] = {}

    def recorder(hookpoint: str) -> Callable[[Tensor], Tensor]:
        def record(x: Tensor) -> Tensor:
            seen[hookpoint] = x.clone()  # modules that run later may write into it
            return x

        return record

    with lm.graft(model, {hookpoint: recorder(hookpoint) for hookpoint in hookpoints}):
        clean = head.run(tokens)
    return seen, clean


def reconstruct(
    target: Target, coded: Coded, x: Tensor, reference: Reference, where: Bool[Tensor, "batch seq"]
) -> tuple[ReconstructionSums, Tensor]:
    """The sums of one dictionary over the tokens `where`, and its reconstruction of all of x."""
    x, fired = at_least_float32(x.to(target.sae.device)), coded.acts > 0
    recon = coded.recon if target.part is None else coded.recon[..., target.part]
    counts = torch.zeros(target.sae.num_latents, dtype=torch.int64, device=x.device)
    counts.index_add_(0, coded.indices.flatten(), (fired & where.unsqueeze(-1)).flatten().long())
    means = reference.mean.to(x), reference.ordinary_mean.to(x)
    ordinary, kept = reference.rule.counts(x), at_least_float32(recon)
    sums = ReconstructionSums.of(x, kept, fired.sum(-1), counts, *means, ordinary, where)
    parts = {name: part if target.part is None else part[..., target.part] for name, part in coded.parts.items()}
    return sums._replace(partial_errors=partial_errors(parts, x, ordinary * where)), recon


def _predict(
    model: nn.Module,
    head: lm.Head,
    tokens: Int[Tensor, "batch seq"],
    where: Bool[Tensor, "batch seq"],
    clean: lm.Hidden,
    grafts: Mapping[str, Mapping[str, Any]],
    mean: Mapping[str, Tensor],
    ran: Callable[[], None],
) -> dict[str, PredictionSums]:
    """Predictions with each of `grafts`, beside the clean ones and those with zeros or means at the same hookpoints."""
    runs: dict[tuple[str, str], Mapping[str, Any]] = {
        ("ablation", "zero"): dict.fromkeys(mean, torch.zeros_like),
        ("ablation", "mean"): {hookpoint: _constant(value) for hookpoint, value in mean.items()},
    }
    runs |= {("graft", label): graft for label, graft in grafts.items()}
    outputs = {}
    for key, replacements in runs.items():
        with lm.graft(model, replacements, mask=where):
            outputs[key] = head.run(tokens)
        ran()
    found, clean_ce = compare_predictions(head, tokens, clean, outputs, lm.vocab_size(model))
    zero, by_mean = found["ablation", "zero"], found["ablation", "mean"]
    sums = {}
    for label in grafts:
        sums[label] = PredictionSums.of(_in_order(found["graft", label], zero, by_mean, clean_ce), where)
    return sums


def _in_order(one: Predictions, zero: Predictions, by_mean: Predictions, clean_ce: Tensor) -> Tensor:
    """The values of each token, in the order of `PREDICTION`."""
    predicted = torch.ones_like(clean_ce)
    predicted[:, -1] = 0
    values = {
        "tokens": torch.ones_like(clean_ce), "kl": one.kl, "agree": one.agree.to(one.kl), "kl_zero": zero.kl,
        "kl_mean": by_mean.kl, "predicted": predicted, "ce_clean": clean_ce, "ce": one.ce, "ce_zero": zero.ce,
        "ce_mean": by_mean.ce,
    }  # fmt: skip
    return torch.stack([values[name] for name in PREDICTION], -1)


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    """A graft that puts `value` in place of any activation: (d_in), or (batch, seq, d_in)."""
    return lambda x: value.to(x).expand_as(x)


def _same_hookpoints(found: Targets) -> list[dict[str, Mapping[str, Target]]]:
    """Labels with more than one hookpoint, in groups that have the same: they share the ablations of all at once."""
    groups: dict[frozenset[str], dict[str, Mapping[str, Target]]] = {}
    for label, of_one in found.items():
        if len(of_one) > 1:
            groups.setdefault(frozenset(of_one), {})[label] = of_one
    return list(groups.values())

"""One pass over the data: every autoencoder's reconstructions, and the model's predictions with them grafted in."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
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
from sae.dictionary.wiring import side_by_side
from sae.evaluation.differences import DifferenceSums, differences_of, two_models
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
    of_side,
    reads_later,
    rows,
    sides,
    targets,
)

Key = TypeVar("Key")

ALL = "all"
"""Name in the place of a hookpoint: all of a checkpoint's autoencoders grafted at once. Of two models each has its
own: `a:all` and `b:all`."""


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


class Measurable(NamedTuple):
    """A language model whose activations are read, and whose predictions with reconstructions in place are measured."""

    model: nn.Module
    head: lm.Head | None = None
    """What makes its logits; without it nothing is grafted, and its forward is cut short."""
    skips: lm.Skips | None = None
    """A graft's forward begins behind what is known of the clean one; the numbers are the same."""
    side: str = ""
    """What the names of its hookpoints begin with, where it is one of two."""

    def own(self, hookpoints: Iterable[str]) -> list[str]:
        """Hookpoints among these that are in it, each once, by their names there."""
        return list(dict.fromkeys(name.removeprefix(self.side) for name in hookpoints if lm.side_of(name) == self.side))


class Measured(NamedTuple):
    """The sums of a pass. `merge` of two adds those of other sequences, on other ranks too."""

    activations: dict[str, ActivationSums]
    """Sums by hookpoint."""
    reconstructions: dict[tuple[str, str], ReconstructionSums]
    """Sums by label and hookpoint."""
    predictions: dict[tuple[str, str], PredictionSums]
    """Sums by label and hookpoint or `ALL`; empty for a model without a head."""
    differences: dict[tuple[str, str], DifferenceSums] = {}
    """Sums by label and dictionary, of crosscoders of two models."""

    def add(self, other: "Measured") -> "Measured":
        """The sums over both sets of sequences."""
        return Measured(
            _merge_each(self.activations, other.activations),
            _merge_each(self.reconstructions, other.reconstructions),
            _merge_each(self.predictions, other.predictions),
            _merge_each(self.differences, other.differences),
        )

    def on_cpu(self) -> "Measured":
        """The same sums on the CPU."""
        return Measured(*(_each_on_cpu(part) for part in self))

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
    of_models = {side: of_side(found, side) for side in sides(found)}
    at_once = [
        (label, side + ALL) for side, own in of_models.items() for group in _same_hookpoints(own) for label in group
    ]
    return Measured(
        {hookpoint: ActivationSums.zeros(d_in) for hookpoint, d_in in widths.items()},
        {(label, at): _no_reconstructions(found[label][at], ctx_len) for label, at in alone},
        {key: PredictionSums.zeros(ctx_len) for key in alone + at_once if has_head},
        {key: DifferenceSums.zeros(sae.num_latents) for key, sae in two_models(dictionaries).items()},
    )


def _no_reconstructions(target: Target, ctx_len: int) -> ReconstructionSums:
    return ReconstructionSums.zeros(target.sae.num_latents, ctx_len, parts=len(target.parts))


def count_runs(found: Targets, *, has_head: bool) -> int:
    """Runs of a model that `measure` makes of a batch: clean, and each graft there with its two ablations."""
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
    models: Sequence[Measurable],
    batch: CountedTokens,
    dictionaries: Dictionaries,
    references: Mapping[str, Reference],
    *,
    on_part: Callable[[float], None] = lambda part: None,
) -> Measured:
    """The sums of one batch. `references` are by hookpoint of `dictionaries`, or A->B.

    Of two models both read the tokens, and each predicts with the reconstructions of its own hookpoints in place.
    Tokens that do not count keep their activations, and appear in no sum. `on_part` gets the share of the work that is
    done, by the runs of the models.

    A code may be made of activations that come after those that it replaces, as a crosscoder's. It is then made of the
    clean activations, also where all are replaced.
    """
    tokens, kept = batch
    found = targets(dictionaries)
    at = rows(found)
    passed = harvested(found, (at[row] for row in references))
    own = {model.side: of_side(found, model.side) for model in models}
    runs, number = sum(count_runs(own[each.side], has_head=each.head is not None) for each in models), count(1)

    def ran() -> None:
        on_part(next(number) / runs)

    seen, grafting = _clean_runs(models, own, tokens, passed, ran)
    references = {row: each.to(seen[at[row]].device) for row, each in references.items()}
    mean = {hookpoint: each.mean for hookpoint, each in references.items()}
    where = kept.to(next(iter(seen.values())).device)
    measured = Measured({}, {}, {}, {})
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
        if (graft := grafting.get(lm.side_of(at[hookpoint]))) is not None:
            # One hookpoint alone: its input is the clean activation, whose reconstruction is known.
            grafts = {label: {hookpoint: _constant(recon)} for label, recon in recons.items()}
            predicted = graft.predictions(grafts, {hookpoint: mean[hookpoint]}, where)
            measured.predictions.update({(label, hookpoint): sums for label, sums in predicted.items()})
    for side, graft in grafting.items():
        for group in _same_hookpoints(own[side]):
            at_once = {hookpoint: mean[hookpoint] for hookpoint in next(iter(group.values()))}
            grafts = {label: _all_of(label, of_one, known) for label, of_one in group.items()}
            predicted = graft.predictions(grafts, at_once, where)
            measured.predictions.update({(label, side + ALL): sums for label, sums in predicted.items()})
    measured.differences.update(_differences(dictionaries, found, coded, seen, references, where))
    return measured


def _differences(
    dictionaries: Dictionaries,
    found: Targets,
    coded: Mapping[int, Coded],
    seen: Mapping[str, Tensor],
    references: Mapping[str, Reference],
    where: Bool[Tensor, "batch seq"],
) -> dict[tuple[str, str], DifferenceSums]:
    """The sums of the crosscoders of two models, over the tokens `where` that are ordinary at all hookpoints."""
    sums = {}
    for (label, name), sae in two_models(dictionaries).items():
        code, ordinary = coded[id(sae)], where
        for hookpoint in sae.spec.writes:
            ordinary = ordinary & (references[hookpoint].rule.counts(seen[hookpoint]) > 0)
        x = side_by_side({at: seen[at].to(sae.device) for at in sae.spec.writes}, sae.spec.writes)
        sums[label, name] = differences_of(sae, code.acts, code.indices, x, code.recon, ordinary.to(sae.device))
    return sums


class _Grafting(NamedTuple):
    """Grafts into a model on one batch, beside its clean run."""

    of: Measurable
    tokens: Int[Tensor, "batch seq"]
    clean: lm.Hidden
    behind: Mapping[frozenset[str], str]
    """The block behind which the forwards can begin that change some rows."""
    seen: Mapping[str, Tensor]
    """The clean activations, by the names in the model."""
    ran: Callable[[], None]

    def predictions(
        self, grafts: Mapping[str, Mapping[str, Any]], mean: Mapping[str, Tensor], where: Bool[Tensor, "batch seq"]
    ) -> dict[str, PredictionSums]:
        """Predictions with each of `grafts`, by label, beside those with zeros or `mean` at the same rows."""
        behind, skips = self.behind.get(frozenset(mean), ""), self.of.skips
        begin = nullcontext() if skips is None or not behind else skips.begin(behind, self.seen[behind])
        with begin:
            return _predict(self.of, self.tokens, where, self.clean, grafts, mean, self.ran)


def _clean_runs(
    models: Sequence[Measurable],
    own: Mapping[str, Targets],
    tokens: Int[Tensor, "batch seq"],
    passed: Sequence[str],
    ran: Callable[[], None],
) -> tuple[dict[str, Tensor], dict[str, _Grafting]]:
    """The activations at the hookpoints `passed`, and what grafts into each model with a head begin with.

    `own` are the targets in each model.
    """
    seen: dict[str, Tensor] = {}
    grafting: dict[str, _Grafting] = {}
    for model in models:
        behind = _behind(own[model.side], model)
        of_model, clean = _clean_run(model, tokens, [*model.own(passed), *filter(None, behind.values())])
        seen |= {model.side + name: acts for name, acts in of_model.items()}
        if clean is not None:
            grafting[model.side] = _Grafting(model, tokens, clean, behind, of_model, ran)
        ran()
    return seen, grafting


def _behind(found: Targets, model: Measurable) -> dict[frozenset[str], str]:
    """The block behind which the forwards can begin that change some rows, by these rows; "" where none can."""
    if (skips := model.skips) is None:
        return {}
    ends: dict[str, set[str]] = {}
    for of_one in found.values():
        for row, target in of_one.items():
            ends.setdefault(row, set()).update(model.own([target.writes, *target.reads]))
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
    return live | {row: _constant(recon) for (of, row), recon in known.items() if of == label and row in of_one}


def _clean_run(
    model: Measurable, tokens: Tensor, hookpoints: Iterable[str]
) -> tuple[dict[str, Tensor], lm.Hidden | None]:
    """The activations, in the order of the forward, and the hidden states; None, and cut short, without a head."""
    names = list(dict.fromkeys(hookpoints))
    if model.head is None:
        return lm.harvest(model.model, tokens, names), None
    seen: dict[str, Tensor] = {}

    def recorder(hookpoint: str) -> Callable[[Tensor], Tensor]:
        def record(x: Tensor) -> Tensor:
            seen[hookpoint] = x.clone()  # modules that run later may write into it
            return x

        return record

    with lm.graft(model.model, {hookpoint: recorder(hookpoint) for hookpoint in names}):
        clean = model.head.run(tokens)
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
    model: Measurable,
    tokens: Int[Tensor, "batch seq"],
    where: Bool[Tensor, "batch seq"],
    clean: lm.Hidden,
    grafts: Mapping[str, Mapping[str, Any]],
    mean: Mapping[str, Tensor],
    ran: Callable[[], None],
) -> dict[str, PredictionSums]:
    """Predictions with each of `grafts`, beside the clean ones and those with zeros or means at the same hookpoints."""
    assert model.head is not None
    runs: dict[tuple[str, str], Mapping[str, Any]] = {
        ("ablation", "zero"): dict.fromkeys(mean, torch.zeros_like),
        ("ablation", "mean"): {hookpoint: _constant(value) for hookpoint, value in mean.items()},
    }
    runs |= {("graft", label): graft for label, graft in grafts.items()}
    outputs = {}
    for key, replacements in runs.items():
        here = {name.removeprefix(model.side): new for name, new in replacements.items()}
        with lm.graft(model.model, here, mask=where):
            outputs[key] = model.head.run(tokens)
        ran()
    found, clean_ce = compare_predictions(model.head, tokens, clean, outputs, lm.vocab_size(model.model))
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

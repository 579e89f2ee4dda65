"""`sae.evaluate`: from a model, data and autoencoders to how good they are."""

import os.path
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from sae import lm
from sae.activations.first import first_activations
from sae.activations.source import CountedTokens, check_excluded, counted
from sae.activations.workers import ONE_WORKER, Workers
from sae.data.tokens import SampledSequences
from sae.dictionary.autoencoder import Sae
from sae.dictionary.losses import EVERYTHING, Ordinary, Spread, spread
from sae.evaluation.absorption import Absorbed
from sae.evaluation.differences import Difference, two_models
from sae.evaluation.measure import ALL, Measurable, Measured, Reference, means, measure, nothing
from sae.evaluation.metrics import Quality, as_json, qualities
from sae.evaluation.moments import merge, on_cpu, tensors_of
from sae.evaluation.probes import Probed
from sae.evaluation.ranks import Share
from sae.evaluation.relative_norms import histogram
from sae.evaluation.sums import ActivationSums
from sae.evaluation.targets import Dictionaries, Targets, harvested, rows, targets
from sae.ops.defaults import own_defaults
from sae.runs.log import Progress

TOP = 0.01
"""Fraction of the tokens, and of the dimensions, whose share of the variance is reported."""
RULE_TOKENS = 4096
"""First tokens that count, by which the massive ones are found."""
_HIDDEN = partial(Progress, total=0, hidden=True)


@dataclass(frozen=True)
class Evaluation(Mapping[Any, Quality]):
    """Result of an evaluation, with its tokens. `evaluation["layers.3"].metrics["fvu"]` is one number.

    It maps hookpoints, or pairs (label, hookpoint) where several checkpoints were measured, to qualities.
    """

    qualities: dict[tuple[str, str], Quality]
    """Qualities by the label of a checkpoint and the hookpoint, or "all": all of them grafted at once."""
    variance: dict[str, dict[str, float]]
    """Shares of the variance, by hookpoint, in the top 1 % of the tokens and of the dimensions."""
    tokens: int
    """Tokens that count: without those excluded."""
    sequences: int
    ctx_len: int
    has_head: bool
    """Whether there were logits. Without them there is no KL and no cross-entropy."""
    causal: bool
    """Whether the next token's cross-entropy was measured."""
    why_no_head: str = ""
    """A sentence, if there were no logits."""
    probes: Probed | None = None
    """Results of k-sparse probes, if they were asked for."""
    absorption: Absorbed | None = None
    """Absorption of first letters, if it was asked for."""
    relative_norms: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)
    """Crosscoders' latents, by label and hookpoint, in bins of `relative_norms.relative_norms` from 0 to 1."""
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    """What crosscoders of two models say of these, by label and dictionary."""

    def __getitem__(self, key: Any) -> Quality:
        """The quality at a hookpoint ("all": all at once), or at (label, hookpoint) when several were measured.

        Of one autoencoder "all" is that one. Raises KeyError for what was not measured.
        """
        if not isinstance(key, str | tuple):
            raise KeyError(f"a hookpoint, or (label, hookpoint), names what was measured, got {key!r}")
        if isinstance(key, str):
            (label, *others) = self.labels
            if others:
                raise KeyError(f"{key} was measured for {self.labels}: ask for (label, {key!r})")
            key = (label, key)
        label, hookpoint = key
        measured = [name for each, name in self.qualities if each == label]
        if hookpoint == ALL and len(measured) == 1:
            hookpoint = measured[0]
        if (label, hookpoint) not in self.qualities:
            why = f" ({self.why_no_head})" if hookpoint == ALL and self.why_no_head else ""
            raise KeyError(f"{hookpoint} was not measured{why}; what was: {', '.join(measured)}")
        return self.qualities[label, hookpoint]

    def __iter__(self) -> Iterator[Any]:
        """The keys, in the order of the table."""
        several = len(self.labels) > 1
        return iter([key if several else key[1] for key in self.qualities])

    def __len__(self) -> int:
        return len(self.qualities)

    @property
    def labels(self) -> list[str]:
        """The checkpoints, in the order in which they were given."""
        return list(dict.fromkeys(label for label, _ in self.qualities))

    @property
    def short_labels(self) -> dict[str, str]:
        """Short name of each checkpoint, without the folders that all lie in."""
        paths = {label: label.split("/") for label in self.labels}
        shared = len(os.path.commonprefix([path[:-1] for path in paths.values()]))
        return {label: "/".join(path[shared:]) for label, path in paths.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, by label and hookpoint; null where a number is not defined."""
        results: dict[str, dict[str, Any]] = {label: {} for label in self.labels}
        for (label, hookpoint), quality in self.qualities.items():
            results[label][hookpoint] = quality._asdict()
        data = {"tokens": self.tokens, "sequences": self.sequences, "ctx_len": self.ctx_len}
        more: dict[str, Any] = {"relative_norms": self.relative_norms} if self.relative_norms else {}
        differences = {
            label: {name: each.to_json() for name, each in of_one.items()} for label, of_one in self.differences.items()
        }
        more |= {"differences": differences} if differences else {}
        more |= {"probes": self.probes.to_json()} if self.probes is not None else {}
        more |= {"absorption": self.absorption.to_json()} if self.absorption is not None else {}
        document: dict[str, Any] = as_json({"data": data, "variance": self.variance, "results": results, **more})
        return document


@own_defaults()
def evaluate(
    model: nn.Module,
    dataset: Any,
    saes: Mapping[str, Sae],
    *,
    max_tokens: int | None = None,
    batch_size: int = 8,
    exclude_tokens: Sequence[int] = (),
    exclude_positions: Sequence[int] = (),
    seed: int = 42,
    ranks: Workers = ONE_WORKER,
) -> Evaluation:
    """Measure autoencoders on tokenised data: each alone, and all grafted at once.

    Under torchrun all processes call it with the same arguments. Each measures a share, and all return the whole.

    Args:
        model: Model of transformers. Without a language-modelling head only reconstructions are measured, no
            predictions.
        dataset: Tokenised data as for `SaeTrainer`; it should not be data that they were trained on.
        saes: Autoencoders by hookpoint.
        max_tokens: Tokens of the data to draw, with `seed`. None: all.
        batch_size: Sequences per forward pass.
        exclude_tokens: Token ids that are left out of all metrics and keep their activations.
        exclude_positions: Positions in the sequence, from 0, that are left out likewise.
        seed: Seed of the sample.
        ranks: Processes that share the work: `sae.parallel.world.World.from_environment()` under torchrun.

    Returns:
        Metrics with 95 % intervals, by hookpoint and for "all".

    Raises:
        ValueError: For an autoencoder that does not fit the model, for an unknown excluded token or position, and if no
            token counts.
    """
    vocab_size = lm.vocab_size(model)
    sample = SampledSequences(dataset, max_tokens, batch_size, seed=seed, vocab_size=vocab_size)
    check_excluded(exclude_tokens, exclude_positions, vocab_size=vocab_size, ctx_len=sample.ctx_len)
    return evaluate_many(
        model, sample, {"": saes}, exclude_tokens=exclude_tokens, exclude_positions=exclude_positions, ranks=ranks
    )


def evaluate_many(
    model: nn.Module,
    batches: Iterable[Int64[Tensor, "batch ctx_len"]],
    dictionaries: Dictionaries,
    *,
    exclude_tokens: Sequence[int] = (),
    exclude_positions: Sequence[int] = (),
    ranks: Workers = ONE_WORKER,
    bar: Callable[..., Progress] = _HIDDEN,
) -> Evaluation:
    """Evaluation as by `evaluate`, for several checkpoints by label, on `batches`, which are read twice.

    The first pass finds the mean of the activations, the second everything else; `bar` makes a progress bar for each.
    The clean model and the ablations, which checkpoints share, run once.
    """
    found = targets(dictionaries)
    hookpoints = list(dict.fromkeys(rows(found).values()))
    widths = lm.widths(model, harvested(found, hookpoints), getattr(batches, "ctx_len", None))
    _check_widths(found, widths)
    widths = {hookpoint: widths[hookpoint] for hookpoint in hookpoints}

    def counting() -> Iterator[CountedTokens]:
        return ((tokens, counted(tokens, exclude_tokens, exclude_positions)) for tokens in batches)

    with ranks.together(), bar(what="means") as progress:
        rules = _rules(model, hookpoints, counting())
        share = Share(counting(), ranks, progress.reach)
        own = means(model, hookpoints, share, rules)
    spreads = _over_ranks({name: Spread.zeros(d_in, "cpu") for name, d_in in widths.items()}, own, ranks)
    tokens = _number_of_tokens(spreads)
    references = _references(found, spreads, rules)
    with ranks.together():
        models, why_no_head = _with_heads(model, share.ctx_len)
    heads = [each.head for each in models if each.head is not None]
    with ranks.together(), bar(what="measuring", total=share.tokens) as progress:
        share = Share(counting(), ranks, progress.reach)
        measured = _measured(models, share, dictionaries, references)
    of_rows = {row: widths[at] for row, at in rows(found).items()}
    total = nothing(dictionaries, of_rows, share.ctx_len, has_head=bool(heads)).add(measured.on_cpu())
    ranks.add_up(total.tensors())()
    causal = bool(heads) and all(head.is_causal for head in heads)
    return Evaluation(
        qualities=qualities(
            total,
            share.ctx_len,
            causal=causal,
            parts={(label, at): each.parts for label, of_one in found.items() for at, each in of_one.items()},
        ),
        variance={row: _top_shares(sums) for row, sums in total.activations.items()},
        tokens=tokens,
        sequences=share.sequences,
        ctx_len=share.ctx_len,
        has_head=bool(heads),
        causal=causal,
        why_no_head=why_no_head,
        relative_norms=_relative_norms(found, total),
        differences=_differences(dictionaries, total),
    )


def _references(found: Targets, spreads: Mapping[str, Spread], rules: Mapping[str, Ordinary]) -> dict[str, Reference]:
    """What each row of the result is held against: the means of what is read there, and which tokens are ordinary."""
    return {
        row: Reference(spreads[at].everything.mean(), spreads[at].ordinary.mean(), rules[at])
        for row, at in rows(found).items()
    }


def _measured(
    models: Sequence[Measurable], share: Share, dictionaries: Dictionaries, references: Mapping[str, Reference]
) -> Measured:
    """The sums over the batches of this process's share."""
    measured = Measured({}, {}, {}, {})
    for batch in share:
        measured = measured.add(measure(models, batch, dictionaries, references, on_part=share.part_done))
    return measured


def _number_of_tokens(spreads: Mapping[str, Spread]) -> int:
    """Tokens that are measured on. Raises ValueError for none."""
    tokens = int(next(iter(spreads.values())).everything.tokens) if spreads else 0
    if not tokens:
        raise ValueError(
            "the data must have a token to measure on beside those excluded, got none; give more text, or exclude fewer"
        )
    return tokens


def _top_shares(sums: ActivationSums) -> dict[str, float]:
    return {
        "top_1_percent_of_tokens": sums.top_tokens_share(TOP),
        "top_1_percent_of_dimensions": sums.top_dimensions_share(TOP),
    }


def _relative_norms(found: Targets, total: Measured) -> dict[str, dict[str, list[int]]]:
    """Histograms by label and hookpoint, for crosscoders alone."""
    shares = {
        label: {
            name: histogram(target.sae, total.reconstructions[label, name].fired, target.part)
            for name, target in of_one.items()
            if target.part is not None
        }
        for label, of_one in found.items()
    }
    return {label: by_hookpoint for label, by_hookpoint in shares.items() if by_hookpoint}


def _rules(model: nn.Module, hookpoints: list[str], batches: Iterable[CountedTokens]) -> dict[str, Ordinary]:
    """Which tokens are ordinary at each hookpoint, by the first sequences: the same on all ranks, in any batches."""
    some = first_activations(model, hookpoints, batches, RULE_TOKENS)
    return {hookpoint: spread(x, x).rule if len(x) else EVERYTHING for hookpoint, x in some.items()}


def _differences(dictionaries: Dictionaries, total: Measured) -> dict[str, dict[str, Difference]]:
    """What crosscoders of two models say of their difference, by label and dictionary."""
    found: dict[str, dict[str, Difference]] = {}
    for (label, name), sae in two_models(dictionaries).items():
        fired = total.reconstructions[label, sae.spec.writes[0]].fired
        found.setdefault(label, {})[name] = Difference.of(sae, total.differences[label, name], fired)
    return found


def _with_heads(model: nn.Module, ctx_len: int) -> tuple[list[Measurable], str]:
    """The models, with heads for sequences of this length; or all without, and the reason."""
    models = lm.models_in(model)
    try:
        heads = {side: lm.find_head(one, ctx_len) for side, one in models.items()}
    except lm.NoHeadError as error:
        return [Measurable(one, side=side) for side, one in models.items()], str(error)
    return [Measurable(one, heads[side], lm.Skips(one, heads[side]), side) for side, one in models.items()], ""


def _over_ranks(zeros: dict[str, Spread], own: Mapping[str, Spread], ranks: Workers) -> dict[str, Spread]:
    """The sums over all ranks, on the CPU."""
    sums = zeros | {name: merge(zeros[name], on_cpu(found)) for name, found in own.items()}
    ranks.add_up([tensor for each in sums.values() for tensor in tensors_of(each)])()
    return sums


def _check_widths(found: Targets, widths: Mapping[str, int]) -> None:
    for label, of_one in found.items():
        for target in of_one.values():
            if target.width != widths[target.writes]:
                raise ValueError(
                    f"{f'{label}: ' if label else ''}the autoencoder of {target.writes} must be "
                    f"{widths[target.writes]} wide, as the model is, got {target.width}; is it of another model?"
                )

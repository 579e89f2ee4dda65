"""The work of `sae eval` on its plan, and sentences about the tokens that it measured."""

import math
from collections.abc import Mapping, Sized
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from sae import lm
from sae.activations.first import first_activations
from sae.activations.source import counted
from sae.activations.workers import Workers
from sae.data.labelled import Task
from sae.data.sequences import Sequences, as_sequences
from sae.data.spelling import Spelling
from sae.data.stream import SequenceStream
from sae.data.tokens import SampledSequences, held_out_fingerprint
from sae.dictionary.autoencoder import Sae
from sae.evaluation.absorption import absorption, sentences
from sae.evaluation.baselines import FIT_TOKENS, baselines, can_have_baselines, check_can_have_baselines
from sae.evaluation.evaluate import Evaluation, evaluate_many
from sae.evaluation.plan import EvalPlan, may_have_seen
from sae.evaluation.probes import probe
from sae.runs.folder import RunRecord, fingerprints_in, may_be_same
from sae.runs.log import Progress


class Concepts(NamedTuple):
    """Questions about single latents, beside reconstruction."""

    tokenizer: Any = None
    tasks: list[Task] | None = None
    """Texts of k-sparse probes."""
    spelling: Spelling | None = None
    """Words whose first letters may be absorbed."""


NO_CONCEPTS = Concepts()


def load_dictionaries(plan: EvalPlan, device: torch.device) -> dict[str, dict[str, Sae]]:
    """The autoencoders, by the label of their checkpoint and by hookpoint, in float32."""
    return {
        label: {
            hookpoint: Sae.load_from_disk(folder, device).to(torch.float32) for hookpoint, folder in folders.items()
        }
        for label, folders in plan.folders.items()
    }


def _in_one_spelling(model: nn.Module, dictionaries: dict[str, dict[str, Sae]]) -> dict[str, dict[str, Sae]]:
    """Dictionaries by the hookpoint's name in this version, so that all checkpoints' stand side by side."""
    return {label: _renamed(model, saes) for label, saes in dictionaries.items()}


def _renamed(model: nn.Module, saes: dict[str, Sae]) -> dict[str, Sae]:
    renamed = {name if one.cfg.crosscode else lm.canonical_ends(model, name): one for name, one in saes.items()}
    return renamed if len(renamed) == len(saes) else saes  # two spellings in one checkpoint stay apart


def measure_plan(
    plan: EvalPlan,
    model: nn.Module,
    dataset: Any,
    dictionaries: dict[str, dict[str, Sae]],
    *,
    batch_size: int,
    ranks: Workers,
    concepts: Concepts,
) -> tuple[Evaluation, list[str]]:
    """Measure, and sentences for the user about which tokens these were."""
    source = as_sequences(dataset)
    dictionaries = _in_one_spelling(model, dictionaries)
    changed, models = _has_changed(plan, source), other_models(plan, lm.fingerprints(model))
    others = [name for name, record in plan.records.items() if record and not _holds_out_the_same(record, source)]
    plan = plan._replace(record=None if changed else plan.record, records=plan.records | dict.fromkeys(others))
    share = -(-plan.max_tokens // (source.ctx_len * ranks.size))
    sample = SampledSequences(
        source, plan.max_tokens, min(batch_size, max(1, share)), seed=plan.seed, vocab_size=lm.vocab_size(model),
        of_documents=_held_out_documents(plan),
    )  # fmt: skip
    dictionaries |= _baselines(plan, model, dictionaries, sample)
    evaluation = evaluate_many(
        model, sample, dictionaries,
        exclude_tokens=plan.exclude_tokens, exclude_positions=plan.exclude_positions, ranks=ranks,
        bar=partial(Progress, total=sample.num_tokens, hidden=ranks.rank > 0),
    )  # fmt: skip
    evaluation, doubts = _with_concepts(evaluation, concepts, model, dictionaries, batch_size)
    about = [*_which_tokens(plan, evaluation), *_predictions(evaluation), *_ablations(evaluation)]
    about += [*_massive(evaluation), *doubts]
    return evaluation, [*changed, *models, *about]


def _with_concepts(
    evaluation: Evaluation,
    concepts: Concepts,
    model: nn.Module,
    dictionaries: dict[str, dict[str, Sae]],
    batch_size: int,
) -> tuple[Evaluation, list[str]]:
    """The evaluation with what was asked of latents, and sentences on how far to believe it."""
    doubts: list[str] = []
    if (tasks := concepts.tasks) is not None:
        with Progress(total=sum(len(task.texts) for task in tasks), what="probing", unit="text") as progress:
            found = probe(
                model, concepts.tokenizer, tasks, dictionaries, batch_size=batch_size, done=progress.reach
            )  # fmt: skip
        evaluation = replace(evaluation, probes=found)
    if concepts.spelling is not None:
        with Progress(total=len(concepts.spelling.words), what="spelling", unit="word") as progress:
            absorbed = absorption(
                model, concepts.spelling, dictionaries, batch_size=batch_size, done=progress.reach
            )  # fmt: skip
        evaluation = replace(evaluation, absorption=absorbed)
        doubts = sentences(absorbed, sum(weight.numel() for weight in model.parameters()))
    return evaluation, doubts


def _baselines(
    plan: EvalPlan, model: nn.Module, dictionaries: dict[str, dict[str, Sae]], sample: SampledSequences
) -> dict[str, dict[str, Sae]]:
    """The baselines that were asked for, by label and hookpoint, fitted on the first of these tokens."""
    made: dict[str, dict[str, Sae]] = {}
    for label, kinds in plan.baselines.items():
        saes = dictionaries[label]
        if not plan.baselines_asked and not can_have_baselines(saes):
            continue
        check_can_have_baselines(saes)
        counting = ((tokens, counted(tokens, plan.exclude_tokens, plan.exclude_positions)) for tokens in sample)
        found = baselines(kinds, saes, first_activations(model, list(saes), counting, FIT_TOKENS))
        alone = len(plan.baselines) == 1
        made |= {name if alone else f"{label}/{name}": each for name, each in found.items()}
    return made


def _held_out_documents(plan: EvalPlan) -> int | None:
    """How many sequences the run held out, if it held out whole documents."""
    if plan.record is None or plan.record.held_out_by == "sequences":
        return None
    return int(plan.record.derived["held_out_sequences"])


def _has_changed(plan: EvalPlan, source: Sequences | SequenceStream) -> list[str]:
    """A sentence if the data is no longer what the run read: its held-out sequences are then not known."""
    if plan.record is None:
        return []
    recorded = plan.record.derived.get("num_sequences")
    if recorded is not None and isinstance(source, Sized) and len(source) != recorded:
        return [f"{plan.text.dataset} had {recorded:,} sequences when the run was made, and has {len(source):,} now."]
    if _holds_out_the_same(plan.record, source):
        return []
    return [f"{plan.text.dataset} holds other tokens than when the run was made."]


def _holds_out_the_same(record: RunRecord, source: Sequences | SequenceStream) -> bool:
    """Whether a run like this would hold out of `source` what the run held out; true if the run does not record it.

    It is false for a run that read other data.
    """
    recorded, held_out = fingerprints_in(record.derived).get("held_out", ""), record.derived["held_out_sequences"]
    if not recorded or not isinstance(record.seed, int):
        return True
    whole_documents = record.held_out_by == "documents"
    return held_out > 0 and recorded == held_out_fingerprint(
        source, held_out, record.seed, whole_documents=whole_documents
    )


def other_models(plan: EvalPlan, weights: Mapping[str, str]) -> list[str]:
    """A sentence for each model, of these fingerprints, that is not the one that the checkpoints were trained on."""
    sentences = []
    for option, now in weights.items():
        others = [
            name
            for name, record in plan.records.items()
            if record and not may_be_same(fingerprints_in(record.derived).get(option, ""), now)
        ]
        told = f"{getattr(plan.text, option)} has other weights than the {option} of {', '.join(others)}."
        sentences += [told] * bool(others)
    return sentences


def _which_tokens(plan: EvalPlan, evaluation: Evaluation) -> list[str]:
    if plan.record is None:
        first = f"Measured on {evaluation.sequences:,} sequences drawn from {plan.text.dataset}."
    else:
        first = f"Measured on {evaluation.sequences:,} of the sequences that {plan.record.folder} held out."
    unsure = may_have_seen(plan)
    return [first] + [f"Training may have seen these tokens: {', '.join(unsure)}."] * bool(unsure)


def _predictions(evaluation: Evaluation) -> list[str]:
    """A sentence if what the model predicts was not measured."""
    return [] if evaluation.has_head else [f"No KL and no cross-entropy: {evaluation.why_no_head}."]


def _ablations(evaluation: Evaluation) -> list[str]:
    """Sentences if an ablation changes the loss so little that a share of it says nothing."""
    kinds = {
        ("ce_loss_score", "ce_loss_with_ablation"): "zeros",
        ("ce_loss_score_mean", "ce_loss_with_mean_ablation"): "the mean",
    }
    told = []
    for (score, ablated), what in kinds.items():
        blank = dict.fromkeys(
            key[1]
            for key, quality in evaluation.qualities.items()
            if math.isnan(quality.metrics.get(score, 0.0))
            and math.isfinite(quality.metrics[ablated] - quality.metrics["ce_loss_without_sae"])
        )
        told += [
            f"The share of the loss that is recovered ({score}) is left blank at {', '.join(blank)}: {what} in the "
            "place of the activations changes cross-entropy by no more than chance between sequences."
        ] * bool(blank)
    return told


def _massive(evaluation: Evaluation) -> list[str]:
    """A sentence if there are massive tokens."""
    shares = {key[1]: quality.metrics.get("massive_fraction", 0.0) for key, quality in evaluation.qualities.items()}
    found = [hookpoint for hookpoint, share in shares.items() if share > 0]
    if not found:
        return []
    return [
        f"Up to {max(shares.values()):.2%} of the tokens are massive (attention sinks and the like) at "
        f"{', '.join(found)}: fvu and l0 are of the others, fvu_with_massive is of all."
    ]

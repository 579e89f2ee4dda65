"""Plan of what a run reads: at which hookpoints, on which tokens, how often. It needs no weights."""

import sys
import time
from collections.abc import Sized
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from sae import lm
from sae.activations.source import check_excluded
from sae.config import TrainConfig, several
from sae.data.retry import Wait, patiently
from sae.data.sequences import as_sequences
from sae.data.tokens import TokenBatches, held_out_count
from sae.dictionary.wiring import ARROW, Wiring, to_harvest


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
    def num_to_train(self) -> int | None:
        """Sequences that may be trained on; None if unknown."""

    @property
    def held_out(self) -> int:
        """Sequences that are never trained on."""


class Reading(NamedTuple):
    """Plan of what is read: at which hookpoints of the language model, on which tokens. It needs no weights."""

    chosen: list[str]
    """Where to train: hookpoints, and A->B."""
    tokens: TokenBatches
    rounds: int
    """How often the batches of a step, or of several, are read (`count_steps`)."""


def chosen_hookpoints(cfg: TrainConfig, model: nn.Module) -> list[str]:
    """The hookpoints of `model`, with weights or without, that the options name, and A->B.

    Raises ValueError if an option names nothing in the model.
    """
    plain, pairs = chosen_pairs(cfg)
    found = [ARROW.join(_one_place(model, end, pair) for end in Wiring.of(pair, transcode=True).ends) for pair in pairs]
    if pairs and not plain:
        return list(dict.fromkeys(found))
    alone = lm.resolve_hookpoints(model, hookpoints=plain, layers=cfg.layers, layer_stride=cfg.layer_stride)
    return list(dict.fromkeys([*alone, *found]))


def chosen_pairs(cfg: TrainConfig) -> tuple[list[str], list[str]]:
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


def count_steps(cfg: TrainConfig, data: Extent, batches_at_once: int | None) -> int:
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


def left_out_note(cfg: TrainConfig, data: Extent, batches: int) -> str | None:
    """A sentence for sequences at the end of the data that fill no step of a run of `batches`.

    None if there are none, if their number is not known, and where max_tokens ends the run before.
    """
    read, available = batches * cfg.batch_size, data.num_to_train
    if available is None or read >= available or (cfg.max_tokens or sys.maxsize) < available * data.ctx_len:
        return None
    larger = [f"--{name}" for name in ("batch_size", "grad_acc_steps") if getattr(cfg, name, 1) > 1]
    return (
        f"{available - read:,} of the {available:,} sequences to train on are left out: at the end of the data they "
        f"fill no batch, or no step; lower {' or '.join(larger) or 'the number of processes'} to read more of them"
    )

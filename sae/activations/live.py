"""Activations of a language model at work."""

import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sae import lm
from sae.activations.reading import Reading, chosen_hookpoints, plan_reading
from sae.activations.source import Activations, Batch, LiveActivations
from sae.activations.store import HeldOut, model_name
from sae.config import TrainConfig
from sae.data.prefetch import ReadAhead
from sae.data.retry import Wait
from sae.data.source import TokenSource
from sae.dictionary.wiring import to_harvest

LOOK = 2048
"""Tokens of a look at held-out activations, about; two sequences at least."""


class LiveStore(HeldOut):
    """Store of a run that runs `model` on the tokens of `dataset`."""

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
    def num_to_train(self) -> int | None:
        """Sequences that may be trained on; None for a stream."""
        return self.tokens.num_to_train

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

    def first_held_out(self) -> Batch:
        """A few sequences of the first held-out batch; all of it if these are all excluded."""
        tokens = next(self.tokens.held_out_batches())
        few = tokens[: max(2, LOOK // self.ctx_len)]
        return self.source.batch(few if len(self.source.kept(few)) else tokens)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights of the `model`, of `model_b` if there is one, and of the `held_out` sequences."""
        return {**lm.fingerprints(self.model), "held_out": self.tokens.fingerprint()}

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

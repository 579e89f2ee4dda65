"""Batchtopk's threshold: that of the steps while it is trained, and its calibration on other tokens at the end."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.gradients import Weights, encoded
from sae.dictionary.losses import Ordinary, at_least_float32
from sae.dictionary.shards import Agree, LatentShards
from sae.dictionary.threshold import RunningThreshold
from sae.dictionary.wiring import Pair
from sae.ops.encode import Select


class Thresholds:
    """Batchtopk's two thresholds, both quantiles of one histogram of the activations of the newest steps.

    That of the steps keeps as many latents as training keeps now, and is what it selects by. That of the dictionary
    keeps its L0 at inference, is saved, and is what inference selects by. They are set together, whenever the
    histogram or the number changes; until a `Calibration` sets that of the dictionary by other tokens.
    """

    def __init__(self, l0: float, of_dictionary: Tensor) -> None:
        """`l0` is the dictionary's at inference, and `of_dictionary` its threshold (), which is written."""
        self._l0, self._of_dictionary = l0, of_dictionary
        self.of_steps = of_dictionary.clone()
        self.histogram = RunningThreshold(of_dictionary.device)

    @classmethod
    def of(cls, sae: Sae) -> "Thresholds | None":
        """The thresholds of a dictionary; None if its selection needs none."""
        return None if sae.threshold is None else cls(sae.cfg.l0, sae.threshold)

    def add(self, acts: Float[Tensor, "tokens width"]) -> None:
        """Count the activations of these tokens of the step, selected or not."""
        self.histogram.add(acts)

    def end_step(self, k: int, shards: LatentShards) -> None:
        """Let the step count, of which each shard has counted its own latents, and keep `k` from now on."""
        shards.sum_(self.histogram.step_counts[:-1])
        self.histogram.end_step()
        self.set(k)

    def set(self, k: int) -> None:
        """Keep `k` in the steps, and the dictionary's L0 in it."""
        self.resume(k)
        self._of_dictionary.copy_(self.histogram.value(self._l0))

    def select_as_trained(self, k: int) -> None:
        """Keep `k` in the dictionary as well, until the thresholds are set again."""
        self._of_dictionary.copy_(self.histogram.value(k))

    def resume(self, k: int) -> None:
        """Keep `k` in the steps. That of the dictionary stays, which may have been calibrated."""
        self.of_steps.copy_(self.histogram.value(k))


class Calibration:
    """A count, on given tokens and with the final weights in their type, of what a threshold keeps.

    Massive tokens do not count, as for the FVU. Each fires many times as many latents as others, and a few of them
    would take what all others are to have.
    """

    def __init__(self, sae: Sae, candidates: Select, agree: Agree, rule: Ordinary) -> None:
        """`candidates` are kept before the threshold, which is found among those that shards `agree` on.

        `rule` says which tokens are ordinary.
        """
        self._sae, self._candidates, self._agree, self._rule = sae, candidates, agree, rule
        self._counts, self._weights = RunningThreshold(sae.device), Weights.of(sae, sae.dtype)

    def add(self, pair: Pair) -> None:
        """Count these tokens; each shard counts its own latents."""
        acts = encoded(self._weights, pair.x, self._candidates, agree=self._agree).acts
        written = self._sae.scaled(at_least_float32(pair.x if pair.y is None else pair.y))
        self._counts.add(acts[self._rule.counts(written[:, : self._sae.spec.own_width]) > 0])

    def end(self) -> bool:
        """Set the threshold that keeps the dictionary's L0, if there are tokens; whether it changed."""
        self._sae.shards.sum_(self._counts.step_counts[:-1])
        self._counts.end_step()
        if not self._counts.counts[-1] or self._sae.threshold is None:
            return False
        before = self._sae.threshold.clone()
        self._sae.threshold.copy_(self._counts.value(self._sae.cfg.l0))
        return not torch.equal(before, self._sae.threshold)

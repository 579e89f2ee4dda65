"""Calibration of batchtopk's threshold on tokens that were not trained on, with the weights of the end."""

from jaxtyping import Float
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.gradients import Weights, encoded
from sae.dictionary.shards import LatentShards
from sae.dictionary.threshold import RunningThreshold
from sae.ops.encode import Select


class Calibration:
    """Counts on given tokens, with the weights of the end and in their type, what a threshold keeps."""

    def __init__(self, sae: Sae, candidates: Select, shards: LatentShards) -> None:
        """`candidates` are kept before the threshold, which is found among them."""
        self._sae, self._candidates, self._shards = sae, candidates, shards
        self._counts, self._weights = RunningThreshold(sae.device), Weights.of(sae, sae.dtype)

    def add(self, x: Float[Tensor, "tokens d_in"]) -> None:
        """Count these tokens, of which each shard has its own latents."""
        code = encoded(self._weights, x, self._candidates, shards=self._shards, by_threshold=True)
        self._counts.add(code.acts)

    def end(self) -> None:
        """Set the threshold that keeps k latents of a token in the mean; of no token nothing."""
        self._shards.sum_(self._counts.step_counts[:-1])
        self._counts.end_step()
        if self._counts.counts[-1] and self._sae.threshold is not None:
            self._sae.threshold.copy_(self._counts.value(self._sae.cfg.k))

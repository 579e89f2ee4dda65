"""Which latents stay. A selection maps pre-activations (tokens, latents) to values and indices, both (tokens, k)."""

from functools import partial

from sae import ops
from sae.config import SaeConfig
from sae.ops.encode import Select


def selection(cfg: SaeConfig) -> Select:
    """The selection that `cfg` asks for. TopK: Gao et al. 2024, arXiv:2406.04093, sec. 2.3."""
    return partial(ops.topk, k=cfg.k)

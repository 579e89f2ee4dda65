"""Which latents stay. A selection maps pre-activations (tokens, latents) to values and indices, both (tokens, k)."""

from functools import partial

from sae import ops
from sae.config import SaeConfig
from sae.ops.encode import Select


def selection(cfg: SaeConfig, *, k: int | None = None) -> Select:
    """The selection that `cfg` asks for, of another `k` if given. TopK: Gao et al. 2024, arXiv:2406.04093, sec. 2.3."""
    return partial(ops.topk, k=cfg.k if k is None else k)

"""Text and token files to batches of token sequences."""

from typing import TYPE_CHECKING, Any

from .load import TokenizerNeededError, load_data
from .memmap import MemmapTokens
from .sequences import as_sequences
from .tokenize import chunk_and_tokenize
from .tokens import TokenBatches

if TYPE_CHECKING:
    from sae.activations.cache.read import ActivationCache

__all__ = [
    "ActivationCache",
    "MemmapTokens",
    "TokenBatches",
    "TokenizerNeededError",
    "as_sequences",
    "chunk_and_tokenize",
    "load_data",
]


def __getattr__(name: str) -> Any:
    """`ActivationCache`, which lives in `sae.activations` and may be given in the place of a data set."""
    if name != "ActivationCache":
        raise AttributeError(f"module 'sae.data' has no attribute {name!r}")
    from sae.activations.cache.read import ActivationCache

    return ActivationCache

"""Text and token files to batches of token sequences."""

from .cache_read import ActivationCache
from .load import TokenizerNeededError, load_data
from .memmap import MemmapTokens
from .tokenize import chunk_and_tokenize
from .tokens import TokenBatches, as_sequences

__all__ = [
    "ActivationCache",
    "MemmapTokens",
    "TokenBatches",
    "TokenizerNeededError",
    "as_sequences",
    "chunk_and_tokenize",
    "load_data",
]

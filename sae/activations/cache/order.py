"""Where a shuffled cache has put each token: dealt to a shard at random, and permuted there.

Both depend on the cache's seed alone, so that they can be found again.
"""

import numpy as np
from jaxtyping import Int64

from sae.activations.cache.format import CacheHeader


def dealt(header: CacheHeader, batch: int, tokens: int) -> Int64[np.ndarray, " tokens"]:
    """The shard of each token of a batch, the batches counted from 1."""
    return _random(header.seed, 0, batch).integers(header.num_shards, size=tokens)


def permuted(header: CacheHeader, shard: int, tokens: int) -> Int64[np.ndarray, " tokens"]:
    """For each row of a shard, which of the tokens that were dealt to it is there."""
    return _random(header.seed, 1, shard).permutation(tokens)


def row_of_token(header: CacheHeader, batches: Int64[np.ndarray, " batches"]) -> Int64[np.ndarray, " tokens"]:
    """The row of each token in the order in which they were read; rows are counted through all shards.

    `batches` is how many tokens each batch had.
    """
    shards = [dealt(header, number, int(tokens)) for number, tokens in enumerate(batches, 1)]
    shard_of = np.concatenate([np.zeros(0, np.int64), *shards])
    tokens = np.argsort(shard_of, kind="stable")  # in the order in which the shards got them
    ends = np.cumsum(np.bincount(shard_of, minlength=header.num_shards))
    found = np.empty(len(tokens), np.int64)
    for shard, of_shard in enumerate(np.split(tokens, ends[:-1])):
        first = int(ends[shard]) - len(of_shard)
        found[of_shard[permuted(header, shard, len(of_shard))]] = np.arange(first, first + len(of_shard))
    return found


def _random(seed: int, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, purpose, number])

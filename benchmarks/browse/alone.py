"""The language model alone on the tokens of an index: `benchmarks.browse.alone MODEL RUN BATCH`, seconds on stdout.

It is loaded as `sae browse` loads it, and runs to the last hookpoint of the index, once over all tokens.
"""

import sys
import time
from collections.abc import Iterable

import torch

from sae import lm
from sae.browser import Index


def main(model_name: str, run: str, batch: int) -> None:
    """Print the seconds that the model takes, after a first batch that does not count."""
    index = Index.open(run)
    device = lm.check_device("cpu")
    model = lm.load_model(model_name, device=device, dtype=lm.compute_dtype(device), head=True)
    rows = torch.from_numpy(index.tokens.astype("int64")).view(-1, index.ctx_len).split(batch)
    last = _last(place.hookpoint for place in index.places.values())
    lm.harvest(model, rows[0], [last])
    start = time.perf_counter()
    for tokens in rows:
        lm.harvest(model, tokens, [last])
    print(time.perf_counter() - start)


def _last(hookpoints: Iterable[str]) -> str:
    return max(hookpoints, key=lambda name: int(name.rpartition(".")[2]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

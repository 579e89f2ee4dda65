"""Candidates for the k largest latents from a product in 8 bits, in C. Twin: `sae.ops.eight_bit.Int8Product` and topk.

Pre-activations are never in memory, and rounded only by what 8 bits leave of x and W_enc. It needs a processor that
multiplies unsigned by signed bytes: AVX512-VNNI, or AVX-VNNI.
"""

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae.ops.native import empty, library, over_rows, usable

_MOST_COLUMNS = 2**15
"""Sums of as many products stay within 32 bits."""


def covers(x: Tensor, W_enc: Tensor) -> bool:
    """Whether C multiplies these: float32, on a CPU that has the product."""
    return x.shape[1] <= _MOST_COLUMNS and usable(x, W_enc) and has_product()


@cache
def has_product() -> bool:
    """Whether this processor has the product, and a compiler that knows it."""
    return bool(_panel())


def _panel() -> int:
    """Latents that are multiplied together; 0 without the product."""
    built = library()
    return 0 if built is None else int(built.latents_in_panel())


def candidates(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, "latents"],
    columns: Float[Tensor, "d_in"],
    count: int,
) -> Int[Tensor, "tokens count"]:
    """The `count` latents with the largest pre-activations; of equal ones any. Both x / columns and W_enc · columns are
    rounded."""
    (latents, d_in), panel = W_enc.shape, _panel()
    fill = -latents % panel
    packed = empty((latents + fill) * (d_in + -d_in % 4), dtype=torch.uint8)
    units = empty(latents + fill).zero_()
    over_rows("pack", W_enc, (columns, packed, units))
    found = empty(len(x), count, dtype=torch.int64)
    bias = F.pad(b_enc, (0, fill), value=-torch.inf)
    over_rows("candidates", x, (1 / columns, packed, units, bias, latents, count, found))
    return found

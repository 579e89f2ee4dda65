"""The elementwise work of a transformer's block in bf16, one pass each, in C; without gradients.

PyTorch rounds after each operation; so do these, where it shows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.ops.native import computes_here, library, over_rows


def covers(*tensors: Tensor) -> bool:
    """Whether C reads these: bf16, on a CPU, each in one block, and there is a compiler."""
    plain = (t.is_cpu and t.dtype == torch.bfloat16 and t.is_contiguous() and not t.requires_grad for t in tensors)
    return computes_here() and all(plain) and library() is not None


def rms_norm(
    x: Float[Tensor, "*batch d"], weight: Float[Tensor, "d"], epsilon: float, *, widely: bool, plus_one: bool
) -> Float[Tensor, "*batch d"]:
    """weight · x / sqrt(mean x² + ε), with float32 inside (Zhang & Sennrich 2019, arXiv:1910.07467).

    x / rms(x) is rounded to bf16 before the product, as Llama does; `widely`: not, as Gemma, whose weight is also to be
    taken `plus_one`.
    """
    out = torch.empty_like(x)
    over_rows("rms_norm", x.view(-1, x.shape[-1]), (weight, int(widely), int(plus_one), float(epsilon), out))
    return out


def gated(
    gate: Float[Tensor, "*batch d"], up: Float[Tensor, "*batch d"], *, is_gelu: bool, out: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch d"]:
    """SiLU(gate) · up, or with the tanh form of GELU (Shazeer 2020, arXiv:2002.05202). `out` may be `gate` or `up`."""
    over_rows("gated", gate.view(-1, gate.shape[-1]), (up, int(is_gelu), out))
    return out


def rotate(
    x: Float[Tensor, "batch seq heads width"], cos: Float[Tensor, "angles width"], sin: Float[Tensor, "angles width"]
) -> Float[Tensor, "batch seq heads width"]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): x · cos + (−x₂, x₁) · sin, x₁ and x₂ the halves of
    a head. There are angles for each position of a sequence, or of all of them."""
    out, width = torch.empty_like(x), x.shape[-1]
    over_rows("rotate", x.view(-1, x.shape[-2] * width), (width, cos, sin, len(cos), out))
    return out

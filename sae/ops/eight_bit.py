"""The encoder product in 8 bits: it names candidates for the k largest latents, whose scores are then exact.

Rows and columns are scaled as in SmoothQuant (Xiao et al. 2022, arXiv:2211.10438, eq. 4): x / c times W · c, with c[d]
the root of the largest |x[d]|. So a few outlier dimensions of a language model do not take all the digits. Each token
and each latent then has a scale of its own. A CPU multiplies int8 through oneDNN, a GPU fp8 (e4m3).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.native.eight_bit as native
from sae.ops.decode import gather_dot
from sae.ops.encode import Select, chunk_tokens
from sae.ops.topk import topk

CANDIDATES = {"cpu": 1.5, "cuda": 2.0}
"""Candidates for each latent that stays. The share of the true top 32 among them was measured on SmolLM2-135M, layer 9,
after 50 steps. int8 has 0.9999 with 4,608 latents and 0.9997 with 18,432. fp8 with twice as many candidates has 0.9999
and 0.9998; bf16, without candidates, 0.992 and 0.986."""

_INT8, _FP8 = 127, torch.finfo(torch.float8_e4m3fn).max
_TINY = torch.finfo(torch.float32).tiny
_ROWS = 1024  # rows quantised at a time, so that the steps of quantising stay in the cache


MIN_LATENTS, MIN_TOKENS = 8192, 2048
"""Sizes from which PyTorch's product in int8 is faster than in bf16, quantising and scoring included. It gains 5 % at
2048 tokens and 9216 latents, 25 % at 8192 and 18,432 (d_in 576, k 32, two cores of a Zen 4). A CPU with AMX multiplies
bf16 as fast. There a step of 2048 tokens and 18,432 latents takes 0.55 s of one core's time in int8, and 0.48 in bf16
(an Intel Xeon)."""
MIN_LATENTS_COMPILED, MIN_PRE_ACTS_COMPILED = 4096, 2**22
"""Latents, and latents times tokens, from which ours in C is. With 4608 latents bf16 takes 1.2 times as long at 1024
tokens, and 1.3 at 4096. With 18,432 it takes 1.6 and 1.9, with 2304 as long (the same sizes and machine)."""


def pays(num_latents: int, tokens: int, device: torch.device) -> bool:
    """Whether 8-bit candidates are known to be faster for this many tokens and latents, and to be the right ones."""
    if device.type != "cpu" or torch.cpu._is_amx_tile_supported() or _lacks_product(device):
        return False
    if native.has_product():
        return num_latents >= MIN_LATENTS_COMPILED and num_latents * tokens >= MIN_PRE_ACTS_COMPILED
    return num_latents >= MIN_LATENTS and tokens >= MIN_TOKENS


def check_has_product(device: torch.device) -> None:
    """Raise ValueError if this device has no product in 8 bits."""
    if reason := _lacks_product(device):
        raise ValueError(f"encode_in_8bit needs a product in 8 bits, and {reason}; leave out --encode_in_8bit")


def _lacks_product(device: torch.device) -> str | None:
    """Reason why this device has no product in 8 bits; None if it has one."""
    if device.type == "cpu":
        of_torch = hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.cpu._is_vnni_supported()
        return None if of_torch or native.has_product() else "this processor has no AVX512-VNNI and no AVX-VNNI"
    if device.type == "cuda":
        enough = torch.cuda.get_device_capability(device) >= (8, 9)
        return None if enough else "fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper)"
    return f"there is none for {device.type}"


def encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, "latents"],
    select: Select,
    *,
    k: int,
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """select(x @ W_encᵀ + b_enc) for each token among its candidates for the k largest, without gradients.

    All tensors are float32. Values are exact; about one in ten thousand of the k largest latents is missed: `recall`
    measures it. Scales come from x and W_enc alone, so there is no state. Twin: `ops.encode`.
    """
    found = candidates(x, W_enc, b_enc, k)
    values, at = select(gather_dot(x, found, W_enc) + b_enc[found])
    return values, found.gather(1, at)


def candidates(
    x: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "latents d_in"], b_enc: Float[Tensor, "latents"], k: int
) -> Int[Tensor, "tokens candidates"]:
    """The latents with the largest pre-activations in 8 bits, `CANDIDATES` times k of them."""
    count = min(len(W_enc), round(k * CANDIDATES[x.device.type]))
    found = torch.empty(len(x), count, dtype=torch.int64, device=x.device)
    if not len(x):
        return found
    columns = x.abs().amax(0).clamp_min(_TINY).sqrt()
    columns /= columns.mean()
    if native.covers(x, W_enc):
        return native.candidates(x, W_enc, b_enc, columns, count)
    product = Fp8Product if x.is_cuda else Int8Product
    # x / columns is computed here and again for each chunk, so that it is never in memory as a whole.
    largest = torch.cat([(part / columns).abs_().amax(1) for part in x.split(_ROWS)]).clamp_min_(_TINY)
    prepared = product(W_enc, b_enc, columns)
    # In the order of their scales: the tokens of a chunk then have nearly one scale, which int8 needs for b_enc.
    for chunk in largest.argsort().split(chunk_tokens(len(W_enc), x.new_empty(0, dtype=torch.bfloat16))):
        found[chunk] = topk(prepared.pre_acts(x[chunk] / columns, largest[chunk]), count)[1]
    return found


def recall(
    x: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "latents d_in"], b_enc: Float[Tensor, "latents"], k: int
) -> Float[Tensor, ""]:
    """Share of the k largest positive pre-activations, computed in float32, that are among the candidates."""
    return share_found(candidates(x, W_enc, b_enc, k), x, W_enc, b_enc, k)


def share_found(
    found: Int[Tensor, "tokens some"],
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, "latents"],
    k: int,
) -> Float[Tensor, ""]:
    """`recall` of any choice of latents for each token."""
    values, exact = topk(torch.addmm(b_enc, x, W_enc.T), k)
    is_candidate = torch.zeros(len(x), len(W_enc), dtype=torch.bool, device=x.device)
    is_candidate.scatter_(1, found, True)
    counts = values > 0
    return (is_candidate.gather(1, exact) & counts).sum() / counts.sum().clamp_min(1)


class Int8Product:
    """x (uint8) times W_encᵀ (int8) on a CPU, through oneDNN."""

    def __init__(
        self, W: Float[Tensor, "latents d_in"], b: Float[Tensor, "latents"], columns: Float[Tensor, "d_in"]
    ) -> None:
        codes, self._scale = torch.empty_like(W, dtype=torch.int8), W.new_empty(len(W))
        for rows, into, scale in zip(W.split(_ROWS), codes.split(_ROWS), self._scale.split(_ROWS), strict=True):
            smooth = rows * columns
            torch.amax(smooth.abs(), 1, out=scale).clamp_min_(_TINY).div_(_INT8)
            into.copy_(smooth.mul_((1 / scale).unsqueeze(1)).round_())
        self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self._b, self._zeros = b, W.new_zeros(len(W), dtype=torch.int64)

    def pre_acts(
        self, smooth: Float[Tensor, "tokens d_in"], largest: Float[Tensor, "tokens"]
    ) -> Float[Tensor, "tokens latents"]:
        """Approximate pre-activations in units of each token's scale; `largest` is each token's largest |smooth|."""
        scale = largest / _INT8
        codes = (smooth / scale.unsqueeze(1)).round_().add_(128).to(torch.uint8)
        bias = self._b / scale.mean()
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 128, self._packed, self._scale, self._zeros, bias, 1.0, 0, torch.bfloat16, "none", [], ""
        )


class Fp8Product:
    """x times W_encᵀ, both in fp8 (e4m3), with a scale for each row. Fast on GPUs from Ada and Hopper on."""

    def __init__(
        self, W: Float[Tensor, "latents d_in"], b: Float[Tensor, "latents"], columns: Float[Tensor, "d_in"]
    ) -> None:
        smooth = W * columns
        scale = (smooth.abs().amax(1, keepdim=True) / _FP8).clamp_min_(_TINY)
        self._codes, self._scale, self._b = (smooth / scale).to(torch.float8_e4m3fn), scale.T, b.bfloat16()

    def pre_acts(
        self, smooth: Float[Tensor, "tokens d_in"], largest: Float[Tensor, "tokens"]
    ) -> Float[Tensor, "tokens latents"]:
        """Approximate pre-activations; `largest` is each token's largest |smooth|."""
        scale = (largest / _FP8).unsqueeze(1)
        codes, by_row = (smooth / scale).to(torch.float8_e4m3fn), F.ScalingType.RowWise
        pre_acts = F.scaled_mm(
            codes, self._codes.T, scale, by_row, self._scale, by_row, output_dtype=torch.bfloat16, use_fast_accum=True
        )
        return pre_acts.add_(self._b)

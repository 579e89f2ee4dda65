"""Initial values of a new dictionary: its scale, and a transcoder's weights, from the first tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae import ops
from sae.dictionary.autoencoder import Sae, normal_rows
from sae.dictionary.losses import spread
from sae.dictionary.shards import keep_best

AddUp = Callable[[list[Tensor]], None]
"""A function that adds to sums over tokens, in place, the sums over other processes' tokens."""

_RIDGE = 1e-3
"""Ridge of the skip connection's first fit, in units of the mean variance of a dimension."""


@torch.no_grad()
def best_encoder_scale(
    sae: Sae,
    x: Float[Tensor, "tokens d_in"],
    y: Float[Tensor, "tokens d_out"] | None = None,
    add_up: AddUp = lambda sums: None,
) -> Float[Tensor, ""]:
    """The factor on the code that minimises Σ‖y − x̂‖²: ⟨y − ŷ₀, x̂ − ŷ₀⟩ / ‖x̂ − ŷ₀‖², with ŷ₀ the output of no code;
    at least 0.

    `y` is what is to be written at its own place, `Sae.scaled`; None: x. The factor is 1 where nothing fires.
    """
    encoded, nothing = sae.encode(x), _without_code(sae, x)
    aim = (sae.scaled(x.float()) if y is None else y.float()) - nothing
    recon = sae.scaled(sae.decode(*encoded, x))[:, : sae.spec.own_width] - nothing
    energy, product = recon.square().sum(), (recon * aim).sum()
    add_up([energy, product])
    return torch.where(energy > 0, product / energy, 1.0).clamp_min(0)


def balance(standard_deviations: Float[Tensor, "hookpoints"], *, last: bool = False) -> Float[Tensor, "hookpoints"]:
    """The factors that give all hookpoints one standard deviation: their geometric mean, or the last one's.

    They are 1 for a single hookpoint, and where nothing varies, which the first look refuses.
    """
    logarithms = standard_deviations.double().log()
    factors = ((logarithms[-1] if last else logarithms.mean()) - logarithms).exp()
    return torch.where(logarithms.isfinite().all(), factors, 1.0).float()


@torch.no_grad()
def balance_(
    sae: Sae,
    x: Float[Tensor, "tokens d_out"],
    few: Float[Tensor, "some d_out"],
    add_up: AddUp,
    *,
    spare_massive: bool,
) -> list[str]:
    """Set the scales of a crosscoder, or of a layer of a cross-layer transcoder, by what is to be written, x.

    Every hookpoint then has the same variance per token. All layers agree on the scales: the last hookpoint's is 1.
    `few` decide which tokens are massive; these do not count if they are spared. Returns the hookpoints without
    variance.
    """
    assert sae.scale is not None
    found = []
    for part in sae.spec.parts.values():
        sums = spread(x[:, part], few[:, part], add_up)
        counted = sums.ordinary if spare_massive else sums.everything
        found.append((counted.total_variance() / counted.tokens).sqrt())
    factors = balance(torch.stack(found), last=sae.cfg.cross_layer)
    for part, factor in zip(sae.spec.parts.values(), factors, strict=True):
        sae.scale[part] = factor
    return [name for name, each in zip(sae.spec.parts, found, strict=True) if not each]


@torch.no_grad()
def start_transcoder_(
    sae: Sae, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"], add_up: AddUp
) -> None:
    """Set a new transcoder's weights by a few tokens: what each latent would best write by itself at its own place.

    b_enc = −W_enc mean(x). Row i of W_dec is Σ aᵢ (y − ŷ₀) / Σ aᵢ², the least squares of one latent, at
    unit length; the median length goes into the encoder. W_skip is the ridge regression of y on x.
    """
    x, y = x.float(), y.float()
    sums = [x.new_tensor(float(len(x))), x.sum(0), y.sum(0)]
    add_up(sums)
    mean_x, mean_y, own = sums[1] / sums[0], sums[2] / sums[0], sae.spec.own_width
    sae.b_dec.data[:own] = mean_y
    if sae.W_skip is not None:
        skip = _ridge(x - mean_x, y - mean_y, add_up)
        sae.W_skip.data[:own] = skip
        sae.b_dec.data[:own] -= skip @ mean_x
    sae.encoder.bias.data.copy_(-(sae.encoder.weight @ mean_x))
    found = ops.encode(x, sae.encoder.weight.data, sae.encoder.bias.data, lambda pre: ops.topk(pre, sae.cfg.k))
    acts, indices = keep_best(*found, sae.shards)
    left = y - _without_code(sae, x)
    segments = ops.LatentSegments(indices, sae.num_latents)
    rows, energy = segments.sum(acts, left), segments.sum_weights(acts.square())
    add_up([rows, energy])
    lengths = torch.linalg.vector_norm(rows, dim=1) / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    # One length for all: by lengths of their own few latents would win most tokens, and two thirds never fire.
    used = torch.cat(sae.shards.gathered(lengths))
    used = used[used > 0]
    length = used.median() if len(used) else lengths.new_ones(())
    part, parts, seed = sae.shards.part, sae.shards.parts, torch.Generator().manual_seed(0)
    noise = normal_rows(len(rows) * parts, rows.shape[1], part, parts, seed, "cpu").to(rows)
    sae.W_dec.data[:, :own] = F.normalize(torch.where((energy > 0).unsqueeze(1), rows, noise), dim=1)
    sae.encoder.weight.data.mul_(length)
    sae.encoder.bias.data.mul_(length)


def _without_code(sae: Sae, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "*tokens own"]:
    """The dictionary's output at its own place, `Sae.scaled`, if no latent fires."""
    own = slice(sae.spec.own_width)
    return sae.b_dec[own] if sae.W_skip is None else sae.b_dec[own] + x.float() @ sae.W_skip[own].T


def _ridge(
    x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"], add_up: AddUp
) -> Float[Tensor, "d_out d_in"]:
    """The linear map of x that is nearest to y, both centred."""
    squares, products = (x.T @ x).double(), (y.T @ x).double()
    add_up([squares, products])
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean().clamp_min(torch.finfo(squares.dtype).tiny))
    return torch.linalg.solve(squares, products.T).T.float()

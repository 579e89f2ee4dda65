"""Tokens with massive activations: so long that one outweighs hundreds of others (Sun et al. 2024, arXiv:2402.17762).

Attention sinks are the usual ones. `losses.spread` decides which tokens are massive. With the default recipe they count
neither in the loss's normaliser nor in AuxK.

They are few and nearly one direction, so their mean stands for all of them. Dozens of steps may lie between two of
them. Meanwhile ordinary tokens move the latents that reconstruct them, and their error, times their length, is most of
the FVU. They need little: after every step their mean is reconstructed exactly, by the normalised step of Kaczmarz
(1937). The k rows of W_dec that the mean uses move by ‖residual‖ / ‖code‖ together, far less than Adam moves them.

The choice of those k rows must be stable. Each has a k-th part of the length, so one row that rounding exchanges leaves
more error than all ordinary tokens. The latents just below the k-th are therefore kept a little further below.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae import ops
from sae.dictionary.gradients import Weights
from sae.dictionary.shards import WHOLE, Agree, LatentShards, keep_all
from sae.ops.encode import Select

_KEPT = 0.9
"""Share of the earlier weight that a step with massive tokens leaves."""
_MARGIN = 0.1
"""Margin by which unused latents are less active on the mean than every used one, as a share."""
_ROUNDS = 2
"""Corrections after a step. An optimizer's step may move the reconstruction of so long a token too far for one."""


class MassiveTokens:
    """Moving sum of massive tokens, which forgets old ones, and the reconstruction of their mean."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.total = torch.zeros(d_in + 1, device=device)
        """(d_in + 1,): Σ x over massive tokens, and their number last, both with the weights of a moving average."""
        self.step_total = torch.zeros_like(self.total)
        """Sums over the tokens of the step so far. Parts of the step may be added."""

    def add(
        self,
        centred: Float[Tensor, "tokens d_in"],
        b_dec: Float[Tensor, "d_in"],
        is_massive: Float[Tensor, "tokens"],
    ) -> None:
        """Add the tokens x − b_dec whose `is_massive` is 1; for the others it is 0."""
        number = is_massive.sum()
        self.step_total[:-1] += is_massive @ centred + number * b_dec
        self.step_total[-1] += number

    def some(self) -> bool:
        """Whether there were any, in this step or before. Waits for the device."""
        return bool(self.total[-1] + self.step_total[-1])

    def end_step(self, *, count: bool) -> None:
        """Let the step's tokens count, or not. Waits for the device if they do."""
        if count and self.step_total[-1]:
            self.total.mul_(_KEPT).add_(self.step_total)
        self.step_total.zero_()

    def reconstruct_(
        self,
        weights: Weights,
        select: Select,
        *,
        agree: Agree = keep_all,
        unit_norm: bool,
        shards: LatentShards = WHOLE,
    ) -> None:
        """Move the rows of W_dec that their mean uses to where they add up to it: dᵢ += aᵢ r / Σ a², r = x − x̂.

        Rows that have `unit_norm` keep their length. The code's length makes up for what that leaves of r: the rows of
        W_enc move for it. Other latents' rows of W_enc move to where these are clearly not used. Call it only if
        `some()`.
        """
        centred = (self.total[:-1] / self.total[-1]).to(weights.b_dec.dtype).sub(weights.b_dec).unsqueeze(0)
        for _ in range(_ROUNDS):
            acts, used = _code(weights, centred, select, agree, shards)
            residual = centred - shards.sum_(ops.decode(acts, used.unsqueeze(0), weights.W_dec))
            energy = shards.sum_(acts.square().sum()).clamp_min(torch.finfo(acts.dtype).tiny)
            weights.W_dec.index_add_(0, used, (acts / energy).T * residual)
            if unit_norm:
                weights.W_dec[used] = F.normalize(weights.W_dec[used], dim=1)
                _recode_(weights, centred, acts, used, shards)
            weights.follow_(used)


def _code(
    weights: Weights, centred: Float[Tensor, "1 d_in"], select: Select, agree: Agree, shards: LatentShards
) -> tuple[Float[Tensor, "1 used"], Int[Tensor, "used"]]:
    """The code of one token. Its unused latents are first made less active than the used ones, by `_MARGIN`."""
    W = weights.W_enc_compute
    pre_acts = torch.addmm(weights.b_enc.to(W.dtype), centred.to(W.dtype), W.T)
    acts, indices = agree(*select(pre_acts))
    acts, used = acts.to(centred.dtype), indices[0]
    least = shards.least_(torch.where(acts > 0, acts, torch.inf).amin())
    over = (pre_acts[0].to(acts.dtype) - (1 - _MARGIN) * least).clamp_min(0)
    over[used] *= acts[0] == 0
    near = over.nonzero().flatten()
    _move_encoder_(weights, near, -over[near], centred)
    return acts, used


def _move_encoder_(
    weights: Weights, rows: Int[Tensor, "rows"], change: Float[Tensor, "rows"], centred: Float[Tensor, "1 d_in"]
) -> None:
    """Change these pre-activations of a token by the least movement of W_enc: along x − b_dec."""
    along = centred / centred.square().sum().clamp_min(torch.finfo(centred.dtype).tiny)
    weights.W_enc[rows] += change.unsqueeze(1) * along
    weights.follow_(rows)


def _recode_(weights: Weights, centred: Tensor, acts: Tensor, used: Tensor, shards: LatentShards) -> None:
    """One step of steepest descent of ‖r‖² by the code. The rows of W_enc take it, each along x − b_dec.

    Δ = W_dec r where the code is positive, a ← a + Δ ‖Δ‖² / ‖W_decᵀ Δ‖². Together the rows move by ‖Δa‖ / ‖x − b_dec‖.
    """
    tiny = torch.finfo(acts.dtype).tiny
    rows = weights.W_dec[used]
    residual = centred - shards.sum_(acts @ rows)
    change = (residual @ rows.T).mul_(acts > 0)
    energy, moved = shards.sum_(change.square().sum()), shards.sum_(change @ rows)
    change = change * (energy / moved.square().sum().clamp_min(tiny))
    _move_encoder_(weights, used, change[0], centred)

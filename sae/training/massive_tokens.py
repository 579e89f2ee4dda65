"""Tokens with massive activations: so long that one outweighs hundreds of others (Sun et al. 2024, arXiv:2402.17762).

Attention sinks are the usual ones. Which tokens are massive, `losses.spread` says. With the default recipe neither the
loss's normaliser nor AuxK is about them.

They are few and nearly one direction, so their mean stands for all of them. Some dozens of steps apart, they are
reconstructed by latents that ordinary tokens move meanwhile, and their error, times their length, is most of the FVU.
What they need is little: to reconstruct their mean exactly, by the normalised step of Kaczmarz (1937), the k rows of
W_dec that it uses move by ‖residual‖ / ‖code‖ together, far less than Adam moves them. It is done after every step.

Which k rows those are must not hang by a thread: each has a k-th part of the length, so one that rounding exchanges
leaves more error than all ordinary tokens. The latents just below the k-th are therefore kept a little further below.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae import ops
from sae.dictionary.gradients import Weights
from sae.dictionary.shards import WHOLE, LatentShards
from sae.ops.encode import Select

_KEPT = 0.9
"""Share that a step with massive tokens leaves of the weight of those before."""
_MARGIN = 0.1
"""How much less than every latent that the mean uses, at least, the others are active on it, as a share."""
_ROUNDS = 2
"""Corrections after a step: what an optimizer's step does to so long a token may be too much for one."""


class MassiveTokens:
    """Their sum, with those of long ago forgotten, and how it is reconstructed."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.total = torch.zeros(d_in + 1, device=device)
        """(d_in + 1,): Σ x over massive tokens, and last their number, both with the weights of a moving average."""
        self.step_total = torch.zeros_like(self.total)
        """Sums over the tokens of the step so far; those of its parts may be added."""

    def add(
        self,
        centred: Float[Tensor, "tokens d_in"],
        b_dec: Float[Tensor, "d_in"],
        is_massive: Float[Tensor, "tokens"],
    ) -> None:
        """Add those of x − b_dec whose `is_massive` is 1; that of the others is 0."""
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

    def reconstruct_(self, weights: Weights, select: Select, *, unit_norm: bool, shards: LatentShards = WHOLE) -> None:
        """Move the rows of W_dec that their mean uses to where they add up to it: dᵢ += aᵢ r / Σ a², r = x − x̂.

        Rows that have `unit_norm` keep their length; what that leaves of r, the code's length makes good, for which the
        rows of W_enc move. Those of other latents move to where these are clearly not used. There must be `some`.
        """
        centred = (self.total[:-1] / self.total[-1]).to(weights.b_dec.dtype).sub(weights.b_dec).unsqueeze(0)
        for _ in range(_ROUNDS):
            acts, used = _code(weights, centred, select, shards)
            residual = centred - shards.sum_(ops.decode(acts, used.unsqueeze(0), weights.W_dec))
            energy = shards.sum_(acts.square().sum()).clamp_min(torch.finfo(acts.dtype).tiny)
            weights.W_dec.index_add_(0, used, (acts / energy).T * residual)
            if unit_norm:
                weights.W_dec[used] = F.normalize(weights.W_dec[used], dim=1)
                _recode_(weights, centred, acts, used, shards)
            weights.follow_(used)


def _code(
    weights: Weights, centred: Float[Tensor, "1 d_in"], select: Select, shards: LatentShards
) -> tuple[Float[Tensor, "1 used"], Int[Tensor, "used"]]:
    """The code of one token, whose other latents it first makes less active than all that are used, by `_MARGIN`."""
    W = weights.W_enc_compute
    pre_acts = torch.addmm(weights.b_enc.to(W.dtype), centred.to(W.dtype), W.T)
    acts, indices = shards.keep_best(*select(pre_acts))
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
    """One step of steepest descent of ‖r‖² by the code, which the rows of W_enc take, each along x − b_dec.

    Δ = W_dec r where the code is positive, a ← a + Δ ‖Δ‖² / ‖W_decᵀ Δ‖². Together the rows move by ‖Δa‖ / ‖x − b_dec‖.
    """
    tiny = torch.finfo(acts.dtype).tiny
    rows = weights.W_dec[used]
    residual = centred - shards.sum_(acts @ rows)
    change = (residual @ rows.T).mul_(acts > 0)
    energy, moved = shards.sum_(change.square().sum()), shards.sum_(change @ rows)
    change = change * (energy / moved.square().sum().clamp_min(tiny))
    _move_encoder_(weights, used, change[0], centred)

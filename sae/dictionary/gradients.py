"""The gradient of the training loss of one dictionary, written out: every part but the encoder product is sparse.

With N the tokens of a step, v the normaliser (variance per token), y what is to be written (x itself for an
autoencoder), r = x̂ − y and e = −r held constant,

    loss = Σ ‖r‖² / (N v)  +  auxk_alpha · min(num_dead / k_aux, 1) · Σ ‖ê − e‖² / (N v).

It is linear in the tokens: gradients of any split of the same tokens add up to the same sum. A token's own gradient may
be limited (`token_shares`), which keeps it so. `tests/support/oracle.py` holds the dense autograd twin.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.kernels as kernels
from sae import ops
from sae.dictionary.autoencoder import Sae
from sae.dictionary.levels import Levels, level_weights
from sae.dictionary.losses import VarianceSums, auxk_scale
from sae.dictionary.shards import WHOLE, Agree, LatentShards, keep_all, keep_best
from sae.ops.encode import Encode, Select, chunk_tokens
from sae.ops.segments import MatrixRows, SummedRows


class Weights(NamedTuple):
    """Parameters as the step reads them. On a GPU both matrices exist in the compute type too, on a CPU the encoder."""

    W_enc: Float[Tensor, "latents d_in"]
    W_dec: Float[Tensor, "latents d_out"]
    b_enc: Float[Tensor, "latents"]
    b_dec: Float[Tensor, "d_out"]
    W_enc_compute: Float[Tensor, "latents d_in"]
    W_dec_compute: Float[Tensor, "latents d_out"]
    """W_dec for gathering rows, in the compute type: a GPU waits for the memory that they are read from."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    centred: bool = True
    """Whether b_dec is subtracted from what is read."""
    scale: Float[Tensor, "d_in"] | None = None
    """Factors by which a crosscoder multiplies what it reads and what it is to write."""
    decodes_others: bool = False
    """Whether W_dec decodes other layers' codes too: decoders tied by target."""

    @classmethod
    def of(cls, sae: Sae, compute_dtype: torch.dtype) -> "Weights":
        """Views of the parameters, and copies of the matrices."""
        W_enc, W_dec = sae.encoder.weight.detach(), sae.W_dec.detach()
        return cls(
            W_enc=W_enc,
            W_dec=W_dec,
            b_enc=sae.encoder.bias.detach(),
            b_dec=sae.b_dec.detach(),
            W_enc_compute=W_enc.to(compute_dtype),
            W_dec_compute=W_dec.to(compute_dtype) if kernels.usable(W_dec) else W_dec,
            W_skip=None if sae.W_skip is None else sae.W_skip.detach(),
            centred=bool(sae.spec.centred),
            scale=sae.scale if sae.spec.is_autoencoder else None,
            decodes_others=sae.cfg.tied_by_target,
        )

    def read(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        """Input of the encoder's product: x − b_dec, or x itself; for a crosscoder scale · x − b_dec."""
        x = x.to(self.b_dec.dtype)
        x = x if self.scale is None else x * self.scale
        return x - self.b_dec if self.centred else x

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameters that have a copy, with the copy, by name."""
        pairs = {"encoder.weight": (self.W_enc, self.W_enc_compute), "W_dec": (self.W_dec, self.W_dec_compute)}
        return {name: pair for name, pair in pairs.items() if pair[0] is not pair[1]}

    def copies(self) -> dict[str, Tensor]:
        """The copies by the names of the parameters that they have to follow."""
        return {name: copy for name, (_, copy) in self._pairs().items()}

    def follow_(self, rows: Int[Tensor, "rows"]) -> None:
        """Bring these rows of the copies up to date after the parameters have changed."""
        for parameter, copy in self._pairs().values():
            copy[rows] = parameter[rows].to(copy.dtype)


class Code(NamedTuple):
    """The code of some tokens, and its inputs."""

    centred: Float[Tensor, "tokens d_in"]
    """The encoded activations, in the type of the parameters."""
    low: Float[Tensor, "tokens d_in"]
    """The encoder's input, in the type of its product."""
    acts: Float[Tensor, "tokens width"]
    """Activations in the type of the parameters. A latent with 0 did not fire."""
    indices: Int[Tensor, "tokens width"]


def encoded(
    weights: Weights,
    x: Float[Tensor, "tokens d_in"],
    select: Select,
    *,
    encode: Encode = ops.encode,
    agree: Agree = keep_all,
) -> Code:
    """The code of these tokens. `agree` says what shards keep of what each has selected."""
    centred, W = weights.read(x), weights.W_enc_compute
    low = centred.to(W.dtype)
    acts, indices = agree(*encode(low, W, weights.b_enc.to(W.dtype), select))
    return Code(centred, low, acts.to(centred.dtype), indices)


def written(weights: Weights, code: Code, bags: ops.Bags, shards: LatentShards = WHOLE) -> Float[Tensor, "bags d_out"]:
    """The dictionary's output for a code, without b_dec: for each bag, and by the skip connection in level 0.

    `bags` are the entries of this part of the code; the `shards` have the others.
    """
    out = shards.sum_(ops.decode_bags(bags, weights.W_dec))
    if weights.W_skip is not None:
        out[: len(code.centred)] += code.centred @ weights.W_skip.T
    return out


class Objective(NamedTuple):
    """What a step minimises: scale · Σ_tokens Σ_levels w_j ‖x̂_j − y‖² / Σ w, with `Levels.weights`."""

    scale: float | Tensor
    limit: float | Tensor | None = None
    """Limit on the product of norms that leaves a share of each token's gradient (`token_shares`). None: all of it."""
    longest: Float[Tensor, ""] | None = None
    """Tokens with ‖y − b_dec‖ above it are massive, and left out of what is reported. None: no token is massive."""
    levels: Levels | None = None
    """Nested reconstructions. None: one."""


class Gradients(NamedTuple):
    """Gradients of the loss on some tokens, in the type of the parameters."""

    W_enc: MatrixRows
    """(latents, d_in); on a CPU computed a few rows at a time, when the optimizer takes them."""
    b_enc: Float[Tensor, "latents"]
    W_dec: MatrixRows
    """(latents, d_out); likewise."""
    b_dec: Float[Tensor, "d_out"]
    radial: Float[Tensor, "latents"]
    """⟨W_dec gradient, W_dec⟩ of each row: the part that a row of unit length must not follow. The encoder needs the
    dot products with W_dec anyway, so this costs no pass over the rows."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    """Gradient of the linear map beside the code, if there is one."""
    by_activation: Float[Tensor, "latents"] | None = None
    """Σ activation · its gradient. None: it is `radial`, as W_dec decodes this code and no other."""

    @classmethod
    def zeros_like(cls, weights: Weights) -> "Gradients":
        """Gradients that are 0: the sum over no tokens."""
        return cls(
            W_enc=torch.zeros_like(weights.W_enc),
            b_enc=torch.zeros_like(weights.b_enc),
            W_dec=torch.zeros_like(weights.W_dec),
            b_dec=torch.zeros_like(weights.b_dec),
            radial=torch.zeros_like(weights.b_enc),
            W_skip=None if weights.W_skip is None else torch.zeros_like(weights.W_skip),
            by_activation=torch.zeros_like(weights.b_enc) if weights.decodes_others else None,
        )

    def dense(self) -> list[Tensor]:
        """The gradients as tensors, in the order of the fields, without those that are None."""
        return [rows[:] for rows in self if rows is not None]

    def densified(self) -> "Gradients":
        """The same with whole matrices."""
        return Gradients(*(None if rows is None else rows[:] for rows in self))  # type: ignore[arg-type]

    def plus(self, other: "Gradients", *, lazily: bool = False) -> "Gradients":
        """The sum of these gradients and those of other tokens.

        The matrices are dense, in the memory of these if they are dense already. `lazily`: they are computed a few rows
        at a time, and what both are computed from is kept.
        """
        if lazily:
            b_enc, b_dec, radial = self.b_enc + other.b_enc, self.b_dec + other.b_dec, self.radial + other.radial
            W_enc, W_dec = SummedRows(self.W_enc, other.W_enc), SummedRows(self.W_dec, other.W_dec)
            pairs = (self.W_skip, other.W_skip), (self.by_activation, other.by_activation)
            skip, by_activation = (None if a is None or b is None else a + b for a, b in pairs)
            return Gradients(W_enc, b_enc, W_dec, b_dec, radial, skip, by_activation)
        total = self.densified()
        for mine, theirs in zip(total.dense(), (rows for rows in other if rows is not None), strict=True):
            mine.add_(theirs[:])
        return total

    def by_parameter(self) -> dict[str, MatrixRows]:
        """The gradients by the names of `Sae`'s parameters."""
        found = {"encoder.weight": self.W_enc, "encoder.bias": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return found if self.W_skip is None else found | {"W_skip": self.W_skip}


class Reconstruction(NamedTuple):
    """What one micro-batch leaves behind: the code, the residual, and the sums that are reported."""

    centred: Float[Tensor, "tokens d_in"]
    """The encoded activations: x − b_dec, or x for a transcoder."""
    residual: Float[Tensor, "tokens d_out"]
    """x̂ − y, with the whole code."""
    fired: Bool[Tensor, "*entries"]
    top_indices: Int[Tensor, "*entries"]
    squared_error: Float[Tensor, ""]
    """Σ ‖x̂ − y‖² over the ordinary tokens."""
    variance: VarianceSums
    """Variance of the ordinary tokens of y, with shift b_dec."""
    ordinary: Float[Tensor, "tokens"] | None = None
    """1 for an ordinary token, 0 for a massive one (`massive_tokens`). None: all are ordinary."""

    @classmethod
    def of(
        cls,
        target: Float[Tensor, "tokens d_out"],
        residual: Float[Tensor, "tokens d_out"],
        top_indices: Int[Tensor, "*entries"],
        longest: Float[Tensor, ""] | None,
        *,
        centred: Float[Tensor, "tokens d_in"] | None = None,
        fired: Bool[Tensor, "*entries"] | None = None,
    ) -> "Reconstruction":
        """A reconstruction of y with the sums over its ordinary tokens: those with ‖y − b_dec‖ of at most `longest`.

        `target` is y − b_dec. `centred` is what was encoded; None: `target`. `fired`: None means that all entries did.
        """
        centred = target if centred is None else centred
        fired = torch.ones_like(top_indices, dtype=torch.bool) if fired is None else fired
        if longest is None:
            squared_error = residual.flatten().dot(residual.flatten())
            return cls(centred, residual, fired, top_indices, squared_error, VarianceSums.of(target))
        ordinary = (torch.linalg.vector_norm(target, dim=1) <= longest).to(target.dtype)
        squared_error = ordinary.dot(torch.linalg.vector_norm(residual, dim=1).square())
        variance = VarianceSums.of(target, ordinary)
        return cls(centred, residual, fired, top_indices, squared_error, variance, ordinary)


def pullback(
    weights: Weights,
    code: Code,
    y: Float[Tensor, "tokens d_out"] | None,
    objective: Objective,
    *,
    ragged: bool = False,
    shards: LatentShards = WHOLE,
) -> tuple[Gradients, Reconstruction]:
    """The gradient of the objective by all weights. `y` is what is to be written; None: what was read.

    A code that is `ragged`, or has levels, is computed entry by entry, which costs what fired and not its width.
    """
    target = code.centred if y is None else y.to(weights.b_dec.dtype) - weights.b_dec
    if not is_rectangular(objective.levels, ragged=ragged, writes_what_it_reads=y is None):
        return _pullback_of_bags(weights, code, target, objective, shards)
    centred, low, top_acts, top_indices = code
    W, W_dec = weights.W_enc_compute, weights.W_dec_compute
    fired = top_acts > 0
    residual = shards.sum_(ops.decode(top_acts, top_indices, W_dec)).sub_(centred)
    recon = Reconstruction.of(centred, residual, top_indices, objective.longest, fired=fired)

    slope = 2 * objective.scale  # of the loss, by the reconstruction: slope · pull, which needs no memory beside pull's
    limit = objective.limit
    pull = residual if limit is None else residual * token_shares(centred, residual, limit).unsqueeze(1)
    grad_pre = ops.gather_dot(pull, top_indices, W_dec).mul_(fired).mul_(slope)
    rows = pull.to(W_dec.dtype), centred if W_dec.dtype == centred.dtype else low  # to gather, in W_dec's type
    sums = ops.LatentSegments(top_indices, len(W)).sum_pair(top_acts * slope, rows[0], grad_pre, rows[1])
    grads = Gradients(
        W_enc=sums.b,
        b_enc=sums.weights_b,
        W_dec=sums.a,
        # b_dec is added to x̂ and subtracted from x: the latter reaches it through every pre-activation that fired.
        b_dec=pull.sum(0) * slope - shards.sum_(sums.weights_b @ weights.W_enc),
        radial=sums.products / slope,
    )
    return grads, recon


def is_rectangular(levels: Levels | None, *, ragged: bool, writes_what_it_reads: bool) -> bool:
    """Whether `pullback` computes all entries of a code, of which there are as many in each step, fired or not."""
    return not ragged and levels is None and writes_what_it_reads


def _pullback_of_bags(
    weights: Weights,
    code: Code,
    target: Float[Tensor, "tokens d_out"],
    objective: Objective,
    shards: LatentShards,
) -> tuple[Gradients, Reconstruction]:
    """The gradients of a code whose entries name their token and level. `target` is y − b_dec."""
    levels, tokens, by_level = objective.levels, len(target), level_weights(objective.levels)
    count = len(by_level)
    level = None if levels is None else levels.at(code.acts, code.indices, shards)
    bags = ops.Bags.of(code.acts, code.indices, level, count)
    residuals = shards.sum_(ops.decode_bags(bags, weights.W_dec)).view(count, tokens, -1)
    residuals[0] -= target if weights.W_skip is None else target - code.centred @ weights.W_skip.T
    for level_before, residual in zip(residuals, residuals[1:], strict=False):
        residual += level_before
    residual = residuals[-1]
    recon = Reconstruction.of(target, residual, bags.indices, objective.longest, centred=code.centred)

    slope, limit = 2 * objective.scale, objective.limit
    shares = residual.new_ones(tokens) if limit is None else token_shares(code.centred, residual, limit)
    pulls = residuals * (shares.new_tensor(by_level).outer(shares) / sum(by_level)).unsqueeze(2)
    for j in reversed(range(count - 1)):  # Σ_{j ≥ b}
        pulls[j] += pulls[j + 1]
    grad_pre = ops.gather_dot_bags(pulls.flatten(0, 1), bags, weights.W_dec) * slope
    sums = ops.LatentSegments(bags.indices, len(weights.W_enc)).sum_pair(
        bags.acts * slope, pulls.flatten(0, 1), grad_pre, code.centred, row_of=(bags.bag, bags.token)
    )
    b_dec = pulls[0].sum(0) * slope
    if weights.centred:
        b_dec = b_dec - shards.sum_(sums.weights_b @ weights.W_enc)
    skip = None if weights.W_skip is None else (pulls[0].T @ code.centred) * slope
    radial = sums.products / slope
    by_activation = radial.clone() if weights.decodes_others else None  # here it has no other code
    grads = Gradients(sums.b, sums.weights_b, sums.a, b_dec, radial, skip, by_activation)
    return grads, recon


class JointPull(NamedTuple):
    """What `pullback_with_others` needs of a code where other dictionaries add to x̂, and several hookpoints may be
    written.
    """

    bags: ops.Bags
    """The entries of the code that fired."""
    residual: Float[Tensor, "tokens d_out"]
    """x̂ − y, of the whole code."""
    own_pull: Float[Tensor, "tokens own"]
    """Gradient by b_dec, in units of 2 · `Objective.scale`: the weighted mean of x̂_j − y over the levels, at its own
    place."""
    pull: Float[Tensor, "bags d_out"]
    """Likewise by what its decoder makes, for the entries of each bag. Its rows may be apart in memory."""
    shares: Float[Tensor, "tokens"]
    """Share of each token's gradient that is followed (`token_shares`)."""


def pullback_with_others(
    weights: Weights, code: Code, target: Float[Tensor, "tokens own"], objective: Objective, joint: JointPull
) -> tuple[Gradients, Reconstruction]:
    """The same for a transcoder to whose output others add; `target` is y − b_dec at its own place.

    No gradient of a token is ever written down: what decides a weight's gradient are the pull and a number an entry.
    """
    bags, pull, own = joint.bags, joint.pull, target.shape[1]
    residual = joint.residual[:, :own]
    recon = Reconstruction.of(target, residual, bags.indices, objective.longest, centred=code.centred)
    weighted = 2 * objective.scale * joint.shares
    slope = weighted[bags.token]
    grad_pre = ops.gather_dot_bags(pull, bags, weights.W_dec) * slope
    segments = ops.LatentSegments(bags.indices, len(weights.W_enc))
    b_dec = torch.zeros_like(weights.b_dec)
    b_dec[:own] = weighted @ joint.own_pull
    grads = Gradients(
        W_enc=segments.rows(grad_pre, code.centred, bags.token),
        b_enc=segments.sum_weights(grad_pre),
        W_dec=segments.rows(bags.acts * slope, pull, bags.bag),
        b_dec=b_dec,
        radial=segments.sum_weights(bags.acts * grad_pre),
        W_skip=None if weights.W_skip is None else pull[: len(target)].T @ (code.centred * weighted.unsqueeze(1)),
    )
    return grads, recon


def token_shares(
    centred: Float[Tensor, "tokens d_in"], residual: Float[Tensor, "tokens d_out"], limit: float | Tensor
) -> Float[Tensor, "tokens"]:
    """min(1, limit / (‖x − b_dec‖ ‖x̂ − x‖)): the share of each token's gradient that is followed.

    The product of the norms bounds one token's gradient by the rows of both matrices, up to a factor that all tokens
    share. Single examples' gradients are clipped as in Abadi et al. 2016, arXiv:1607.00133, without noise.
    """
    size = torch.linalg.vector_norm(centred, dim=1) * torch.linalg.vector_norm(residual, dim=1)
    return (limit / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0)


def add_auxk_gradients_(
    grads: Gradients,
    weights: Weights,
    recon: Reconstruction,
    dead: Int[Tensor, "dead"],
    *,
    scale: float | Tensor,
    spare_massive: bool = False,
    dtype: torch.dtype | None = None,
    shards: LatentShards = WHOLE,
    num_dead: int | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of scale · min(num_dead / k_aux, 1) · Σ ‖ê − e‖² to `grads`.

    Returns Σ ‖ê − e‖² over the ordinary tokens. With `spare_massive` the gradient is that sum's alone. Products are
    computed in `dtype`, by default the encoder's.

    e = y − x̂ is held constant; ê decodes, without b_dec, the k_aux = d_out / 2 largest ReLU'd pre-activations among
    the `dead` latents. Their rows are gathered once, so the cost follows the number of dead latents. `num_dead` counts
    those of all `shards`. Source: Gao et al. 2024, arXiv:2406.04093, sec. 2.4 and app. A.2.
    """
    k_aux = max(1, recon.residual.shape[1] // 2)
    num_dead = len(dead) if num_dead is None else num_dead
    scale = scale * auxk_scale(num_dead, k_aux)
    # Gathered in the type of the products, so that a bf16 product costs what it costs elsewhere.
    dtype = weights.W_enc_compute.dtype if dtype is None else dtype
    W_enc, b_enc, W_dec = (t[dead].to(dtype) for t in (weights.W_enc, weights.b_enc, weights.W_dec))
    total = recon.residual.new_zeros(())
    grad_W_enc, grad_W_dec = (torch.zeros_like(t[dead]) for t in (weights.W_enc, weights.W_dec))
    grad_b_enc, radial = torch.zeros_like(grad_W_dec[:, 0]), torch.zeros_like(grad_W_dec[:, 0])
    chunk = chunk_tokens(num_dead, grad_W_dec)
    counts = recon.residual.new_ones(len(recon.residual)) if recon.ordinary is None else recon.ordinary
    tensors = recon.centred, recon.residual, counts
    for centred, residual, ordinary in zip(*(tensor.split(chunk) for tensor in tensors), strict=True):
        low = centred.to(dtype)
        pre_acts = torch.addmm(b_enc, low, W_enc.T)
        acts = pre_acts.relu() if num_dead <= k_aux else _dense_topk(pre_acts, k_aux, shards)
        error = shards.sum_((acts @ W_dec).to(residual.dtype)).add_(residual)  # ê − e, with e = −residual
        total = total + ordinary.dot(torch.linalg.vector_norm(error, dim=1).square())
        if spare_massive:
            error.mul_(ordinary.unsqueeze(1))
        grad_recon = error.mul_(2 * scale).to(dtype)
        grad_pre = grad_recon @ W_dec.T
        radial.add_((acts * grad_pre).sum(0, dtype=radial.dtype))
        grad_pre.mul_(acts > 0)
        grad_W_dec.add_(acts.T @ grad_recon)
        grad_W_enc.add_(grad_pre.T @ low)
        grad_b_enc.add_(grad_pre.sum(0, dtype=radial.dtype))
    added = {"W_enc": grad_W_enc, "b_enc": grad_b_enc, "W_dec": grad_W_dec, "radial": radial}
    added |= {} if grads.by_activation is None else {"by_activation": radial}
    for name, rows in added.items():
        getattr(grads, name).index_add_(0, dead, rows)
    if weights.centred:
        grads.b_dec.sub_(shards.sum_(grad_b_enc @ weights.W_enc[dead]))
    return total


def _dense_topk(pre_acts: Float[Tensor, "tokens dead"], k: int, shards: LatentShards) -> Float[Tensor, "tokens dead"]:
    """The k largest entries of each row, ReLU'd, counting the other shards' rows too; 0 elsewhere."""
    values, indices = pre_acts.topk(min(k, pre_acts.shape[1]), dim=-1, sorted=False)
    missing = k - values.shape[1]  # as many candidates from everybody: zeros, which change nothing
    values, indices = keep_best(F.pad(values.relu(), (0, missing)), F.pad(indices, (0, missing)), shards)
    dense = torch.zeros_like(pre_acts)
    return dense.scatter_add_(1, indices, values) if pre_acts.shape[1] else dense

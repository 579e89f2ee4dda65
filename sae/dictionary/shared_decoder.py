"""A decoder that several layers' codes share: cross-layer transcoders whose decoders are tied by target.

    ŷ^l = Σ_{s ≤ l} Σ_i c_i^{s→l} a_i^s W_dec^l[i] + b^l

With r^l the pull on ŷ^l, the gradients are

    by W_dec^l[i]:   Σ_tokens Σ_{s ≤ l} c_i^{s→l} a_i^s r^l
    by c_i^{s→l}:    Σ_tokens a_i^s ⟨r^l, W_dec^l[i]⟩
    by a_i^s:        Σ_{l ≥ s} c_i^{s→l} ⟨r^l, W_dec^l[i]⟩
"""

from typing import NamedTuple

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae import ops
from sae.dictionary.gradients import Code, Gradients, Objective, Reconstruction, Weights
from sae.ops.segments import MatrixRows


class Codes(NamedTuple):
    """The codes of all layers of a cross-layer transcoder."""

    acts: Float[Tensor, "layers tokens width"]
    indices: Int[Tensor, "layers tokens width"]
    level: Int[Tensor, "layers tokens width"] | None = None
    """Level of each entry, where reconstructions are nested."""
    levels: int = 1


class Shared(NamedTuple):
    """Entries that the decoder of layer l decodes: of the codes of the layers s ≤ l."""

    bags: ops.Bags
    """Entries by level and token. `place` is in the codes side by side, (tokens, sources · width)."""
    factors: Float[Tensor, "entries"]
    """c^{s→l} of each entry's latent."""
    source: Int[Tensor, "entries"]
    """Layer s of each entry, from 0."""
    shape: tuple[int, int, int]
    """Tokens, sources (l + 1) and the width of a code."""

    @classmethod
    def of(cls, codes: Codes, factors: Float[Tensor, "sources latents"]) -> "Shared":
        """The entries of the first layers, as many as there are `factors` of."""
        sources, (_, tokens, width) = len(factors), codes.acts.shape
        acts, indices = (_side_by_side(each[:sources]) for each in (codes.acts, codes.indices))
        level = None if codes.level is None else _side_by_side(codes.level[:sources])
        bags = ops.Bags.of(acts, indices, level, codes.levels)
        source = bags.place % (sources * width) // width
        return cls(bags, factors[source, bags.indices], source, (tokens, sources, width))

    @property
    def decoded(self) -> ops.Bags:
        """The entries as the decoder takes them: c a."""
        return self.bags._replace(acts=self.bags.acts * self.factors)

    def pulled(
        self, W_dec: Float[Tensor, "latents d"], pull: Float[Tensor, "bags d"], weights: Float[Tensor, "sources tokens"]
    ) -> "DecoderGradients":
        """What the pull on the decoder's output makes of it. `weights` are those of each source's tokens for W_dec."""
        bags, (tokens, sources, width) = self.bags, self.shape
        dots = ops.gather_dot_bags(pull, bags, W_dec)
        # By latent and then by source: one sort serves the sums over both.
        segments = ops.LatentSegments(bags.indices * sources + self.source, len(W_dec) * sources)
        by_latent, weighted = segments.joined(sources), self.decoded.acts * weights[self.source, bags.token]
        acts = dots.new_zeros(tokens * sources * width)
        acts[bags.place] = dots * self.factors
        return DecoderGradients(
            W_dec=by_latent.rows(weighted, pull, bags.bag),
            radial=by_latent.sum_weights(weighted * dots),
            factors=segments.sum_weights(bags.acts * dots).view(-1, sources).T,
            acts=acts.view(tokens, sources, width).transpose(0, 1),
        )


class DecoderGradients(NamedTuple):
    """Gradients of one layer's loss by its decoder, and by the codes of all layers up to it."""

    W_dec: MatrixRows
    """Matrix (latents, d), weighted by token as the next one is; the others are not."""
    radial: Float[Tensor, "latents"]
    """⟨W_dec gradient, W_dec⟩ of each row."""
    factors: Float[Tensor, "sources latents"]
    """Gradient by c^{s→l}."""
    acts: Float[Tensor, "sources tokens width"]
    """Gradient by each entry of the codes; 0 where it did not fire."""


class SharedPull(NamedTuple):
    """What `pullback_shared` needs of a layer's code and decoder, where decoders are shared."""

    bags: ops.Bags
    """The entries of the code that fired."""
    residual: Float[Tensor, "tokens own"]
    """ŷ − y at its own place, of all codes."""
    own_pull: Float[Tensor, "tokens own"]
    """Gradient by b_dec, in units of 2 · `Objective.scale`."""
    acts: Float[Tensor, "tokens width"]
    """Likewise by the code: the sum over all layers that it is decoded for."""
    decoder: DecoderGradients
    """Gradients by its own decoder, in units of 1."""
    shares: Float[Tensor, "tokens"]
    """Share of each token's gradient that is followed (`token_shares`)."""


def pullback_shared(
    weights: Weights, code: Code, target: Float[Tensor, "tokens own"], objective: Objective, joint: SharedPull
) -> tuple[Gradients, Reconstruction]:
    """The gradients by a layer's weights; `target` is y − b_dec at its own place."""
    bags = joint.bags
    recon = Reconstruction.of(target, joint.residual, bags.indices, objective.longest, centred=code.centred)
    weighted = 2 * objective.scale * joint.shares
    grad_pre = joint.acts.flatten()[bags.place] * weighted[bags.token]
    segments = ops.LatentSegments(bags.indices, len(weights.W_enc))
    grads = Gradients(
        W_enc=segments.rows(grad_pre, code.centred, bags.token),
        b_enc=segments.sum_weights(grad_pre),
        W_dec=joint.decoder.W_dec,
        b_dec=weighted @ joint.own_pull,
        radial=joint.decoder.radial,
        W_skip=None if weights.W_skip is None else joint.own_pull.T @ (code.centred * weighted.unsqueeze(1)),
        by_activation=segments.sum_weights(bags.acts * grad_pre),
    )
    return grads, recon


def _side_by_side(codes: Shaped[Tensor, "layers tokens width"]) -> Shaped[Tensor, "tokens all"]:
    return codes.transpose(0, 1).flatten(1)

"""Training end to end: the dictionaries sit inside the model's forward, and its predictions are the loss."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae import lm
from sae.dictionary.autoencoder import Encoded
from sae.dictionary.cross_layer import coders
from sae.dictionary.gradients import Gradients, Reconstruction
from sae.dictionary.losses import divergence
from sae.training.learner import SaeLearner

LossName = Literal["ce", "kl"]


Decode = Callable[[Tensor, Tensor, Any], Tensor]
"""What makes a reconstruction of activations, their latents and what was encoded."""


class _Grafted:
    """One dictionary in the model's forward: a `lm.Coder` that keeps what passes it."""

    decodes_with_input = True

    def __init__(
        self, learner: SaeLearner, decode: Decode, kept: Bool[Tensor, "batch seq"], level: int, levels: int
    ) -> None:
        """It makes nested reconstruction `level` of `levels`, from 0; of fewer, the first several times."""
        sae = learner.sae
        self._learner, self._decode, self._kept, self.num_latents = learner, decode, kept, sae.num_latents
        self.reads_input, self.reads = sae.reads_input, sae.reads
        self._whole = level == levels - 1
        self._level = len(learner.level_weights) - levels + level
        self._x = self._y = self._recon = torch.empty(0)
        self._code = Encoded(self._x, self._x)

    def encode(self, x: Float[Tensor, "batch seq d_in"]) -> Encoded:
        """The code, whose numbers count for batchtopk's threshold once in all levels."""
        kept = self._kept.to(x.device)
        code = self._learner.encode_in_graph(x, kept if self._whole else torch.zeros_like(kept))
        self._x, self._code = x.detach(), Encoded(code.top_acts.detach(), code.top_indices)
        return code

    def decode(
        self, top_acts: Tensor, top_indices: Tensor, x: Tensor | None = None
    ) -> Float[Tensor, "batch seq d_out"]:
        """The reconstruction by the latents of the level."""
        flat = top_acts.detach().flatten(0, 1), top_indices.flatten(0, 1)
        if not self._whole and (level := self._learner.level(*flat)) is not None:
            top_acts = top_acts * (level <= max(0, self._level)).view(top_acts.shape)
        recon = self._decode(top_acts, top_indices, x)
        self._recon = recon.detach()
        return recon

    def replaces(self, y: Float[Tensor, "batch seq d_out"]) -> None:
        """What the reconstruction stands in for."""
        self._y = y.detach()

    @cached_property
    def residual(self) -> Float[Tensor, "tokens d_out"]:
        """x̂ − y at its own place, of the tokens that count, as the model has them."""
        kept = self._kept.to(self._x.device)
        return (self._recon[kept] - self._y[kept]).to(self._learner.sae.dtype)

    def reconstruction(self, loss: Tensor) -> Reconstruction:
        """The tokens that count, for the meters and AuxK."""
        sae, kept = self._learner.sae, self._kept.to(self._x.device)
        x, y = self._x[kept].to(sae.dtype), self._y[kept].to(sae.dtype)
        b_dec, scale = self._learner.bias, self._learner.own_scale
        recon = Reconstruction.of(
            y * scale - b_dec,
            self.residual * scale,
            self._code.top_indices[kept],
            self._learner.rule.farthest,
            centred=x - b_dec if sae.spec.centred else x,
            fired=self._code.top_acts[kept] > 0,
        )
        # With a loss that is not finite neither is the squared error, which is what the learner looks at.
        return recon._replace(squared_error=recon.squared_error + 0 * loss.to(recon.residual))


class EndToEnd:
    """Gradients of the model's own loss with dictionaries grafted, all of a configuration at once.

    Sums run over the tokens that count; N is the nominal number of tokens of a step. ce is Σ cross-entropy of the next
    token / N. kl is Σ KL(clean ‖ grafted) / N. Tokens that are excluded keep their activations and have no loss. AuxK
    is added as always. The gradient runs through `lm.graft` and autograd; it is linear in the sequences, however they
    are split. Each of several nested reconstructions (prefixes, budgets) has a forward of its own, in all dictionaries
    at once. The loss is their weighted mean; that of the whole code is reported. Sources: Braun et al. 2024,
    arXiv:2405.12241 (kl).
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Mapping[str, SaeLearner]],
        counted: Callable[[Tensor], Bool[Tensor, "batch seq"]],
        *,
        loss_fn: LossName,
        tokens_per_step: int,
        ctx_len: int = 64,
    ) -> None:
        """`groups` holds the learners by configuration and hookpoint; `counted` says which tokens are not excluded.

        `ctx_len` is how long the sequences will be. Raises ValueError for a model without the head that the loss needs.
        """
        self._head = _head_for(loss_fn, model, ctx_len)
        self._model, self._groups, self._counted = model, groups, counted
        self._loss_fn, self._tokens_per_step = loss_fn, tokens_per_step
        device = next(model.parameters()).device
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._step_sums = self._sums.clone()

    def rehearse(self, tokens: Int[Tensor, "batch seq"]) -> None:
        """Run the model and back with the dictionaries at their places, and change nothing.

        What `tokens` are too many for is told at once, also where the loss of a run becomes this one late. Raises
        ValueError for a dictionary that cannot be there, as one that writes before it can read.
        """
        tokens = tokens.to(self._sums.device)
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        clean = self._clean(tokens)
        for learners in self._groups.values():
            self._gradients(learners, _grafts(learners, nothing, 0, 1), tokens, nothing, clean)

    def accumulate(self, tokens: Int[Tensor, "batch seq"]) -> None:
        """Add the gradients of these sequences to every learner."""
        kept = self._counted(tokens)
        if not len(tokens) or not kept.any():
            return
        tokens, kept = tokens.to(self._sums.device), kept.to(self._sums.device)
        clean = self._clean(tokens)
        for learners in self._groups.values():
            self._accumulate_group(learners, tokens, kept, clean)

    def _clean(self, tokens: Tensor) -> lm.Hidden | None:
        """What the model computes without dictionaries, if the loss needs it."""
        if self._loss_fn != "kl":
            return None
        with torch.no_grad():
            return self._head.run(tokens)

    def _gradients(
        self,
        learners: Mapping[str, SaeLearner],
        grafts: Mapping[str, _Grafted],
        tokens: Tensor,
        kept: Tensor,
        clean: lm.Hidden | None,
        *,
        share: float = 1.0,
        counts: bool = False,
    ) -> tuple[Float[Tensor, ""], Sequence[Tensor]]:
        """The summed loss of one forward, and the gradients of a `share` of it by the learners' parameters."""
        parameters = [p for learner in learners.values() for p in _parameters(learner)]
        with torch.enable_grad(), lm.graft(self._model, grafts, mask=kept):
            hidden = self._head.run(tokens)
        loss, by_hidden = self._loss(tokens, kept, hidden, clean, counts=counts)
        return loss, torch.autograd.grad(hidden.states, parameters, share * by_hidden, materialize_grads=True)

    def _accumulate_group(
        self, learners: Mapping[str, SaeLearner], tokens: Tensor, kept: Tensor, clean: lm.Hidden | None
    ) -> None:
        weights = max((learner.level_weights for learner in learners.values()), key=len)
        grafts: dict[str, _Grafted] = {}
        total = torch.zeros((), dtype=torch.float64, device=self._sums.device)
        by_level: list[Sequence[Tensor]] = []
        for level, weight in enumerate(weights):
            grafts, share = _grafts(learners, kept, level, len(weights)), weight / sum(weights)
            is_whole = level == len(weights) - 1
            loss, found = self._gradients(learners, grafts, tokens, kept, clean, share=share, counts=is_whole)
            total += share * loss
            by_level.append(found)
        gradients = (sum(each[1:], each[0]).contiguous() for each in zip(*by_level, strict=True))
        is_tied = any(learner.sae.layer_scale is not None for learner in learners.values())
        variances = torch.tensor(
            [learner.variance for learner in learners.values()] if is_tied else [], dtype=torch.float64
        )
        for index, (name, learner) in enumerate(learners.items()):
            sae = learner.sae
            W_enc, b_enc, W_dec, b_dec = (next(gradients) for _ in range(4))
            W_skip = None if sae.W_skip is None else next(gradients)
            if sae.layer_scale is not None:
                learner.add_layer_scale_gradient_of(next(gradients), variances[index] / variances[index + 1 :])
            radial = (W_dec * sae.W_dec.detach()).sum(-1)
            by_activation = None
            if sae.cfg.tied_by_target:  # Σ activation · gradient, which W_dec does not tell: it decodes other codes too
                by_activation = (W_enc * sae.encoder.weight.detach()).sum(-1) + b_enc * sae.encoder.bias.detach()
            b_dec[sae.spec.own_width :] = 0  # a layer's bias is its own module's
            everywhere = None
            if len(sae.spec.widths) > 1:
                everywhere = sae.scaled(torch.cat([graft.residual for graft in [*grafts.values()][index:]], 1))
            learner.add(
                Gradients(W_enc, b_enc, W_dec, b_dec, radial, W_skip, by_activation),
                grafts[name].reconstruction(total),
                everywhere,
            )

    def _loss(
        self, tokens: Tensor, kept: Tensor, hidden: lm.Hidden, clean: lm.Hidden | None, *, counts: bool
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch seq d"]]:
        """The summed loss, and its gradient by the last hidden states, a few positions' logits at a time.

        The loss is reported if it `counts`.
        """
        states = hidden.states.detach().requires_grad_()
        hidden = hidden._replace(states=states)
        gradient, total = torch.zeros_like(states), torch.zeros((), dtype=torch.float64, device=states.device)
        chunk = lm.num_positions_per_chunk(len(tokens), lm.vocab_size(self._model), states.device)
        for start in range(0, tokens.shape[1], chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                log_q = self._head.logits(tokens, hidden, part).float().log_softmax(-1)
                if clean is not None:
                    with torch.no_grad():
                        log_p = self._head.logits(tokens, clean, part).float().log_softmax(-1)
                    losses, has_loss = divergence(log_p, log_q), kept[:, part]
                else:
                    targets = tokens.roll(-1, 1)[:, part]
                    losses = -log_q.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
                    has_loss = _has_next(kept)[:, part]
                loss = losses.where(has_loss, 0).sum()
            gradient += torch.autograd.grad(loss / self._tokens_per_step, states)[0]
            total += loss.detach()
            self._step_sums += counts * torch.stack([loss.detach().double(), has_loss.sum().double()])
        return total, gradient

    def count_step(self, add_up: Callable[[list[Tensor]], None] = lambda sums: None) -> None:
        """Let the step's loss count. `add_up` adds the sums over other processes' tokens, in place."""
        add_up([self._step_sums])
        self._sums += self._step_sums
        self._step_sums.zero_()

    def read_loss(self) -> float | None:
        """Mean loss per token, in nats, of the steps since the last call; None without any. Waits for the device."""
        total, tokens = self._sums.tolist()
        self._sums.zero_()
        return total / tokens if tokens else None

    def state_dict(self) -> dict[str, Any]:
        """The loss that was summed and not read yet, as JSON. Waits for the device."""
        return {"sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))


def _head_for(loss_fn: LossName, model: nn.Module, ctx_len: int) -> lm.Head:
    """The model's head, whose predictions make the loss."""
    try:
        head = lm.find_head(model, ctx_len)
    except lm.NoHeadError as error:
        raise ValueError(
            f"loss_fn {loss_fn} needs a model with a language-modelling head, and {error}; or use --loss_fn fvu"
        ) from error
    if loss_fn == "ce" and not head.is_causal:
        raise ValueError(
            f"loss_fn ce needs a model with a causal language-modelling head, and in {type(model).__name__} a token "
            "sees those after it; use --loss_fn kl or fvu"
        )
    return head


def _grafts(
    learners: Mapping[str, SaeLearner], kept: Bool[Tensor, "batch seq"], level: int, levels: int
) -> dict[str, _Grafted]:
    """What stands in the model for one forward, by hookpoint."""
    decoders = _decoders(learners)
    return {name: _Grafted(learner, decoders[name], kept, level, levels) for name, learner in learners.items()}


def _decoders(learners: Mapping[str, SaeLearner]) -> dict[str, Decode]:
    """What decodes in one forward, by hookpoint: the layers of a cross-layer transcoder hand on what they write."""
    saes = {name: learner.sae for name, learner in learners.items()}
    if any(sae.cfg.cross_layer for sae in saes.values()):
        return {name: coder.decode for name, coder in coders(saes).items()}
    return {name: sae.decode for name, sae in saes.items()}


def _parameters(learner: SaeLearner) -> list[Tensor]:
    sae = learner.sae
    others = [each for each in (sae.W_skip, sae.layer_scale) if each is not None]
    return [sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec, *others]


def _has_next(kept: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """The tokens that count and are followed by another."""
    return torch.cat([kept[:, :-1], torch.zeros_like(kept[:, -1:])], 1)

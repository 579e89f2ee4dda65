"""Dictionaries that write the same places together: the layers of a cross-layer transcoder.

The loss is that of the sum of their outputs, Σ_l ‖ŷ^l − y^l‖² / v_l with v_l the variance per token of y^l. So each
one's gradient comes from its own code and decoder, and from the residuals that all leave. These are computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.cross_layer import members, of_all, tied_scales
from sae.dictionary.gradients import Code, JointPull
from sae.dictionary.shared_decoder import Codes, Shared, SharedPull
from sae.dictionary.wiring import Pair
from sae.ops import Bags, native
from sae.training.learner import SaeLearner

Layout = Mapping[str, slice]
"""The layers of one cross-layer transcoder in their order, by name: where the output of each is in that of all."""


class Joint:
    """The learners of one cross-layer transcoder, in the order of their layers."""

    def __init__(self, learners: Mapping[str, SaeLearner], layout: Layout, sum_: Callable[[Tensor], Tensor]) -> None:
        """`learners` are those that this process has; `sum_` adds up over the processes that have the others."""
        self.learners, self._layout, self._sum = {n: learners[n] for n in layout if n in learners}, layout, sum_
        self._width = max(own.stop for own in layout.values())

    @classmethod
    def whole(cls, learners: Mapping[str, SaeLearner]) -> "Joint":
        """The learners of all layers of one, which are here."""
        (layers,) = members({name: learner.sae for name, learner in learners.items()}).values()
        return cls(learners, {layer.name: layer.own for layer in layers}, lambda tensor: tensor)

    def accumulate(self, pairs: Mapping[str, Pair]) -> None:
        """Add the gradients of the loss on these tokens to each learner; `pairs` are what each reads and writes."""
        targets = {
            name: y.to(learner.sae.dtype)
            for name, learner in self.learners.items()
            if (y := pairs[name].y) is not None and len(y)
        }
        if not targets:
            return
        codes = {name: learner.encode(pairs[name].x) for name, learner in self.learners.items()}
        bags = {name: self.learners[name].bags(code) for name, code in codes.items()}
        cfg = next(iter(self.learners.values())).sae.cfg
        if cfg.tied_by_target:
            self._accumulate_by_target(codes, bags, targets)
        elif cfg.tie_decoders:
            self._accumulate_tied(codes, bags, targets)
        else:
            self._accumulate(codes, bags, targets)

    def _accumulate(self, codes: Mapping[str, Code], bags: Mapping[str, Bags], targets: Mapping[str, Tensor]) -> None:
        """Each layer has a decoder for every later one."""
        ys = {name: self._own_scaled(name, y) for name, y in targets.items()}
        first, tokens = next(iter(codes)), len(next(iter(ys.values())))
        written = ys[first].new_zeros(len(bags[first].starts), self._width)
        for name, code in codes.items():
            own, learner = self._layout[name], self.learners[name]
            written[:tokens, own] += learner.bias - ys[name]
            written[:, own.start :] += learner.written(code, bags[name])
        residual, pull = _residuals(self._sum(written).unsqueeze(0), self._level_weights())
        residual, pull = residual[0], pull[0]
        places = list(self._layout.values())
        squares = torch.stack([torch.linalg.vector_norm(residual[:, own], dim=1).square() for own in places])
        lengths = squares.flip(0).cumsum(0).flip(0).sqrt()  # of the residuals of this layer and all later ones
        for name, code in codes.items():
            own, learner, layer = self._layout[name], self.learners[name], list(self._layout).index(name)
            shares = learner.shares(code, lengths[layer], places=len(places) - layer)
            later = _table(pull[:, own.start :])
            joint = JointPull(bags[name], residual[:, own.start :], pull[:tokens, own], later, shares)
            learner.accumulate_with_others(code, ys[name], joint)

    def _own_scaled(self, name: str, y: Tensor) -> Tensor:
        """The target at the layer's own module, in the units of the error."""
        own = self._layout[name]
        return y[:, : own.stop - own.start] * self.learners[name].own_scale

    def _accumulate_tied(
        self, codes: Mapping[str, Code], bags: Mapping[str, Bags], targets: Mapping[str, Tensor]
    ) -> None:
        """Each layer has one decoder, which is summed up once: ŷ^l = Σ_s c^{s→l} d^s + b^l."""
        held = [list(self._layout).index(name) for name in codes]
        scales = tied_scales([self.learners[name].sae for name in codes], len(self._layout)).detach()
        written = torch.stack([self.learners[name].written(code, bags[name]) for name, code in codes.items()])
        left, tokens = (scales @ written.flatten(1)).view(-1, *written.shape[1:]), len(next(iter(targets.values())))
        for layer, name in zip(held, codes, strict=True):
            left[layer, :tokens] += self.learners[name].bias - targets[name]
        weights = self._level_weights()
        residual, own_pulls = _residuals(self._sum(left), weights)
        units = self._units()
        pulls = ((scales * units).T @ own_pulls.flatten(1)).view_as(written)
        for source, (layer, (name, code)) in enumerate(zip(held, codes.items(), strict=True)):
            learner, pull, own_pull = self.learners[name], pulls[source], own_pulls[layer, :tokens]
            lengths = torch.linalg.vector_norm(pull[-tokens:], dim=1) * sum(weights) / weights[-1]
            shares = learner.shares(code, lengths)
            learner.accumulate_with_others(
                code, targets[name], JointPull(bags[name], residual[layer], own_pull, pull, shares)
            )
            # Whole tokens, whatever their share: what a massive one would write for later modules must be felt.
            products = own_pulls[layer + 1 :].flatten(1) @ written[source].flatten()
            learner.add_layer_scale_gradient(products, units[layer + 1 :, source])

    def _accumulate_by_target(
        self, codes: Mapping[str, Code], bags: Mapping[str, Bags], targets: Mapping[str, Tensor]
    ) -> None:
        """Each layer's decoder is that of all codes up to it: ŷ^l = Σ_s (c^{s→l} ⊙ a^s) W_dec^l + b^l.

        Codes go to the decoders, and gradients by them come back.
        """
        held, tokens = [list(self._layout).index(name) for name in codes], len(next(iter(targets.values())))
        everyone = partial(of_all, held=held, count=len(self._layout), sum_=self._sum)
        learners = [self.learners[name] for name in codes]
        level = [
            each
            for learner, code in zip(learners, codes.values(), strict=True)
            if (each := learner.level(code.acts, code.indices)) is not None
        ]
        known = Codes(
            everyone([code.acts for code in codes.values()]),
            everyone([code.indices for code in codes.values()]),
            everyone(level) if level else None,
            len(self._level_weights()),
        )
        factors = everyone(list(tied_scales([each.sae for each in learners], len(self._layout)).detach().unbind(1)))

        def shared(layer: int) -> Shared:  # twice, as it takes more memory than all residuals
            return Shared.of(known, factors[: layer + 1, layer])

        left = []
        for layer, (name, code) in zip(held, codes.items(), strict=True):
            left.append(self.learners[name].written(code, shared(layer).decoded))
            left[-1][:tokens] += self.learners[name].bias - targets[name]
        residual, pulls = _residuals(torch.stack(left), self._level_weights())
        units, squares = self._units(), everyone(list(torch.linalg.vector_norm(residual, dim=2).square()))
        own_shares = [
            learner.shares(code, (units[layer:, at] @ squares[layer:]).sqrt(), places=len(self._layout) - layer)
            for at, (layer, learner, code) in enumerate(zip(held, learners, codes.values(), strict=True))
        ]
        shares = everyone(own_shares)
        acts, by_factor, decoders = torch.zeros_like(known.acts), torch.zeros_like(factors), []
        for layer, learner, pull in zip(held, learners, pulls, strict=True):
            weights = 2 * learner.loss_scale * shares[: layer + 1]
            decoders.append(shared(layer).pulled(learner.decoder, pull, weights))
            acts[: layer + 1] += decoders[-1].acts / learner.variance
            by_factor[: layer + 1, layer] += decoders[-1].factors
        acts, by_factor = self._sum(acts), self._sum(by_factor)
        for at, (layer, learner, (name, code)) in enumerate(zip(held, learners, codes.items(), strict=True)):
            own = acts[layer] * learner.variance
            learner.accumulate_with_others(
                code,
                targets[name],
                SharedPull(bags[name], residual[at], pulls[at, :tokens], own, decoders[at], own_shares[at]),
            )
            # Whole tokens, as of ties by source.
            learner.add_layer_scale_gradient(by_factor[layer, layer + 1 :], units[layer + 1 :, at])

    def _level_weights(self) -> tuple[float, ...]:
        return next(iter(self.learners.values())).level_weights

    def _units(self) -> Float[Tensor, "layers held"]:
        """v_s / v_l, at [l, s], of the layers s that are here: layer l's squared errors in the units of layer s."""
        own = {name: learner.variance for name, learner in self.learners.items()}
        known = torch.tensor([own.get(name, 0.0) for name in self._layout], dtype=torch.float64)
        device = next(iter(self.learners.values())).sae.device
        every = self._sum(known.to(device))
        units = torch.stack([variance / every for variance in every[[name in own for name in self._layout]]], 1)
        return units.to(next(iter(self.learners.values())).sae.dtype)


def _residuals(written: Float[Tensor, "layers bags d"], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The residual, and the pull on each level's entries, from what each level adds. `weights` are those of levels.

    The residual is x̂ − y of the whole code (layers, tokens, d). The pull is Σ_{j ≥ b} w_j (x̂_j − y) / Σ w (layers,
    bags, d); with one level it takes no memory of its own.
    """
    if len(weights) == 1:
        return written, written
    by_level = written.unflatten(1, (len(weights), -1)).cumsum(1)
    last_first = by_level.new_tensor(weights[::-1]).view(-1, 1, 1)
    pulls = by_level.flip(1).mul_(last_first).cumsum(1).flip(1) / sum(weights)
    return by_level[:, -1], pulls.flatten(1, 2)


def _table(rows: Tensor) -> Tensor:
    """Rows that are apart in memory, or copied where what reads them cannot do with that."""
    return rows if native.readable(rows) else rows.contiguous()


class Single:
    """A learner that writes by itself: a group of one."""

    def __init__(self, name: str, learner: SaeLearner) -> None:
        self.learners = {name: learner}

    def accumulate(self, pairs: Mapping[str, Pair]) -> None:
        """Add the gradients of its loss on these tokens."""
        for name, learner in self.learners.items():
            learner.accumulate(*pairs[name])


def groups(
    learners: Mapping[str, SaeLearner], found: Sequence[Layout], sum_: Callable[[Tensor], Tensor]
) -> list[Joint | Single]:
    """The learners, by name, in the groups that are trained together. `found` are the layouts of those of several."""
    together = {name for layout in found for name in layout}
    alone = [Single(name, learner) for name, learner in learners.items() if name not in together]
    return [*(Joint(learners, layout, sum_) for layout in found), *alone]

"""Dictionaries that write the same places together: the layers of a cross-layer transcoder.

The loss is that of the sum of what they write, Σ_l ‖ŷ^l − y^l‖² / v_l with v_l the variance per token of y^l. So each
one's gradient is that of its own code and decoder for the residuals that all leave, which are computed once.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae.dictionary.cross_layer import Member, members
from sae.dictionary.gradients import Code, Known
from sae.dictionary.wiring import Pair
from sae.training.learner import SaeLearner

Layout = Mapping[str, slice]
"""The layers of one cross-layer transcoder in their order, by name: where the output of each is in that of all."""


def alone(tensor: Tensor) -> Tensor:
    """The sum over processes of one that has all layers."""
    return tensor


class Joint:
    """The learners of one cross-layer transcoder, in the order of their layers."""

    def __init__(
        self, learners: Mapping[str, SaeLearner], layout: Layout, sum_: Callable[[Tensor], Tensor] = alone
    ) -> None:
        """`learners` are those that this process has; `sum_` adds up over the processes that have the others."""
        self.learners, self._layout, self._sum = {n: learners[n] for n in layout if n in learners}, layout, sum_
        self._width = max(own.stop for own in layout.values())

    def accumulate(self, pairs: Mapping[str, Pair]) -> None:
        """Add the gradients of the loss on these tokens to each learner; `pairs` are what each reads and writes."""
        targets = {
            name: y.to(learner.sae.dtype)
            for name, learner in self.learners.items()
            if (y := pairs[name][1]) is not None and len(y)
        }
        if not targets:
            return
        codes = {name: learner.encode(pairs[name][0]) for name, learner in self.learners.items()}
        if all(learner.sae.cfg.tie_decoders for learner in self.learners.values()):
            self._accumulate_tied(codes, targets)
        else:
            self._accumulate(codes, targets)

    def _accumulate(self, codes: Mapping[str, Code], targets: Mapping[str, Tensor]) -> None:
        """Each layer has a decoder for every later one; targets are of all of these."""
        first = next(iter(codes))
        residual = targets[first].new_zeros(len(targets[first]), self._width)
        ys = _scaled({name: self.learners[name].sae.scale for name in codes}, targets)
        for name, code in codes.items():
            own, learner = self._layout[name], self.learners[name]
            residual[:, own] += learner.bias[: own.stop - own.start] - ys[name][:, : own.stop - own.start]
            residual[:, own.start :] += learner.written(code)
        residual = self._sum(residual)
        for name, code in codes.items():
            known = Known(residual[:, self._layout[name].start :].contiguous())
            self.learners[name].accumulate_with_others(code, ys[name], known)

    def _accumulate_tied(self, codes: Mapping[str, Code], targets: Mapping[str, Tensor]) -> None:
        """Each layer has one decoder, which is summed up once: ŷ^l = Σ_s c^{s→l} d^s + b^l."""
        scales, held = self._scales(), [list(self._layout).index(name) for name in codes]
        written = torch.stack([self.learners[name].written(code) for name, code in codes.items()])
        residual = (scales @ written.flatten(1)).view(-1, *written.shape[1:])
        for layer, name in zip(held, codes, strict=True):
            residual[layer] += self.learners[name].bias - targets[name]
        residual = self._sum(residual)
        units = self._units()  # of layer l's squared errors, in those of layer s
        pulls = ((scales * units).T @ residual.flatten(1)).view_as(written)
        for source, (layer, (name, code)) in enumerate(zip(held, codes.items(), strict=True)):
            learner = self.learners[name]
            learner.accumulate_with_others(code, targets[name], Known(residual[layer], pulls[source]))
            shares = learner.shares(code, pulls[source])
            weighted = written[source] if shares is None else written[source] * shares.unsqueeze(1)
            products = residual[layer + 1 :].flatten(1) @ weighted.flatten()
            learner.add_layer_scale_gradient(products, units[layer + 1 :, source])

    def _scales(self) -> Float[Tensor, "layers held"]:
        """c^{s→l} of the layers s that are here, at [l, s]; 0 for an earlier l."""
        found = [learner.sae.layer_scale for learner in self.learners.values()]
        columns = [F.pad(c.detach(), (len(self._layout) - len(c), 0)) for c in found if c is not None]
        return torch.stack(columns, 1)

    def _units(self) -> Float[Tensor, "layers held"]:
        """v_s / v_l of the layers s that are here, at [l, s]."""
        own = {name: learner.variance for name, learner in self.learners.items()}
        known = torch.tensor([own.get(name, 0.0) for name in self._layout], dtype=torch.float64)
        device = next(iter(self.learners.values())).sae.device
        every = self._sum(known.to(device))
        units = torch.stack([variance / every for variance in every[[name in own for name in self._layout]]], 1)
        return units.to(next(iter(self.learners.values())).sae.dtype)


def _scaled(scales: Mapping[str, Tensor | None], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Targets in the units of the error; that of a later layer is the end of the first one's."""
    first = next(iter(targets))
    found, scale = targets[first], scales[first]
    whole = found if scale is None else found * scale
    return {name: whole[:, whole.shape[1] - y.shape[1] :] for name, y in targets.items()}


def layouts(groups: Mapping[str, Sequence[Member]]) -> list[Layout]:
    """The layouts of cross-layer transcoders of several layers."""
    return [{layer.name: layer.own for layer in group} for group in groups.values() if len(group) > 1]


def joints(
    learners: Mapping[str, SaeLearner],
    found: Sequence[Layout] | None = None,
    sum_: Callable[[Tensor], Tensor] = alone,
) -> list[Joint]:
    """Learners, by name, in the groups that are trained together.

    `found` are the layouts of all groups; None: those of these learners, which then have all layers.
    """
    if found is None:
        found = layouts(members({name: learner.sae for name, learner in learners.items()}))
    return [Joint(learners, layout, sum_) for layout in found]

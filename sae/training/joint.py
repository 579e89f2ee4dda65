"""Dictionaries that write the same places together: the layers of a cross-layer transcoder.

The loss is that of the sum of what they write. So each one's gradient is that of its own code and decoder for the
residual that all leave, which is computed once.
"""

from collections.abc import Mapping

import torch

from sae.dictionary.cross_layer import members
from sae.dictionary.wiring import Pair
from sae.training.learner import SaeLearner


class Joint:
    """The learners of one cross-layer transcoder, in the order of their layers."""

    def __init__(self, learners: Mapping[str, SaeLearner], starts: Mapping[str, int]) -> None:
        """`starts` says where the output of each begins in that of the first."""
        self.learners, self._starts = dict(learners), starts

    def accumulate(self, pairs: Mapping[str, Pair]) -> None:
        """Add the gradients of the loss on these tokens to each learner; `pairs` are what each reads and writes."""
        first = next(iter(self.learners))
        y = pairs[first][1]
        if y is None or not len(y):
            return
        y = self.learners[first].sae.scaled(y.float())
        codes = {name: learner.encode(pairs[name][0]) for name, learner in self.learners.items()}
        residual = torch.zeros_like(y)
        for name, learner in self.learners.items():
            residual[:, self._starts[name] :] += learner.written(codes[name])
        residual -= y
        for name, learner in self.learners.items():
            own = slice(self._starts[name], None)
            learner.accumulate_with_others(codes[name], y[:, own], residual[:, own].contiguous())


def joints(learners: Mapping[str, SaeLearner]) -> list[Joint]:
    """Learners, by name, in the groups that are trained together."""
    groups = members({name: learner.sae for name, learner in learners.items()}).values()
    return [
        Joint({each.name: learners[each.name] for each in group}, {each.name: each.start for each in group})
        for group in groups
        if len(group) > 1
    ]

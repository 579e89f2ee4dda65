"""Activations whose features are known: x = mean + Σ aᵢ fᵢ + noise, with unit directions fᵢ, sparse a ≥ 0.

Like those of language models the features are more than dimensions, Zipf-distributed, hierarchical (a child fires only
with its parent, and no two children of one parent together) and correlated (a token has a topic, whose features fire
more often). What is made up follows SynthSAEBench (Chanin and Garriga-Alonso 2026, arXiv:2602.14687) in kind, not in
size: here a run takes a minute.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae.activations.source import Activations, Batch
from sae.activations.store import HeldOut
from sae.config import SelftestConfig
from sae.data.position import count_in

HOOKPOINT = "synthetic"
"""Hookpoint of synthetic activations, in the place of a module path."""
SEQUENCE = 256
"""Tokens of a sequence; they are independent of each other."""
HELD_OUT = 65_536
"""Tokens that are held out."""
ROOTS, PARENTS, CHILDREN = 0.4, 0.5, 3
"""Share of the features that are roots, share of the roots that are parents, and children of each."""
HAS_CHILD = 0.8
"""Probability that a parent that fires has one of its children with it."""
SLOTS, FILLED = 3, 0.5
"""Roots of a token are drawn so many times, each time with this probability: 1.5 in the mean."""
ZIPF = 0.5
"""Exponent of the law by which frequencies fall with the rank."""
TOPICS, BOOST = 16, 8.0
"""Topics, and how much more often a topic's own roots are drawn with it."""
SPREAD, NOISE, OFFSET = 0.2, 0.02, 1.0
"""Standard deviation of a firing feature's size about 1, of a dimension's noise, and the length of the mean."""


class Sample(NamedTuple):
    """Some tokens, and the features that made them."""

    x: Float[Tensor, "tokens d_in"]
    acts: Float[Tensor, "tokens width"]
    """Size of each feature that fires; 0: none."""
    features: Int[Tensor, "tokens width"]
    """Features by number; those that fire are distinct within a token."""


class Features:
    """The features, and how often each fires with which others. It is immutable."""

    def __init__(self, num_features: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.directions = F.normalize(torch.randn(num_features, width, generator=generator), dim=1)
        """(features, width), unit rows; the roots first, by frequency."""
        self.mean = OFFSET * F.normalize(torch.randn(width, generator=generator), dim=0)
        num_parents = int(num_features * (1 - ROOTS)) // CHILDREN
        self.num_roots = num_features - num_parents * CHILDREN
        roots = torch.arange(self.num_roots)
        self._first_child = torch.full((self.num_roots,), -1)
        at = torch.linspace(0, self.num_roots - 1, num_parents).long()
        self._first_child[at] = self.num_roots + CHILDREN * torch.arange(num_parents)
        self.topics = torch.randint(TOPICS, (self.num_roots,), generator=generator)
        """The topic of each root."""
        own = torch.where(self.topics == torch.arange(TOPICS)[:, None], BOOST, 1.0)
        self._drawn = F.normalize(own / (roots + 1) ** ZIPF, p=1, dim=1).cumsum(1)
        """(topics, roots): cumulative probabilities, Zipf's law times the topic's boost."""
        shares = 1 / (torch.arange(CHILDREN) + 1.0)
        self._child = HAS_CHILD * (shares / shares.sum()).cumsum(0)

    def sample(self, tokens: int, seed: int) -> Sample:
        """A sample of `tokens` tokens, the same one for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        topics = torch.randint(TOPICS, (tokens,), generator=generator)
        draws, child, filled = torch.rand(3, tokens, SLOTS, generator=generator)
        roots = torch.searchsorted(self._drawn[topics], draws).clamp_max(self.num_roots - 1)
        fires = (filled < FILLED) & _is_first(roots, filled < FILLED)
        which = torch.searchsorted(self._child, child)
        has_child = fires & (self._first_child[roots] >= 0) & (which < CHILDREN)
        children = self._first_child[roots] + which
        features = torch.cat([roots, torch.where(has_child, children, 0)], 1)
        there = torch.cat([fires, has_child], 1)
        sizes = (1 + SPREAD * torch.randn(features.shape, generator=generator)).clamp_min(0.1)
        acts = torch.where(there, sizes, 0.0)
        noise = NOISE * torch.randn(tokens, self.directions.shape[1], generator=generator)
        made = torch.bmm(acts.unsqueeze(1), self.directions[features]).squeeze(1)
        return Sample(self.mean + made + noise, acts, features)


def _is_first(values: Int[Tensor, "tokens slots"], there: Tensor) -> Tensor:
    """Entries that repeat no earlier one of their row."""
    same = (values.unsqueeze(2) == values.unsqueeze(1)) & there.unsqueeze(1)
    return ~same.tril(-1).any(2)


class SyntheticActivations:
    """An activation source: batch after batch, each drawn with a seed of its own."""

    def __init__(self, features: Features, tokens: int, num_batches: int, seed: int, device: torch.device) -> None:
        self._features, self._tokens, self._seed, self._device = features, tokens, seed, device
        self.num_batches = num_batches
        self.batch_index = 0
        """How many batches were read."""

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        if self.batch_index >= self.num_batches:
            raise StopIteration
        self.batch_index += 1
        x = self._features.sample(self._tokens, _seed_of(self._seed, self.batch_index)).x
        return {HOOKPOINT: x.to(self._device)}

    def skip(self) -> int:
        """Pass over the next batch; how many tokens it holds."""
        next(self)
        return self._tokens

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"batch_index": self.batch_index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a `state_dict`."""
        self.batch_index = count_in(state, "batch_index")


class SyntheticStore(HeldOut):
    """What a run on known features reads: a `ActivationStore`, so that the trainer sees no difference."""

    model_name, held_out_by = HOOKPOINT, "sequences"
    num_to_train = None
    num_sequences = None
    dtype = torch.float32

    def __init__(self, cfg: SelftestConfig, device: torch.device) -> None:
        self.features = Features(cfg.num_features, cfg.width, cfg.data_seed)
        self.device, self.data_seed, self.ctx_len = device, cfg.data_seed, SEQUENCE
        self.chosen, self.widths = [HOOKPOINT], {HOOKPOINT: cfg.width}
        self.read_with: dict[str, Any] = {}
        self.held_out = HELD_OUT // SEQUENCE
        tokens = cfg.batch_size * SEQUENCE
        self.num_batches = cfg.num_tokens // tokens
        if cfg.num_tokens < (least := tokens * cfg.grad_acc_steps):
            raise ValueError(
                f"max_tokens must be at least a step of batch_size × {SEQUENCE} × grad_acc_steps = {least:,} tokens, "
                f"got {cfg.num_tokens:,}; raise --max_tokens, or lower --batch_size"
            )
        self.source = SyntheticActivations(self.features, tokens, self.num_batches, cfg.data_seed, device)

    @property
    def batch_index(self) -> int:
        """How many batches were read."""
        return self.source.batch_index

    def held_out_sample(self) -> Sample:
        """The held-out tokens and their features, on the CPU; never trained on."""
        return self.features.sample(HELD_OUT, _seed_of(self.data_seed, 0))

    def held_out_batches(self) -> Iterator[Batch]:
        """The held-out tokens, whose ids are all 0."""
        x = self.held_out_sample().x.to(self.device)
        yield Batch(torch.zeros(self.held_out, SEQUENCE, dtype=torch.int64), torch.arange(len(x)), {HOOKPOINT: x})

    def fingerprints(self) -> dict[str, str]:
        """Nothing: all of it follows from the options."""
        return {}

    def about_held_out(self) -> list[str]:
        """Nothing to tell: tokens are independent of each other."""
        return []


def _seed_of(seed: int, batch: int) -> int:
    return (seed * 1_000_003 + batch) % 2**62

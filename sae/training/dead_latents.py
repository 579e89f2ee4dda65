"""Which latents are dead: how many tokens ago each fired last."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class DeadLatents:
    """Counts, for each latent, the tokens since it fired (was selected with a value above 0)."""

    def __init__(self, num_latents: int, threshold: int, device: torch.device | str = "cpu") -> None:
        """`threshold` is the number of tokens without firing after which a latent is dead."""
        self.threshold = threshold
        self.tokens_since_fired = torch.zeros(num_latents, dtype=torch.int64, device=device)
        self._longest = 0
        self.indices = self._find()

    def update(self, fired: Bool[Tensor, "latents"], tokens: int) -> None:
        """Account for the `tokens` of one step, on which the latents in `fired` fired at least once."""
        self.tokens_since_fired.add_(tokens).masked_fill_(fired, 0)
        self._longest += tokens
        self.indices = self._find()

    def _find(self) -> Int[Tensor, "dead"]:
        # The number of dead latents is a shape, so asking for them waits for the device: not before one can be dead.
        if self._longest < self.threshold:
            return self.tokens_since_fired.new_empty(0)
        return self.mask().nonzero().squeeze(1)

    def mask(self) -> Bool[Tensor, "latents"]:
        """Which latents are dead; waits for nothing."""
        return self.tokens_since_fired >= self.threshold

    def silent_for(self, tokens: int) -> int:
        """Number of latents that did not fire on the last `tokens` tokens. Waits for the device."""
        return int((self.tokens_since_fired >= tokens).sum())

    def state_dict(self) -> dict[str, Tensor]:
        """What survives a restart."""
        return {"tokens_since_fired": self.tokens_since_fired}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`."""
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        self._longest = int(self.tokens_since_fired.max())
        self.indices = self._find()

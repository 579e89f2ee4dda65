"""What hands out batches of tokens, as its users see it."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class TokenSource(Protocol):
    """Batches of token ids (batch, seq), whose position can be saved; `tokens.TokenBatches` is one."""

    @property
    def num_batches(self) -> int | None: ...

    def __next__(self) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

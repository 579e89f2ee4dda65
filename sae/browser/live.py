"""The language model behind the page: loaded when it is first asked for, one question at a time. Imports no torch."""

from collections.abc import Callable
from threading import Lock
from typing import Any

from sae.storage.damage import in_one_line


class LiveModel:
    """A model that is loaded when it is first asked for."""

    def __init__(self, load: Callable[[], Any], maxima: Callable[[str], Any]) -> None:
        """`load` makes a `steering.Loaded`; `maxima` has the largest activation of each latent of a place."""
        self._load, self._maxima, self._lock = load, maxima, Lock()
        self._loaded: Any = None
        self._failed = ""

    def state(self) -> dict[str, Any]:
        """Whether the model is loaded, and why it cannot be."""
        return {"loaded": self._loaded is not None, "why_not": self._failed}

    def read(self, text: str, place: str) -> dict[str, Any]:
        """`steering.read` of the model. Raises ValueError if it cannot be loaded."""
        with self._lock:
            loaded = self._ready()
            from .steering import read

            return read(loaded, text, place)

    def steer(self, text: str, place: str, edits: list[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
        """`steering.steer` of the model. Raises ValueError if it cannot be loaded."""
        with self._lock:
            loaded = self._ready()
            from .steering import steer

            return steer(loaded, text, place, edits, self._maxima(place), new_tokens)

    def _ready(self) -> Any:
        if self._failed:
            raise ValueError(self._failed)
        if self._loaded is None:
            try:
                self._loaded = self._load()
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                reason = in_one_line(error)
                self._failed = f"the language model cannot be loaded, so that only this box does not work: {reason}"
                raise ValueError(self._failed) from error
        return self._loaded

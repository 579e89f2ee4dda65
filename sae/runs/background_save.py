"""Checkpoints written beside training, which waits only until its state is copied to the host's memory.

The last one, and one after an error, is waited for, and written from where the state is. So a run that is shorter than
`save_every` never takes memory for a copy.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.spec import Saved
from sae.runs import checkpoint
from sae.runs.checkpoint import Checkpoint


class Saver:
    """Saves the checkpoints of one run, one after the other; at most one copy of the state is alive."""

    def __init__(self, run: Path, *, keep_last: int | None) -> None:
        """`keep_last` newest checkpoints stay, and the best; None: all of them."""
        self._run, self._keep_last = run, keep_last
        self._host: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._saved_step = -1
        self.newest_step = -1
        """The newest step whose state was given to be saved."""

    def start(self, state: Checkpoint) -> Path:
        """Copy the state and begin to write it; returns the folder that it will be in. Waits for the one before."""
        return self._begin(state, self._copied)

    def save(self, state: Checkpoint, *, anew: bool = False) -> Path:
        """Write the state, of which no copy is taken, and wait until it is on disk; returns its folder.

        `anew` is `checkpoint.save`'s.
        """
        folder = self._begin(state, lambda state: state, anew=anew)
        self.wait()
        return folder

    def _begin(self, state: Checkpoint, taken: Callable[[Checkpoint], Checkpoint], *, anew: bool = False) -> Path:
        self.wait()
        step = self.newest_step = state.trainer["step"]
        if anew or step != self._saved_step:
            write = partial(self._write, taken(state), anew=anew)
            self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
            self._thread.start()
        return self._run / f"step_{step}"

    def wait(self) -> None:
        """Return when everything is on disk. Raises what went wrong, as `checkpoint.save` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong meanwhile, once; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, state: Checkpoint, *, anew: bool) -> None:
        step = state.trainer["step"]
        try:
            checkpoint.save(self._run, step, state, anew=anew)
            self._saved_step = step
            checkpoint.rotate(self._run, self._keep_last)
        except Exception as error:  # told by the next `check`
            self._error = error

    def _copied(self, state: Checkpoint) -> Checkpoint:
        saes, states = {}, {}
        for name, sae in state.saes.items():
            tensors = self._to_host(f"{name}/weights", sae.state_dict())
            states[name] = self._to_host(f"{name}/state", state.states[name])
            saes[name] = Sae.from_saved(Saved(sae.spec, tensors))
        if any(t.is_cuda for tensors in state.states.values() for t in tensors.values()):
            torch.cuda.synchronize()
        return Checkpoint(saes, states, copy.deepcopy(state.trainer))

    def _to_host(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies in memory that is taken once: pinned for a GPU, which then writes into it by itself."""
        copies = {}
        for name, tensor in tensors.items():
            key = f"{prefix}/{name}"
            if key not in self._host:
                self._host[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            copies[name] = self._host[key].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        return copies

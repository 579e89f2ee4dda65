"""`python -m sae` under torchrun, of which one rank can be killed once: KILL_RANK, KILL_STEP, KILL_MARK."""

import os
import signal
import sys
from pathlib import Path

import sae.__main__
from sae import SaeTrainer, lm


def kill_once(rank: int, step: int, mark: Path) -> None:
    """Let SIGKILL hit the rank in that step of the first attempt; the file `mark` is as old as that."""
    train_step = SaeTrainer.train_step

    def mortal(self: SaeTrainer) -> bool:
        if (self.world.rank, self.step) == (rank, step) and not self.world.restarted:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self)

    SaeTrainer.train_step = mortal  # type: ignore[method-assign]


if __name__ == "__main__":
    lm.compute_dtype = lambda device: lm.load.torch.float32
    if "KILL_RANK" in os.environ:
        kill_once(int(os.environ["KILL_RANK"]), int(os.environ["KILL_STEP"]), Path(os.environ["KILL_MARK"]))
    sys.exit(sae.__main__.main())

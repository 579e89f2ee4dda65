"""`python -m sae` under torchrun, of which one rank can be killed once: KILL_RANK, KILL_STEP."""

import os
import signal
import sys

import sae.__main__
from sae import SaeTrainer, lm


def kill_once(rank: int, step: int) -> None:
    """Let SIGKILL hit the rank in that step of the first attempt."""
    train_step = SaeTrainer.train_step

    def mortal(self: SaeTrainer) -> bool:
        if (self.world.rank, self.step) == (rank, step) and not self.world.restarted:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self)

    SaeTrainer.train_step = mortal  # type: ignore[method-assign]


if __name__ == "__main__":
    lm.compute_dtype = lambda device: lm.load.torch.float32
    if "KILL_RANK" in os.environ:
        kill_once(int(os.environ["KILL_RANK"]), int(os.environ["KILL_STEP"]))
    sys.exit(sae.__main__.main())

"""The start of a run: decisions made once, before model and data are read."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from sae.config import TrainConfig
from sae.parallel.world import World
from sae.runs import checkpoint
from sae.runs.folder import RunFolder, continue_after_restart, derived_before
from sae.runs.stop_signals import StopRequests
from sae.training.run_plan import Combination, combinations

Cfg = TypeVar("Cfg", bound=TrainConfig)


@dataclass(frozen=True)
class Launch(Generic[Cfg]):
    """Which processes run, with which options, in which folder."""

    world: World
    cfg: Cfg
    """The options, with `resume` where torchrun started a run anew."""
    model_name: str
    combinations: dict[str, Combination]
    """Combinations to train at every hookpoint, by label."""
    folder: RunFolder
    before: dict[str, Any]
    """What the resumed run derived from model and data; {} for a new run."""
    stop: StopRequests = field(default_factory=StopRequests)
    typed: frozenset[str] = frozenset()
    """Options that were typed, which are given also where they say the default."""
    begun: Path | None = None
    """Checkpoint of the resumed run that the dictionaries to train further are in; `finetune` is then not read."""

    @classmethod
    def of(
        cls, cfg: Cfg, model_name: str = "", *, world: World | None = None, typed: Collection[str] = ()
    ) -> "Launch[Cfg]":
        """Join the other processes, unless that is done (`world`), and choose the folder. Writes nothing.

        Raises ValueError for what cannot be done on so many processes, and as `RunFolder.plan` does.
        """
        world = world or join(cfg)
        chosen = combinations(cfg)
        cfg = world.from_main(partial(continue_after_restart, cfg, model_name, restarted=world.restarted))
        folder = world.from_main(partial(RunFolder.plan, cfg, model_name=model_name))
        before = world.from_main(partial(derived_before, cfg, folder.path))
        stop = StopRequests(silent=not world.is_main)
        further = cfg.resume and cfg.finetune is not None
        begun = world.from_main(partial(_newest_undamaged, folder.path), slow=True) if further else None
        return cls(world, cfg, model_name, chosen, folder, before, stop, frozenset(typed), begun)

    @property
    def batches_at_once(self) -> int:
        """Forward passes, over all processes, that are read for a step or several; a resumed run keeps their number."""
        return int(self.before.get("batches_per_step", self.cfg.grad_acc_steps * self.world.size))

    @property
    def whole_documents(self) -> bool:
        """Whether whole documents are held out; runs of earlier versions go on as they began."""
        return not self.before or self.before.get("held_out_by") == "documents"


def _newest_undamaged(run: Path) -> Path | None:
    return checkpoint.newest_undamaged(run)[0]


def join(cfg: TrainConfig) -> World:
    """The processes of the run. Raises ValueError for what cannot be done on so many."""
    world = World.from_environment(shard_latents=cfg.shard_latents)
    check_processes(cfg, world.size)
    return world


def check_processes(cfg: TrainConfig, processes: int) -> None:
    """Raise ValueError for options that do not work with so many processes."""
    if processes == 1 or not (cfg.distribute_layers or cfg.shard_latents > 1):
        return
    for name, default in (("loss_fn", "fvu"), ("eval_every", 0)):
        if getattr(cfg, name) != default:
            raise ValueError(
                f"{name} must be {default} where no process holds all autoencoders, got {getattr(cfg, name)}; "
                f"leave out --{name}, or --distribute_layers and --shard_latents"
            )

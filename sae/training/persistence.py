"""The state of a run, to checkpoints and back: what each process holds is brought to the main one, which writes it."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.activations.store import ActivationStore
from sae.dictionary.autoencoder import Sae
from sae.parallel.world import World
from sae.runs import checkpoint
from sae.runs.background_save import Saver
from sae.runs.checkpoint import Checkpoint
from sae.runs.folder import RunFolder
from sae.training.learner import SaeLearner, is_per_latent
from sae.training.run_plan import SaeShape


class Persistence:
    """Checkpoints of the autoencoders in training, in the folder of a run."""

    def __init__(
        self,
        folder: RunFolder,
        world: World,
        shapes: Mapping[str, SaeShape],
        saes: Mapping[str, Sae],
        learners: Mapping[str, SaeLearner],
    ) -> None:
        """`shapes` are those of all autoencoders; `saes` and `learners` are held by this process, or parts of them."""
        self._path, self._world, self._shapes = folder.path, world, shapes
        self._saes, self._learners = saes, learners
        self._saver = Saver(folder.path, keep_last=folder.keep_last)

    def state(self, trainer: dict[str, Any]) -> Checkpoint:
        """On the main process all autoencoders and their optimizers, beside the `trainer`'s own state."""
        weights = self._gathered({name: dict(sae.state_dict()) for name, sae in self._saes.items()})
        states = self._gathered({name: learner.state_dict() for name, learner in self._learners.items()})
        saes = {name: self._whole(name, tensors) for name, tensors in weights.items()}
        return Checkpoint(saes, states, trainer)

    def _whole(self, name: str, tensors: Mapping[str, Tensor]) -> Sae:
        return Sae.of_tensors(self._shapes[name].cfg, tensors, like=self._shapes[name].spec)

    def _gathered(self, held: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """On the main process the tensors of all autoencoders, brought there if need be; elsewhere nothing."""
        gather = partial(self._world.assembled, is_split=is_per_latent)
        found = {name: gather(name, held.get(name, {})) for name in self._shapes}
        return found if self._world.is_main else {}

    def start_to_save(self, state: Checkpoint) -> None:
        """Begin to write a checkpoint; training may go on as soon as this returns."""
        self._world.from_main(partial(self._saver.start, state), slow=True)

    def save(self, state: Checkpoint, *, anew: bool = False) -> Path:
        """Write a checkpoint, `anew` if there is one of the step, and wait until it is on disk; returns its folder."""
        return self._world.from_main(partial(self._saver.save, state, anew=anew), slow=True)

    def check(self) -> None:
        """Raise what went wrong while checkpoints were written, once; does not wait."""
        self._saver.check()

    def settle(self) -> None:
        """Wait until everything is on disk that can be."""
        with suppress(OSError, FloatingPointError):
            self._saver.wait()

    def latest(self) -> Path | None:
        """The last checkpoint."""
        return checkpoint.latest(self._path)

    def newest_undamaged(self, checked: Path | None = None) -> tuple[Path | None, list[str]]:
        """The checkpoint to continue from, and what is wrong with newer ones, which are set aside.

        One that was found undamaged when the run began (`checked`) is not read for that again: `load` does it.
        """
        return self._world.from_main(partial(self._newest_undamaged, checked), slow=True)

    def _newest_undamaged(self, checked: Path | None) -> tuple[Path | None, list[str]]:
        checkpoint.put_back(self._path)
        folder, complaints = checkpoint.newest_undamaged(self._path, checked=checked)
        checkpoint.set_damaged_aside(self._path, folder)
        return folder, complaints

    def load(self, folder: Path) -> dict[str, Any]:
        """Give autoencoders and optimizers what a checkpoint says; returns the trainer's own state.

        Raises ValueError if it is damaged.
        """
        saved = checkpoint.load(folder, self._like())  # every process reads what it holds
        for name, learner in self._learners.items():
            self._saes[name].load_state_dict(self._own_part(saved.saes[name].state_dict()))
            learner.load_state_dict(self._own_part(saved.states[name]))
        return saved.trainer

    def _like(self) -> Checkpoint:
        """The shapes and types of this process's autoencoders, as they are when their parts are joined."""
        shapes = partial(self._world.shapes_of_whole, is_split=is_per_latent)
        saes = {name: self._whole(name, shapes(dict(sae.state_dict()))) for name, sae in self._saes.items()}
        states = {name: shapes(learner.state_dict()) for name, learner in self._learners.items()}
        return Checkpoint(saes, states, {})

    def _own_part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._world.part(tensors, is_split=is_per_latent)


def fingerprints(store: ActivationStore, world: World) -> dict[str, str]:
    """Fingerprints of model and data. Raises ValueError if not all processes have the same."""
    with world.together():
        own = store.fingerprints()
    for rank, other in enumerate(world.gather(own)):
        if different := [name for name in own if own[name] != other[name]]:
            raise world.on_all(
                ValueError(
                    f"all processes must read the same model and data, but {' and '.join(different)} of rank "
                    f"{world.rank} and rank {rank} differ; copy the same files to every machine"
                )
            )
    return own

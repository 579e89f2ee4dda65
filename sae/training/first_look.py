"""The first activations of a run: errors in them show before anything is written."""

from collections.abc import Iterable

from sae.activations.source import Activations, Batch
from sae.evaluation.outliers import massive_note
from sae.parallel.world import World
from sae.training.learner import SaeLearner


def check_some_are_left(first: Activations, held_out: Batch, world: World) -> None:
    """Raise ValueError if what is excluded leaves nothing to train on or to hold out."""
    if not world.any(len(next(iter(first.values()))) > 0) or not len(held_out.kept):
        raise ValueError(
            "--exclude_tokens and --exclude_positions must leave some tokens to train on and to hold out, got none "
            "of the first batches; exclude fewer"
        )


def check_they_differ(learners: dict[str, SaeLearner], world: World) -> None:
    """Raise ValueError, naming the hookpoints, where the first tokens have the same activations on all processes."""
    constant = [name for name, learner in learners.items() if learner.variance == 0]
    constant += [hookpoint for learner in learners.values() for hookpoint in learner.constant]
    if alike := list(dict.fromkeys(name for names in world.gather(constant) for name in names)):
        message = (
            f"activations at {', '.join(alike[:5])} must differ between tokens, but all of the first batches are "
            "the same: there is nothing to learn; leave such places out with --hookpoints or --layers"
        )
        raise world.on_all(ValueError(message))


def notes(held_out: Batch, too_short: str | None, slow: str | None, about: Iterable[str], *, spared: bool) -> list[str]:
    """Sentences for the user: on the run's length and speed, its massive tokens, and `about` what is held out."""
    massive = massive_note(held_out.activations, held_out.tokens, held_out.kept, spared=spared)
    return [sentence for sentence in (too_short, slow, massive, *about) if sentence]

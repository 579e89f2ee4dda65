"""Which autoencoders a run trains, as plain values: decided here, carried out by the trainer.

One configuration: an autoencoder for each hookpoint, with its name. Several: each is a combination with a label, and
trains an autoencoder named label/hookpoint at each hookpoint, all on the same activations.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

from sae.config import SaeConfig, TrainConfig, several

SHORT = {"expansion_factor": "x", "num_latents": "n"}
"""What options are called in a label, where that is not their name."""
BYTES_PER_PARAMETER = {"default": 3 * 4 + 2, "gao2024": 4 * 4 + 2}
"""By recipe: weight, gradient and one or two moments in float32; and the weights in bfloat16, on a CPU those of the
encoder alone."""


class SaePlan(NamedTuple):
    """One autoencoder to train: what it reads, its shape, and what it does not share with the others."""

    hookpoint: str
    cfg: SaeConfig
    lr: float | None
    """Peak learning rate. None: derived from the number of latents."""
    seed: int
    """Of the initial weights, together with the hookpoint."""
    label: str = ""
    """Of the combination; empty if there is only one."""


def plan_saes(cfg: TrainConfig, hookpoints: Iterable[str]) -> dict[str, SaePlan]:
    """The autoencoders of a run, by name, combination after combination.

    Raises ValueError if two combinations are the same.
    """
    combinations = list(product(several(cfg.sae), several(cfg.lr), several(cfg.seed)))
    labels = _labels([_choices(*combination) for combination in combinations])
    if twice := [label for index, label in enumerate(labels) if label in labels[:index]]:
        raise ValueError(f"the configurations to train must differ, got {twice[0]} twice; leave one of them out")
    names = list(hookpoints)
    return {
        f"{label}/{name}" if label else name: SaePlan(name, *combination, label)
        for label, combination in zip(labels, combinations, strict=True)
        for name in names
    }


def _choices(sae: SaeConfig, lr: float | None, seed: int) -> dict[str, Any]:
    """What can differ between combinations, without what has no effect."""
    choices = asdict(sae) | {"lr": lr, "seed": seed}
    del choices["expansion_factor" if sae.num_latents else "num_latents"]
    return choices


def _plain(value: Any) -> str:
    """A value as part of a folder's name."""
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _labels(combinations: list[dict[str, Any]]) -> list[str]:
    """For each combination the values that differ: `k32_x8_lr0.001`. Of one combination nothing."""
    names = dict.fromkeys(("k", *asdict(SaeConfig()), "lr", "seed"))
    varying = [name for name in names if len({str(choices.get(name)) for choices in combinations}) > 1]
    if len(combinations) > 1 and not varying:
        varying = ["k"]
    return [
        "_".join(f"{SHORT.get(name, name)}{_plain(choices[name])}" for name in varying if name in choices)
        for choices in combinations
    ]


# Memory


def training_bytes(plans: Mapping[str, SaePlan], widths: Mapping[str, int], recipe: str) -> dict[str, int]:
    """About how much memory the training of each autoencoder takes beside the activations, by name."""
    sizes = {name: (widths[plan.hookpoint], plan.cfg) for name, plan in plans.items()}
    per_parameter = BYTES_PER_PARAMETER[recipe]
    return {name: 2 * d_in * cfg.latents_for(d_in) * per_parameter for name, (d_in, cfg) in sizes.items()}


def check_memory(plans: Mapping[str, SaePlan], widths: Mapping[str, int], recipe: str, free: int | None) -> str:
    """What a sweep takes, in one line. Raises ValueError, naming what to drop, if it is more than is free (bytes)."""
    needed = training_bytes(plans, widths, recipe)
    total, labels = sum(needed.values()), dict.fromkeys(plan.label for plan in plans.values())
    size = f"{len(plans)} autoencoders, {len(labels)} combinations at each hookpoint, take {total / 1e9:.2f} GB"
    if free is None or total <= free:
        return size if free is None else f"{size} of {free / 1e9:.2f} GB that are free"
    kept: list[str] = []
    by_label = {label: sum(n for name, n in needed.items() if plans[name].label == label) for label in labels}
    for label in sorted(by_label, key=lambda label: by_label[label]):
        if sum(by_label[each] for each in (*kept, label)) <= free:
            kept.append(label)
    dropped = [label for label in labels if label not in kept]
    raise ValueError(
        f"{size}, and {free / 1e9:.2f} GB are free; drop {', '.join(dropped)}, or train fewer hookpoints at a time, "
        "from cached activations"
    )

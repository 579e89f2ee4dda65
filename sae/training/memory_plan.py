"""What training takes of a device's memory, and what would fit where it does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

from sae.training.run_plan import SaePlan

BYTES_PER_PARAMETER = {"default": 2 * 4 + 2 * 2, "gao2024": 4 * 4 + 2}
"""Bytes of a parameter, by recipe: weight and gradient in float32, and one moment in bfloat16, or two in float32. The
weight is there in bfloat16 too, on a CPU the encoder's alone."""

GRADIENT = 4
"""Bytes of a parameter's gradient among them. One process on a CPU computes gradients a few rows at a time."""

LEAST_BYTES_PER_PARAMETER = {"default": 4 + 2, "gao2024": 3 * 4}
"""Bytes by recipe of the weight and its moments alone."""


def training_bytes(
    plans: Mapping[str, SaePlan], widths: Mapping[str, int], recipe: str, *, whole_gradients: bool = True
) -> dict[str, int]:
    """About how much memory the training of each autoencoder takes beside the activations, by name."""
    per_parameter = BYTES_PER_PARAMETER[recipe] - (0 if whole_gradients else GRADIENT)
    return {name: _numbers(plan, widths) * per_parameter for name, plan in plans.items()}


def check_fits(
    plans: Mapping[str, SaePlan], widths: Mapping[str, int], recipe: str, free: int | None, *, parts: int = 1
) -> None:
    """Raise ValueError, naming sizes that would do, if weights and moments alone are more than is free (bytes).

    `plans` are of one combination. A process holds one of `parts` of each.
    """
    least = partial(_least_bytes, widths=widths, recipe=recipe, parts=parts)
    taken = [least(plan) for plan in plans.values()]
    needed = sum(taken)
    if free is None or needed <= free:
        return
    latents = max(plan.cfg.latents_for(plan.d_in(widths)) for plan in plans.values())
    fitting = [f"--num_latents {int(latents * free / needed)}"]
    layers = [plan for plan in plans.values() if plan.cfg.cross_layer]
    if layers:
        what, of = "cross_layer", f"{len(layers)} modules"
        fitting += _smaller_cross_layer(layers, latents, least, free)
    else:
        what, of = "the autoencoders", f"{len(plans)}"
        fewer = sum(total <= free for total in accumulate(taken))
        fitting += [f"{fewer} hookpoints at a time (--layers)"] * (fewer > 0)
    raise ValueError(
        f"{what} must fit into memory, but weights and moments of {of} with {latents} latents take "
        f"{needed / 1e9:.2f} GB, of {free / 1e9:.2f} GB that are free; these would fit: {', or '.join(fitting)}"
    )


def _smaller_cross_layer(
    layers: Sequence[SaePlan], latents: int, least: Callable[[SaePlan], int], free: int
) -> list[str]:
    """Cross-layer transcoders with so many latents that fit: of fewer modules, and with tied decoders.

    `least` says what a process needs for one layer.
    """
    fewer = next((n for n in range(len(layers), 0, -1) if sum(map(least, _first(layers, n))) <= free), 0)
    fitting = [f"{fewer} modules (--hookpoints)"] * (fewer > 0)
    if not layers[0].cfg.tie_decoders:
        tied = [plan._replace(cfg=replace(plan.cfg, tie_decoders=True)) for plan in layers]
        less = sum(map(least, tied))
        most = f" with --num_latents {int(latents * free / less)}" if less > free else ""
        fitting.append(f"--tie_decoders{most}, which takes {min(less, free) / 1e9:.2f} GB")
    return fitting


def _least_bytes(plan: SaePlan, widths: Mapping[str, int], recipe: str, parts: int) -> int:
    """Weights and moments of one of the equal parts of a dictionary, in bytes."""
    return _numbers(plan, widths) * LEAST_BYTES_PER_PARAMETER[recipe] // parts


def _numbers(plan: SaePlan, widths: Mapping[str, int]) -> int:
    """Numbers in the matrices of one dictionary, and in what ties its decoders by target."""
    d_in, factors = plan.d_in(widths), len(plan.across) if plan.cfg.tied_by_target else 0
    return (d_in + plan.d_out(widths) + factors) * plan.cfg.latents_for(d_in)


def _first(layers: Sequence[SaePlan], count: int) -> list[SaePlan]:
    """The layers of a cross-layer transcoder of the first `count` of these modules alone."""
    return [plan._replace(across=plan.across[: count - index]) for index, plan in enumerate(layers[:count])]


def check_sweep_fits(
    plans: Mapping[str, SaePlan], widths: Mapping[str, int], recipe: str, free: int | None, *,
    whole_gradients: bool = True,
) -> str:  # fmt: skip
    """What a sweep takes, in one line. Raises ValueError, naming what to drop, if it is more than is free (bytes)."""
    needed = training_bytes(plans, widths, recipe, whole_gradients=whole_gradients)
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

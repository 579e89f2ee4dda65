"""Massive tokens, such as attention sinks: which they are, in words."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionary.losses import spread


def massive_note(
    activations: Mapping[str, Float[Tensor, "kept d_in"]],
    tokens: Int[Tensor, "batch seq"],
    kept: Int[Tensor, "kept"],
    *,
    spared: bool,
) -> str | None:
    """A sentence that says at which hookpoints tokens are massive, which ones, and what follows; None if none are.

    `activations` belong to the entries `kept` of the flattened `tokens`. `spared`: the recipe leaves them out of the
    loss's normaliser and of AuxK.
    """
    masks = {name: spread(x, x).rule.counts(x).cpu() == 0 for name, x in activations.items()}
    found = {name: mask for name, mask in masks.items() if mask.any()}
    if not found:
        return None
    at = kept[torch.stack(list(found.values())).any(0)]
    which, way_out = _named(at % tokens.shape[1], tokens.flatten()[at])
    meant = (
        "they are reconstructed apart, and the loss's scale, FVU and L0 are of the others"
        if spared
        else "FVU and L0 are of the others"
    )
    where, are = _some(list(found)), "is" if len(at) == 1 else "are"
    return (
        f"{len(at)} of {len(kept):,} tokens {are} massive at {where} (attention sinks and the like; {which}): "
        f"{meant}; {way_out}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} … {names[-1]}"


def _named(positions: Int[Tensor, "massive"], ids: Int[Tensor, "massive"]) -> tuple[str, str]:
    """Common properties of most massive tokens, and the options that leave them out altogether."""
    for values, what, option in ((positions, "at position", "exclude_positions"), (ids, "token", "exclude_tokens")):
        value = values.mode().values.item()
        count = int((values == value).sum())
        if count > 1 and 2 * count > len(values):
            return f"{count} of them {what} {value}", f"--{option} {value} leaves these out altogether"
    where = sorted(set(positions.tolist()))
    return (
        f"at position{'s' * (len(where) > 1)} {', '.join(map(str, where[:5]))}{' …' * (len(where) > 5)}",
        "--exclude_positions and --exclude_tokens leave some out altogether",
    )

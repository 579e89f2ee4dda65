"""A folder with a PEFT adapter and no model: it is merged into the model that it was trained on."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from .explain import Access, model_errors_explained
from .wrappers import base_model

CONFIG = "adapter_config.json"
_MAX_CONFIG_BYTES = 2**20
_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
_INSIDE = "base_model.model."
"""What the names of an adapter's weights begin with, before the names of the model's modules."""


class Adapter(NamedTuple):
    """Where an adapter is, and for which model."""

    folder: str
    base: str
    """A hub id or a folder."""
    revision: str | None
    """Revision of the base."""


def adapter_in(name: str) -> Adapter | None:
    """The adapter in a local folder; None if there is none. Raises ValueError, in one line."""
    folder = Path(name).expanduser()
    path = folder / CONFIG
    if not path.is_file():
        return None
    if weights := next((found.name for kind in _WEIGHTS for found in folder.glob(kind)), None):
        raise ValueError(
            f"model {name} must be a model or an adapter, and has {weights} and {CONFIG}; move one of them away"
        )
    written = _read(name, path)
    base, revision = written.get("base_model_name_or_path"), written.get("revision")
    if not isinstance(base, str) or not base:
        raise ValueError(f"model {name} is an adapter, and its {CONFIG} must name base_model_name_or_path; write it in")
    if (Path(base).expanduser() / CONFIG).is_file():
        raise ValueError(f"model {name} must be an adapter of a model, and {base} is an adapter; merge that first")
    return Adapter(str(folder), base, revision if isinstance(revision, str) and revision else None)


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        written = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        written = None
    if not isinstance(written, dict):
        raise ValueError(f"model {name} must have a readable {CONFIG}, a JSON object; download it again")
    return written


def check_peft(name: str) -> None:
    """Raise ValueError if PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"model {name} holds a PEFT adapter, and needs peft, which is not installed; pip install peft, or merge it "
            "into its model (model.merge_and_unload().save_pretrained) and give that folder"
        )


def merge(name: str, model: nn.Module, adapter: Adapter) -> None:
    """Add what the adapter has learned to the weights of its model, in place.

    Raises ValueError, in one line, for an adapter of another model, and for a damaged one. So it does for an adapter
    that does not change weights, such as a learned prompt.
    """
    check_peft(name)
    with (
        model_errors_explained(Access(name), "holds an adapter that cannot be loaded: {text}"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # on missing weights, which are an error below
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights

        config: Any = PeftConfig.from_pretrained(adapter.folder)
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(f"{type(config).__name__} adds a prompt, which no weights can hold; use LoRA or the like")
        saved = set(load_peft_weights(adapter.folder, device="cpu"))
        wrapped: Any = PeftModel.from_pretrained(_trained_as(model, saved), adapter.folder)
        expected = set(get_peft_model_state_dict(wrapped))
        if missing := sorted(saved ^ expected):
            raise ValueError(f"{len(missing)} of its weights are not those for {adapter.base} ({missing[0]} …)")
        wrapped.merge_and_unload()


def _trained_as(model: nn.Module, saved: set[str]) -> nn.Module:
    """The model with its head, or without, as the names of the adapter's weights begin."""
    paths = [key.removeprefix(_INSIDE).split(".")[:2] for key in saved]
    return model if all(_has(model, path) for path in paths) else base_model(model)


def _has(model: nn.Module, path: list[str]) -> bool:
    part: Any = model
    for name in path:
        part = getattr(part, "_modules", {}).get(name)
    return part is not None

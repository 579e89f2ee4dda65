"""How many tokens a model reads at once: what its config says, and what its tables of positions hold."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from .hookpoints import block_list, embedding_path
from .pair import models_in, of_side
from .wrappers import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
else:  # takes seconds to import, and the tests' shape checks look annotations up at run time
    PreTrainedConfig = Any

CONTEXT_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
POSITION_TABLE = re.compile(r"embed_positions|(char_)?position_embeddings?|positions?_embed|wpe|pos_embeddings?")
"""What modules with one vector for each absolute position are called."""


def context_limit(model: nn.Module | PreTrainedConfig) -> int | None:
    """How many tokens the model reads at once, by its modules, or by its config alone; None if nothing sets a limit.

    Tables of positions know more than the config. Where they have a padding row, positions start behind it: a model
    whose config counts 514 positions reads 512 tokens. A skeleton without weights is enough.
    """
    config: Any = getattr(model, "config", None) if isinstance(model, nn.Module) else model
    text = None if config is None else config.get_text_config()
    limits = [n for key in CONTEXT_LIMITS if isinstance(n := getattr(text, key, None), int) and n > 0][:1]
    if isinstance(model, nn.Module):
        limits += _table_sizes(base_model(model))
    return min(limits, default=None)


def check_ctx_len(ctx_len: int, model: nn.Module | PreTrainedConfig) -> None:
    """Raises ValueError if the model, or one of a pair, cannot read `ctx_len` tokens at once."""
    for side, one in models_in(model).items() if isinstance(model, nn.Module) else [("", model)]:
        with of_side(side):
            _check_ctx_len(ctx_len, one)


def _check_ctx_len(ctx_len: int, model: nn.Module | PreTrainedConfig) -> None:
    limit = context_limit(model)
    if ctx_len < 1:
        raise ValueError(f"--ctx_len must be at least 1 token, got {ctx_len}; use --ctx_len {min(limit or 2048, 2048)}")
    if limit is not None and ctx_len > limit:
        raise ValueError(f"--ctx_len must be at most the model's limit={limit}, got {ctx_len}; use --ctx_len {limit}")


def _table_sizes(base: nn.Module) -> Iterator[int]:
    """Lengths, in tokens, of the tables of absolute positions beside the token embedding or the blocks."""
    beside = {embedding_path(base).rpartition(".")[0]}
    try:
        beside.add(block_list(base)[0].rpartition(".")[0])
    except ValueError:  # no list of blocks, or several: the tables beside the embedding are all that is known
        pass
    for path, module in base.named_modules():
        parent, _, name = path.rpartition(".")
        rows: Any = getattr(getattr(module, "weight", None), "shape", ())
        if parent in beside and POSITION_TABLE.fullmatch(name) and len(rows) == 2:
            padding = getattr(module, "padding_idx", None)
            yield rows[0] - (0 if padding is None else padding + 1)

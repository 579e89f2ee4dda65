"""All that touches the language model: load it, name places in it (hookpoints), read or replace what passes there."""

from .compiled import compile_blocks
from .context import check_ctx_len, context_limit
from .graft import Latents, graft
from .harvest import cannot_compute, harvest, widths
from .hookpoints import base_model, block_list, fits, locate, resolve_hookpoints
from .identity import fingerprint
from .load import (
    check_device,
    compute_dtype,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    vocab_size,
)
from .logits import has_head, is_causal, logits_of, num_positions_per_chunk, run_base, with_hidden

__all__ = [
    "Latents",
    "base_model",
    "block_list",
    "cannot_compute",
    "check_ctx_len",
    "check_device",
    "compile_blocks",
    "compute_dtype",
    "context_limit",
    "fingerprint",
    "fits",
    "graft",
    "harvest",
    "has_head",
    "is_causal",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "locate",
    "logits_of",
    "num_positions_per_chunk",
    "resolve_hookpoints",
    "run_base",
    "vocab_size",
    "widths",
    "with_hidden",
]

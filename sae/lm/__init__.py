"""All that touches the language model: load it, name places in it (hookpoints), read or replace what passes there."""

from .compiled import compile_blocks
from .context import check_ctx_len, context_limit
from .graft import Latents, graft
from .harvest import cannot_compute, harvest, widths
from .hookpoints import base_model, block_list, block_names, canonical, canonical_ends, fits, locate, resolve_hookpoints
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
from .logits import Head, Hidden, NoHeadError, find_head, full_logits, num_positions_per_chunk
from .skip import Skips
from .unembedding import Unembedding, find_unembedding, path_to_logits
from .vocabulary import token_texts
from .wrappers import unwrapped

__all__ = [
    "Head",
    "Hidden",
    "Latents",
    "NoHeadError",
    "Skips",
    "Unembedding",
    "base_model",
    "block_list",
    "block_names",
    "cannot_compute",
    "canonical",
    "canonical_ends",
    "check_ctx_len",
    "check_device",
    "compile_blocks",
    "compute_dtype",
    "context_limit",
    "find_head",
    "find_unembedding",
    "fingerprint",
    "fits",
    "full_logits",
    "graft",
    "harvest",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "locate",
    "num_positions_per_chunk",
    "path_to_logits",
    "resolve_hookpoints",
    "token_texts",
    "unwrapped",
    "vocab_size",
    "widths",
]

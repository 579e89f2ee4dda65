"""All that touches the language model: load it, name places in it (hookpoints), read or replace what passes there."""

from .compiled import compile_blocks
from .context import check_ctx_len, context_limit
from .graft import Latents, graft
from .harvest import cannot_compute, harvest, widths
from .hookpoints import block_list, block_names, canonical, canonical_ends, fits, locate, resolve_hookpoints
from .identity import fingerprint, fingerprints
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
from .pair import MODELS, ModelPair, model_at, models_in, side_of
from .skip import Skips
from .unembedding import Unembedding, find_unembedding, path_to_logits
from .vocabulary import check_same_tokens, token_texts
from .wrappers import base_model, unwrapped

__all__ = [
    "MODELS",
    "Head",
    "Hidden",
    "Latents",
    "ModelPair",
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
    "check_same_tokens",
    "compile_blocks",
    "compute_dtype",
    "context_limit",
    "find_head",
    "find_unembedding",
    "fingerprint",
    "fingerprints",
    "fits",
    "full_logits",
    "graft",
    "harvest",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "locate",
    "model_at",
    "models_in",
    "num_positions_per_chunk",
    "path_to_logits",
    "resolve_hookpoints",
    "side_of",
    "token_texts",
    "unwrapped",
    "vocab_size",
    "widths",
]

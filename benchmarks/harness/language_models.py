"""Language models for the end-to-end rows: a folder with weights, or random weights of a known shape."""

from pathlib import Path
from typing import Any

import torch

RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "pythia-160m": (
        "gpt_neox",
        dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, vocab_size=50304),
    ),
    "llama-3-8b": (
        "llama",
        dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
             intermediate_size=14336, vocab_size=128256, rope_theta=500000.0, max_position_embeddings=8192),
    ),
    "tiny": (
        "llama",
        dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
             vocab_size=128),
    ),
}  # fmt: skip
"""Sizes of models whose weights are drawn at random: speed does not care. (model_type, its config)"""


def load(name: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The base model, without a head, in eval mode: a name in RANDOM, or a folder of transformers."""
    from transformers import AutoConfig, AutoModel

    if name in RANDOM:
        model_type, sizes = RANDOM[name]
        torch.manual_seed(0)
        with device:
            model = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes), dtype=dtype)
    else:
        assert Path(name).is_dir(), name
        model = AutoModel.from_pretrained(name, dtype=dtype).to(device)
    return model.eval().requires_grad_(False)

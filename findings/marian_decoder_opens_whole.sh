#!/usr/bin/env bash
# A folder that MarianForCausalLM wrote: AutoModel makes the encoder and decoder of its config, and the encoder is random.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$python" - <<'PY'
import tempfile

import torch
import transformers
from transformers import AutoModel, MarianConfig, MarianForCausalLM

print(f"transformers {transformers.__version__}\nexpected: the base of the decoder that wrote the folder")
sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 99, "pad_token_id": 1}
folder = tempfile.mkdtemp()
MarianForCausalLM(MarianConfig(**sizes, **heads, is_decoder=True, is_encoder_decoder=False)).save_pretrained(folder)
one, two = (AutoModel.from_pretrained(folder) for _ in range(2))
first, second = (each.get_encoder().layers[0].fc1.weight if hasattr(each, "encoder") else None for each in (one, two))
has_encoder = first is not None
print(f"seen: {type(one).__name__}, with an encoder: {has_encoder}")
same = has_encoder and torch.equal(first, second)
print(f"seen: the encoder's weights are the same when the folder is opened again: {same}")
raise SystemExit(not (has_encoder and not same))
PY

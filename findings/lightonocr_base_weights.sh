#!/usr/bin/env bash
# LightOnOCR saved as it is published: AutoModel loads none of its weights, and starts from random ones.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import tempfile

import torch
import transformers
from transformers import AutoModel, LightOnOcrConfig, LightOnOcrForConditionalGeneration

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8, "num_hidden_layers": 1}
config = LightOnOcrConfig(
    text_config={"model_type": "qwen3", "vocab_size": 64, "num_key_value_heads": 2, **sizes},
    vision_config={"model_type": "pixtral", "image_size": 28, "patch_size": 14, **sizes},
    image_token_id=5,
)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    LightOnOcrForConditionalGeneration(config).save_pretrained(folder)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
total, missing = len(model.state_dict()), len(info["missing_keys"])
print(f"transformers {transformers.__version__}")
print(f"expected: {type(model).__name__} has its {total} weights from the folder")
print(f"seen: {missing} of {total} are missing, {len(info['unexpected_keys'])} of the folder's are not used")
raise SystemExit(missing != total)
PY

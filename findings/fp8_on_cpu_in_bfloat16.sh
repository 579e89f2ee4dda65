#!/usr/bin/env bash
# An fp8 folder whose other weights are float32, loaded on a CPU in bfloat16: unpacked weights stay float32.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
"$python" - <<'PY'
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
model.save_pretrained("model")
packed = {}
for name, weight in model.state_dict().items():
    packed[name] = weight
    if "proj" in name:  # in blocks of 16 x 16, each with a scale
        rows, columns = weight.shape
        scale = weight.reshape(rows // 16, 16, columns // 16, 16).abs().amax((1, 3)) / 448
        whole = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
        packed[name] = (weight / whole).to(torch.float8_e4m3fn)
        packed[name.replace("weight", "weight_scale_inv")] = scale
save_file(packed, "model/model.safetensors", metadata={"format": "pt"})
path = Path("model/config.json")
packing = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": packing}))
loaded = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16, device_map={"": "cpu"})
types = sorted({str(weight.dtype) for weight in loaded.parameters()})
try:
    loaded(torch.tensor([[1, 2, 3]]))
    seen = "runs"
except RuntimeError as error:
    seen = f"RuntimeError: {error}"
print(f"transformers {transformers.__version__}\nexpected: all weights in bfloat16\nseen: {types}; {seen}")
raise SystemExit(seen == "runs")
PY

#!/usr/bin/env bash
# PEFT's HiRA takes no notice of rank_pattern for a model's first adapter, and obeys it for those that come later: one config makes two architectures, and what the later one saved does not load as a first.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

from peft import HiraConfig, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

print(f"peft {version('peft')}: rank 8, by rank_pattern 2 for the first layer\nexpected: the first layer's weights have rank 2, as with LoRA and LoHa, whichever adapter of the model it is")


def base():
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))


def rank(model, layer, adapter):
    """The smallest side of a layer's weights of an adapter."""
    return min(min(weight.shape) for name, weight in model.named_parameters() if f".{layer}." in name and f".{adapter}" in name and weight.ndim == 2)


seen = {}
for name, kind in (("LoRA", LoraConfig), ("LoHa", LoHaConfig), ("HiRA", HiraConfig)):
    config = kind(r=8, target_modules=["0", "2"], rank_pattern={"0": 2})
    model = get_peft_model(base(), config, adapter_name="one")
    model.add_adapter("two", config)
    model.save_pretrained(name)
    try:
        PeftModel.from_pretrained(base(), f"{name}/two")
        loads = "yes"
    except RuntimeError as error:
        loads = "no, " + ("the shapes differ" if "size mismatch" in str(error) else "another error")
    seen[name] = rank(model, 0, "one"), rank(model, 0, "two"), rank(model, 2, "one"), rank(model, 2, "two"), loads
    print("seen: {}: first layer: rank {} in the first adapter, {} in the second; last layer: {} and {}; what the second saved loads into a new model: {}".format(name, *seen[name]))
raise SystemExit(not (seen["LoRA"] == seen["LoHa"] == (2, 2, 8, 8, "yes") and seen["HiRA"] == (8, 2, 8, 8, "no, the shapes differ")))
PY

"""Run by the Python of circuit-tracer: PLACE FOLDER. Reads the transcoder at PLACE, and reconstructs x of FOLDER."""

import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file, save_file

place, folder = sys.argv[1:]
config = yaml.safe_load((Path(place).parent / "config.yaml").read_text())
found = load_transcoder_set(
    {0: place}, config["scan"], config["feature_input_hook"], config["feature_output_hook"], device=torch.device("cpu"),
    lazy_encoder=False, lazy_decoder=False,
)  # fmt: skip
with torch.no_grad():
    save_file({"recon": found[0](load_file(f"{folder}/x.safetensors")["x"])}, f"{folder}/recon.safetensors")

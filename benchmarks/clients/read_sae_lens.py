"""Run by the Python of sae-lens: FOLDER KIND PLACE. Reads the dictionary at PLACE, and reconstructs x of FOLDER."""

import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

folder, _, place = sys.argv[1:]
x = load_file(f"{folder}/x.safetensors")["0"]
with torch.no_grad():
    recon = SAE.load_from_disk(place)(x)
save_file({"recon.0": recon.contiguous()}, f"{folder}/answer.safetensors")

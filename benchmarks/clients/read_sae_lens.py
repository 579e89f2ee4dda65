"""Run by the Python of sae-lens: PLACE FOLDER. Reads the dictionary at PLACE, and reconstructs x of FOLDER."""

import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

place, folder = sys.argv[1:]
with torch.no_grad():
    save_file(
        {"recon": SAE.load_from_disk(place)(load_file(f"{folder}/x.safetensors")["x"])}, f"{folder}/recon.safetensors"
    )

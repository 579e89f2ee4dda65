"""Run by the Python of eai-sparsify: PLACE FOLDER. Reads the dictionary at PLACE, and reconstructs x of FOLDER."""

import sys

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder

place, folder = sys.argv[1:]
x = load_file(f"{folder}/x.safetensors")["x"]
with torch.no_grad():
    save_file({"recon": SparseCoder.load_from_disk(place, device="cpu")(x).sae_out}, f"{folder}/recon.safetensors")

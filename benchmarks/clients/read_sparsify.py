"""Run by the Python of eai-sparsify: FOLDER KIND PLACE. Reads the dictionary at PLACE, and reconstructs x of FOLDER."""

import sys

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder

folder, _, place = sys.argv[1:]
x = load_file(f"{folder}/x.safetensors")["0"]
with torch.no_grad():
    recon = SparseCoder.load_from_disk(place, device="cpu")(x).sae_out
save_file({"recon.0": recon.contiguous()}, f"{folder}/answer.safetensors")

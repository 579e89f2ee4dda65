"""Run by the Python of dictionary-learning: FOLDER KIND PLACE. Reads the one at PLACE, reconstructs x of FOLDER."""

import sys

import torch
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

folder, _, place = sys.argv[1:]
x = load_file(f"{folder}/x.safetensors")["0"]
with torch.no_grad():
    recon = load_dictionary(place, device="cpu")[0](x)
save_file({"recon.0": recon.contiguous()}, f"{folder}/answer.safetensors")

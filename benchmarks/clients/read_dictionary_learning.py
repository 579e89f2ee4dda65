"""Run by the Python of dictionary-learning, PLACE FOLDER: reads the one at PLACE, reconstructs x of FOLDER."""

import sys

import torch
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

place, folder = sys.argv[1:]
dictionary, _ = load_dictionary(place, device="cpu")
with torch.no_grad():
    save_file({"recon": dictionary(load_file(f"{folder}/x.safetensors")["x"])}, f"{folder}/recon.safetensors")

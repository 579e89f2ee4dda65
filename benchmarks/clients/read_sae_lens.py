"""Run by the Python of sae-lens: FOLDER KIND PLACE. Reads the dictionary at PLACE, and reconstructs x of FOLDER.

A KIND of Gemma Scope 2 is opened by the loader that sae-lens has for Google's own files.
"""

import sys
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors import safe_open
from safetensors.torch import load_file, save_file

folder, kind, place = sys.argv[1:]


def from_here(repo_id: str, filename: str, **_: Any) -> str:
    """What the hub's client would have fetched."""
    return f"{place}/{filename.rpartition('/')[2]}"


def shapes_here(repo_id: str, filename: str) -> dict[str, list[int]]:
    with safe_open(from_here(repo_id, filename), "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


def of_gemma_scope() -> SAE:
    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = from_here, shapes_here
    name = f"{'transcoder' if 'transcoder' in kind else 'resid_post'}/layer_0_width_16k_l0_big"
    cfg, tensors, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-270m-pt", name, "cpu")
    sae = SAE.from_dict(loaders.handle_config_defaulting(cfg))
    sae.load_state_dict(tensors)
    return sae


x = load_file(f"{folder}/x.safetensors")["0"]
sae = of_gemma_scope() if kind.startswith("gemma-scope-2") else SAE.load_from_disk(place)
with torch.no_grad():
    recon = sae(x)
save_file({"recon.0": recon.contiguous()}, f"{folder}/answer.safetensors")

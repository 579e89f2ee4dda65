"""Run by the Python of eai-sparsify: FOLDER. Saves its dictionaries there, with what they make of x."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

torch.manual_seed(0)
D, M, K = 8, 24, 3
KINDS = {
    "topk": {}, "groupmax": {"activation": "groupmax"}, "derived_width": {"num_latents": 0, "expansion_factor": 3},
    "transcoder": {"transcode": True}, "skip_transcoder": {"transcode": True, "skip_connection": True},
}  # fmt: skip
for kind, options in KINDS.items():
    sae = SparseCoder(D, SparseCoderConfig(**{"num_latents": M, "k": K, **options}))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        folder = Path(sys.argv[1]) / kind
        sae.save_to_disk(folder / "layers.3")
        x = torch.randn(16, D)
        save_file({"x": x, "recon": sae(x).sae_out}, folder / "expected.safetensors")

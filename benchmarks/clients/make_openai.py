"""Run with OpenAI's sparse_autoencoder on PYTHONPATH: FOLDER. Saves its autoencoders, with what they make of x.

Their library is on GitHub alone (openai/sparse_autoencoder, read at commit 764586a); it needs torch.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sparse_autoencoder.model import Autoencoder, TopK
from torch import nn

torch.manual_seed(0)
D, M, K = 8, 24, 3
KINDS = {  # version 5 as it is published and as state_dict() makes it, versions 1 and 4, and a tied decoder
    "openai.topk": (TopK(K), False, "resid_post_mlp_v5_32k"),
    "openai.topk_saved": (TopK(K), False, "resid_post_mlp_v5_32k"),
    "openai.relu": (nn.ReLU(), False, "resid_delta_mlp_v4"),
    "openai.tied": (nn.ReLU(), True, "resid_delta_attn_v5_32k"),
}
for kind, (rule, tied, place) in KINDS.items():
    case = Path(sys.argv[1]) / kind
    folder = case / "sparse-autoencoder/gpt2-small" / place / "autoencoders"
    folder.mkdir(parents=True)
    made = Autoencoder(M, D, activation=rule, tied=tied, normalize=isinstance(rule, TopK))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    held = made.state_dict()
    if kind == "openai.topk":  # whose files on the hub lack these two, and are opened strictly
        held = {name: value for name, value in held.items() if not name.startswith("activation.")}
    torch.save(held, folder / "3.pt")
    held, strict = torch.load(folder / "3.pt", weights_only=True), kind != "openai.topk_saved"
    opened = made if tied else Autoencoder.from_state_dict(held, strict)  # which knows no tied decoder
    x = 2 * torch.randn(16, D)
    with torch.no_grad():
        save_file({"x": x, "recon": opened(x)[2]}, case / "expected.safetensors")

"""Run by the Python of eai-delphi: FOLDER. Writes a file of Gemma Scope there, with what its loader makes of x.

Its class is that of Gemma Scope's own tutorial.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from delphi.sparse_coders.custom import gemmascope
from safetensors.torch import save_file

torch.manual_seed(0)
D, M = 8, 24
case = Path(sys.argv[1]) / "gemma-scope.res"
repository, name = "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_20"
folder = case / "gemma-scope-2b-pt-res" / name
folder.mkdir(parents=True)
shapes = {"W_enc": (D, M), "W_dec": (M, D), "b_enc": (M,), "b_dec": (D,), "threshold": (M,)}
np.savez(folder / "params.npz", **{name: torch.randn(*shape).abs().numpy() if name == "threshold"
                                   else torch.randn(*shape).numpy() for name, shape in shapes.items()})  # fmt: skip
gemmascope.hf_hub_download = lambda repo_id, filename, **_: str(case / repo_id.rpartition("/")[2] / filename)
sae = gemmascope.JumpReluSae.from_pretrained(repository, name, "cpu")
x = torch.randn(16, D)
with torch.no_grad():
    save_file({"x": x, "recon": sae(x)}, case / "expected.safetensors")

"""Run by the Python of circuit-tracer: FOLDER. Writes transcoders of Gemma Scope 1 and 2, and opens them as it does."""

import sys
from pathlib import Path

import numpy as np
import torch
from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
)
from safetensors.torch import save_file
from torch import Tensor

torch.manual_seed(0)
D, M, LAYERS = 8, 24, 2
TARGET = Path(sys.argv[1])
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def tensors(w_dec: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = {"w_enc": (D, M), "w_dec": w_dec, "b_enc": (M,), "b_dec": (D,), "threshold": (M,)}
    found = {name: torch.randn(*shape) for name, shape in shapes.items()}
    return found | {"threshold": found["threshold"].abs()}


def keep(case: str, x: Tensor, recon: Tensor) -> None:
    save_file({"x": x, "recon": recon.detach()}, TARGET / case / "expected.safetensors")


x = torch.randn(LAYERS, 16, D)
folder = TARGET / "gemma-scope.transcoder/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76"
folder.mkdir(parents=True)
named = {name.replace("w_", "W_"): tensor.numpy() for name, tensor in tensors((M, D)).items()}
np.savez(folder / "params.npz", **named)
keep("gemma-scope.transcoder", x[0], load_gemma_scope_transcoder(str(folder / "params.npz"), 0, **CPU)(x[0]))
for kind, end in (("transcoder", ""), ("skip_transcoder", "_affine")):
    case = f"gemma-scope-2.{kind}"
    folder = TARGET / case / f"gemma-scope-2-270m-pt/transcoder_all/layer_0_width_16k_l0_big{end}"
    folder.mkdir(parents=True)
    skip = {"affine_skip_connection": torch.randn(D, D)} if end else {}
    save_file(tensors((M, D)) | skip, folder / "params.safetensors")
    keep(case, x[0], load_gemma_scope_2_transcoder(str(folder / "params.safetensors"), 0, **CPU)(x[0]))
folder = TARGET / "gemma-scope-2.cross_layer/gemma-scope-2-270m-pt/clt/width_262k_l0_big"
folder.mkdir(parents=True)
paths = {layer: str(folder / f"params_layer_{layer}.safetensors") for layer in range(LAYERS)}
for path in paths.values():
    save_file(tensors((M, LAYERS, D)), path)
clt = load_gemma_scope_2_clt(paths | {LAYERS: ""}, **CPU)  # this version opens all but the last that it is given
keep("gemma-scope-2.cross_layer", x, clt(x))

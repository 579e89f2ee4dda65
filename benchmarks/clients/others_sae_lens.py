"""Run by the Python of sae-lens: FOLDER. Writes files of others there, with what its loaders of them make of x.

Names of repositories and of files are those on the hub, and so are names of tensors. The sizes are small.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

torch.manual_seed(0)
D, OUT, M, K = 8, 6, 24, 3
TARGET = Path(sys.argv[1])
Files = Callable[[Path], None]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def npz(folder: Path) -> None:
    """Gemma Scope."""
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", W_enc=rand(D, M).numpy(), W_dec=rand(M, D).numpy(), b_enc=rand(M).numpy(),
             b_dec=rand(D).numpy(), threshold=rand(M).abs().numpy())  # fmt: skip


def second(folder: Path, *, reads: str = "", writes: str = "", skip: bool = False) -> None:
    """Gemma Scope 2; without `reads` there is no config.json."""
    folder.mkdir(parents=True)
    out = OUT if writes else D
    tensors = {"w_enc": rand(D, M), "w_dec": rand(M, out), "b_enc": rand(M), "b_dec": rand(out),
               "threshold": rand(M).abs()}  # fmt: skip
    tensors |= {"affine_skip_connection": rand(D, out)} if skip else {}
    save_file(tensors, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "hf_hook_point_in": reads}
    config |= {"hf_hook_point_out": writes, "affine_connection": skip} if writes else {}
    if reads:
        (folder / "config.json").write_text(json.dumps(config))


def llama_scope(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {"encoder.weight": rand(M, D), "encoder.bias": rand(M), "decoder.weight": rand(D, M),
               "decoder.bias": rand(D)}  # fmt: skip
    save_file(tensors, folder / "checkpoints/final.safetensors")
    config = {"d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.7, "top_k": 50,
              "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 6.3125, "out": 6.3125},
              "hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post"}  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))


def qwen_scope(file: Path) -> None:
    file.parent.mkdir(parents=True)
    torch.save({"W_enc": rand(M, D), "W_dec": rand(D, M), "b_enc": rand(M), "b_dec": rand(D)}, file)


def linear(file: Path, *, ending: str) -> None:
    """Goodfire, with the ending `_linear`, and who published after them without it."""
    file.parent.mkdir(parents=True)
    shapes = {"encoder": (M, D), "decoder": (D, M)}
    torch.save({f"{side}{ending}.{kind}": rand(*(shape if kind == "weight" else shape[:1]))
                for side, shape in shapes.items() for kind in ("weight", "bias")}, file)  # fmt: skip


def transcoder_of_a_set(file: Path) -> None:
    """A layer of a set for circuit-tracer, without the other layers."""
    file.parent.mkdir(parents=True)
    save_file({"W_enc": rand(M, D), "W_dec": rand(M, D), "b_enc": rand(M), "b_dec": rand(D)}, file)
    (file.parent / "config.yaml").write_text(
        "model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: hook_mlp_out\nscan: made\n"
    )
    (file.parent / "wandb-config.yaml").write_text(
        f"d_model: {{value: {D}}}\nd_feature: {{value: {M}}}\nbatch_size: {{value: 64}}\n"
    )


def from_here(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
    """What the hub's client would have fetched."""
    path = TARGET.joinpath(from_here.case, repo_id.rpartition("/")[2], subfolder or "", filename)  # type: ignore[attr-defined]
    if not path.exists():
        raise EntryNotFoundError(str(path))
    return str(path)


def shapes_here(repo_id: str, filename: str) -> dict[str, list[int]]:
    with safe_open(from_here(repo_id, filename), "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


loaders.hf_hub_download = from_here
loaders.get_safetensors_tensor_shapes = shapes_here


def check(case: str, write: Files, loader: str, repository: str, name: str, **options: Any) -> None:
    """Write a file, open it as `SAE.from_pretrained` does, and keep what is made of x."""
    from_here.case, scale = case, options.pop("scale", 1.0)  # type: ignore[attr-defined]
    write(TARGET / case / repository.rpartition("/")[2] / name)
    given = {"dtype": "float32", "device": "cpu", **options}
    cfg, tensors, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](repository, name, "cpu", False, given)
    sae = SAE.from_dict(loaders.handle_config_defaulting(cfg))
    sae.process_state_dict_for_loading(tensors)
    sae.load_state_dict(tensors)
    if cfg["normalize_activations"] == "expected_average_only_in":  # with a factor of its own list of repositories
        sae.fold_activation_norm_scaling_factor(scale)
    x = rand(16, D)
    with torch.no_grad():
        heads = x.reshape(16, 2, -1) if sae.cfg.reshape_activations == "hook_z" else x
        save_file({"x": x, "recon": sae(heads).reshape(16, -1)}, TARGET / case / "expected.safetensors")


SIZES = {"d_in": D, "d_sae": M}
for site in ("res", "mlp", "att"):
    check(f"gemma-scope.{site}", npz, "gemma_2", f"google/gemma-scope-2b-pt-{site}",
          "layer_3/width_16k/average_l0_20", **SIZES)  # fmt: skip
check("gemma-scope.embedding", npz, "gemma_2", "google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6",
      **SIZES)  # fmt: skip
check("gemma-scope.transcoder", npz, "gemma_2_transcoder", "google/gemma-scope-2b-pt-transcoders",
      "layer_3/width_16k/average_l0_76", d_out=D, **SIZES)  # fmt: skip
BLOCK, NORM = "model.layers.3", "feedforward_layernorm.output"
for site, place in (("resid_post", ".output"), ("attn_out", ".self_attn.o_proj.input"), ("mlp_out", f".post_{NORM}")):
    check(f"gemma-scope-2.{site}", partial(second, reads=BLOCK + place), "gemma_3", "google/gemma-scope-2-270m-pt",
          f"{site}_all/layer_3_width_16k_l0_big")  # fmt: skip
check("gemma-scope-2.without_config", second, "gemma_3", "google/gemma-scope-2-270m-pt",
      "resid_post/layer_3_width_16k_l0_big")  # fmt: skip
for kind, end in (("transcoder", ""), ("skip_transcoder", "_affine")):
    ends = {"reads": f"{BLOCK}.pre_{NORM}", "writes": f"{BLOCK}.post_{NORM}", "skip": bool(end)}
    check(f"gemma-scope-2.{kind}", partial(second, **ends), "gemma_3", "google/gemma-scope-2-270m-pt",
          f"transcoder_all/layer_3_width_16k_l0_big{end}")  # fmt: skip
check("llama-scope.residual", llama_scope, "llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L3R-8x",
      scale=D**0.5 / 6.3125)  # fmt: skip
check("qwen-scope.residual", qwen_scope, "qwen_scope", f"Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_{K}", "layer3.sae.pt",
      **SIZES)  # fmt: skip
for model, layer, end in (("Llama-3.1-8B", 19, "pth"), ("Llama-3.3-70B", 50, "pt")):
    name = f"{model}-Instruct-SAE-l{layer}"
    check(f"goodfire.{model}", partial(linear, ending="_linear"), "goodfire", f"Goodfire/{name}", f"{name}.{end}",
          normalize_activations="none", **SIZES)  # fmt: skip
name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19"
check("goodfire.DeepSeek", partial(linear, ending=""), "deepseek_r1", f"qresearch/{name}", f"{name}.pt",
      **SIZES)  # fmt: skip
check("circuit-tracer.one_layer", transcoder_of_a_set, "mwhanna_transcoder", "mwhanna/qwen3-4b-transcoders",
      "layer_0.safetensors")  # fmt: skip

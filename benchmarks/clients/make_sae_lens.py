"""Run by the Python of sae-lens: FOLDER. Saves its dictionaries there, with what they make of x."""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file, save_file

torch.manual_seed(0)
D, OUT, M, K = 8, 6, 24, 3
ABOUT = {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"}
KINDS = {
    "standard": {}, "gated": {}, "jumprelu": {},
    "topk": {"k": K, "rescale_acts_by_decoder_norm": False}, "topk-rescaled": {"k": K},
    "abstopk": {"k": K}, "topk-layer_norm": {"k": K, "normalize_activations": "layer_norm"},
    "topk-uncentred": {"k": K, "apply_b_dec_to_input": False},
    "transcoder": {"d_out": OUT}, "skip_transcoder": {"d_out": OUT},
    "jumprelu_transcoder": {"d_out": OUT}, "jumprelu_skip_transcoder": {"d_out": OUT},
}  # fmt: skip
TRAINING = {
    "topk": {"k": K}, "batchtopk": {"k": K}, "matryoshka_batchtopk": {"k": K, "matryoshka_widths": [8, M]},
    "standard": {"l1_coefficient": 1.0}, "gated": {"l1_coefficient": 1.0}, "jumprelu": {"l0_coefficient": 1.0},
}  # fmt: skip


def cfg(architecture: str, options: dict) -> dict:
    plain = {} if "transcoder" not in architecture else {"apply_b_dec_to_input": False}
    return {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu", "metadata": ABOUT,
            **plain, **options}  # fmt: skip


def spread(sae: torch.nn.Module) -> None:
    """Put a dictionary into general position."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if name.endswith("threshold"):
                parameter.abs_()
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.7)


def keep(folder: Path) -> None:
    """Read what was written, as a user does, and add what it makes of x."""
    sae, x = SAE.load_from_disk(folder), torch.randn(16, D)
    with torch.no_grad():
        save_file({"x": x, "recon": sae(x)}, folder / "expected.safetensors")


target = Path(sys.argv[1])
for kind, options in KINDS.items():
    sae = SAE.from_dict(cfg(kind.partition("-")[0], options))
    spread(sae)
    sae.save_model(target / kind)
    keep(target / kind)
for architecture, options in TRAINING.items():
    sae = TrainingSAE.from_dict(cfg(architecture, options))
    spread(sae)
    sae.save_inference_model(target / f"trained-{architecture}")
    keep(target / f"trained-{architecture}")
# Files from before version 6 are flat. This version writes none, but reads them.
old = target / "before-6"
old.mkdir()
weights = load_file(target / "topk" / "sae_weights.safetensors")
save_file(weights | {"scaling_factor": torch.ones(M)}, old / "sae_weights.safetensors")
flat = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "d_in": D,
        "d_sae": M, "dtype": "torch.float32", "device": "cpu", **ABOUT,
        "hook_layer": 3, "hook_head_index": None, "normalize_activations": "none", "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "context_size": 128, "dataset_path": "", "prepend_bos": True,
        "sae_lens_training_version": "5.0.0"}  # fmt: skip
(old / "cfg.json").write_text(json.dumps(flat))
keep(old)

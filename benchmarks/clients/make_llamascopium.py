"""Run by the Python of llamascopium: FOLDER. Saves its dictionaries there, with what they make of x."""

import sys
from pathlib import Path

import torch
from llamascopium import SAEConfig, SparseAutoEncoder
from safetensors.torch import save_file

torch.manual_seed(0)
D, M, K = 8, 24, 3
READS, WRITES = "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"
KINDS = {
    "relu": {"act_fn": "relu"}, "jumprelu": {"act_fn": "jumprelu"}, "topk": {"act_fn": "topk"},
    "topk-without_norms": {"act_fn": "topk", "sparsity_include_decoder_norm": False},
    "transcoder": {"act_fn": "jumprelu", "hook_point_in": READS}, "folded": {"act_fn": "jumprelu"},
}  # fmt: skip
for kind, options in KINDS.items():
    cfg = SAEConfig(d_model=D, expansion_factor=M / D, top_k=K, hook_point_out=WRITES, device="cpu",
                    dtype=torch.float32, **{"hook_point_in": WRITES, **options})  # fmt: skip
    sae, folder = SparseAutoEncoder(cfg), Path(sys.argv[1]) / kind
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    sae.set_dataset_average_activation_norm({cfg.hook_point_in: 5.0, WRITES: 4.0 if kind == "transcoder" else 5.0})
    sae.save_pretrained(folder, fold_activation_scale=kind == "folded")
    cfg.save_hyperparameters(folder)
    # Read with its scales beside it: fold_activation_scale leaves the thresholds of jumprelu as they are.
    read, x = SparseAutoEncoder.from_pretrained(str(folder)), torch.randn(16, D) * 2
    with torch.no_grad():
        scaled, scales = read.normalize_activations({cfg.hook_point_in: x, WRITES: x}, return_scale_factor=True)
        recon = read.denormalize_activations({WRITES: read(scaled[cfg.hook_point_in])}, scales)[WRITES]
    save_file({"x": x, "recon": recon.contiguous()}, folder / "expected.safetensors")

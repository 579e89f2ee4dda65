"""Run by the Python of circuit-tracer: FOLDER. Saves its transcoders there, with what they make of x."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from circuit_tracer.utils.caching import load_transcoders_from_cache
from safetensors.torch import save_file

torch.manual_seed(0)
D, M, LAYERS = 8, 24, 2
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
CONFIG = "model_name: gpt2\nmodel_kind: {}\nfeature_input_hook: {}\nfeature_output_hook: mlp.hook_out\nscan: made\n"


def spread(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_()
            if name.endswith("threshold"):
                parameter.abs_()


def keep(folder: Path) -> None:
    """Read what was written, as a user does, and add what it makes of x."""
    found, _ = load_transcoders_from_cache(folder.name, cache_dir=folder.parent, **CPU)
    x = torch.randn(LAYERS, 16, D)
    with torch.no_grad():
        recon = torch.stack([found[i](x[i]) for i in range(LAYERS)]) if "set" in folder.name else found(x)
    save_file({"x": x, "recon": recon}, folder / "expected.safetensors")


target = Path(sys.argv[1])
for kind in ("set-relu", "set-jumprelu", "set-skip"):
    (target / kind).mkdir(parents=True)
    for layer in range(LAYERS):
        rule = JumpReLU(torch.zeros(M)) if kind == "set-jumprelu" else F.relu
        one = SingleLayerTranscoder(D, M, rule, layer, skip_connection=kind == "set-skip", **CPU)
        spread(one)
        one.to_safetensors(str(target / kind / f"layer_{layer}.safetensors"))
    (target / kind / "config.yaml").write_text(CONFIG.format("transcoder_set", "mlp.hook_in"))
    keep(target / kind)
for kind in ("relu", "jump_relu"):
    clt = CrossLayerTranscoder(LAYERS, M, D, activation_function=kind, lazy_decoder=False, **CPU)
    spread(clt)
    folder = target / f"cross_layer-{kind}"
    clt.to_safetensors(str(folder))
    (folder / "config.yaml").write_text(CONFIG.format("cross_layer_transcoder", "hook_resid_mid"))
    keep(folder)

"""Run by the Python of overcomplete: FOLDER. Saves its dictionaries there, with what they make of x."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

# The package's own __init__ imports models of vision, and torchvision, which no CPU build of torch runs with.
package = ModuleType("overcomplete")
package.__path__ = list(find_spec("overcomplete").submodule_search_locations)  # type: ignore[union-attr,arg-type]
sys.modules["overcomplete"] = package

from overcomplete.sae import SAE, JumpSAE, TopKSAE  # noqa: E402

torch.manual_seed(0)
D, M, K = 8, 24, 3
made = {
    "topk-k3": TopKSAE(D, M, top_k=K),
    "multiplier-k3": TopKSAE(D, M, top_k=K, dictionary_params={"use_multiplier": True}),
    "batch_norm-k3": TopKSAE(D, M, top_k=K, encoder_module="mlp_bn_1"),
    "jump": JumpSAE(D, M),
    "standard-relu": SAE(D, M),
    "tied-relu": SAE(D, M).tied(),
    "untied-relu": SAE(D, M).untied(bias=True),
}
for name, sae in made.items():
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        sae.train()
        sae(torch.randn(64, D))  # what a batch norm sees, and normalised rows
        sae.eval()
        x = torch.randn(16, D)
        recon = sae(x)[2]
    folder = Path(sys.argv[1]) / name
    folder.mkdir(parents=True)
    torch.save(sae.state_dict(), folder / f"{name}.overcomplete.pt")
    save_file({"x": x, "recon": recon}, folder / "expected.safetensors")

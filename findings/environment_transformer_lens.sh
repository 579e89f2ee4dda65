# Sourced: $python has TransformerLens, and `from bridges import ...` what makes a bridge of a tiny model.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 transformer-lens==4.3.0
cat > bridges.py <<'PY'
from importlib.metadata import version

import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

LIBRARY = f"transformer-lens {version('transformer-lens')}"
TOKENS = torch.tensor([[1, 5, 9, 22, 13, 40, 7, 33, 28, 19, 50, 11]])


def noisy(kind, config, by=0.15):
    """A model with random weights, in which no bias is 0 and no norm's weight 1."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return model


def bridged(model):
    """The model behind a bridge."""
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config).eval()
PY

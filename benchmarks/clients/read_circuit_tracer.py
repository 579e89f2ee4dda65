"""Run by the Python of circuit-tracer: FOLDER KIND PLACE …. Reads the set in FOLDER, and reconstructs x.

With `replacement` the transcoders replace the MLPs of a model of two blocks, whose prediction is attributed to them.
The answer is then what the features made of what reached them, and `error` what the graph leaves unexplained.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.utils.caching import load_transcoders_from_cache
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig

folder, kind = sys.argv[1:3]
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
transcoders, config = load_transcoders_from_cache("set", cache_dir=Path(folder) / "written", **CPU)
xs = torch.stack([x for _, x in sorted(load_file(f"{folder}/x.safetensors").items())])


def reconstructed() -> dict[str, torch.Tensor]:
    with torch.no_grad():
        made = transcoders(xs) if "cross_layer" in kind else [transcoders[i](x) for i, x in enumerate(xs)]
    return {f"recon.{index}": part.contiguous() for index, part in enumerate(made)}


def attributed() -> dict[str, torch.Tensor]:
    """Dense activations of the features in an attribution graph, and what their transcoders read."""
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=xs.shape[2], n_heads=2, d_head=24, n_ctx=16, d_vocab=64, act_fn="gelu", device="cpu",
        default_prepend_bos=False, tokenizer_prepends_bos=False,
    )  # fmt: skip
    model = ReplacementModel.from_config(cfg, transcoders)
    model.tokenizer = SimpleNamespace(
        all_special_ids=list(range(64)), decode=str, vocab_size=64, padding_side="right", bos_token_id=0
    )  # fmt: skip
    tokens = torch.randint(0, 64, (9,))
    graph = attribute(tokens, model, max_n_logits=4, batch_size=32, verbose=False)
    assert torch.isfinite(graph.adjacency_matrix).all() and graph.adjacency_matrix.abs().sum() > 0
    assert len(graph.active_features), "no feature of ours is in the graph"
    _, cache = model.run_with_cache(tokens[None])
    answer = {}
    for layer in range(2):
        x = cache[f"blocks.{layer}.{model.feature_input_hook}"][0]
        dense = torch.zeros(len(x), transcoders.d_transcoder)
        here = graph.active_features[:, 0] == layer
        dense[graph.active_features[here, 1], graph.active_features[here, 2]] = graph.activation_values[here]
        # The client zeroes the first position.
        answer |= {f"x.{layer}": x[1:].contiguous(), f"latents.{layer}": dense[1:].contiguous()}
    return answer


found = attributed() if kind.startswith("replacement") else reconstructed()
save_file({name: tensor.detach() for name, tensor in found.items()}, f"{folder}/answer.safetensors")

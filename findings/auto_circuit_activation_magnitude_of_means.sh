#!/usr/bin/env bash
# auto-circuit's activation_magnitude_prune_scores: the mean is over dimensions too and comes before the magnitude, so of centred weights, as TransformerLens loads them, every edge has 0 and rounding ranks them.
set -euo pipefail
source "$(dirname "$0")/environment_auto_circuit.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.activation_magnitude import activation_magnitude_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig

LAYERS, HEADS, TEXTS, TOKENS, VOCAB = 3, 4, 8, 12, 50
OUTPUT = f"blocks.{LAYERS - 1}.hook_resid_post"
config = HookedTransformerConfig(
    n_layers=LAYERS, d_model=32, n_ctx=TOKENS, d_head=8, n_heads=HEADS, d_vocab=VOCAB, act_fn="gelu", normalization_type="LNPre",
    device="cpu", seed=0, use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
)  # fmt: skip


def scored(model, texts):
    """For what writes into the residual stream: its name, its activations' mean square as a root, and the score of its edge to the output."""
    data = PromptDataset(texts, texts.flip(1), [torch.tensor([1])] * TEXTS, [torch.tensor([2])] * TEXTS)
    loader = PromptDataLoader(data, seq_len=TOKENS, diverge_idx=0, batch_size=TEXTS, shuffle=False)
    _, cache = model.run_with_cache(texts)
    graph = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True, device="cpu")
    sources = sorted(graph.srcs, key=lambda source: source.src_idx)
    outputs = [cache[s.module_name] if s.head_idx is None else cache[s.module_name][:, :, s.head_idx] for s in sources]
    sizes = torch.stack([by.square().mean().sqrt() for by in outputs])
    return [s.name for s in sources], sizes, activation_magnitude_prune_scores(graph, loader, None)[OUTPUT]


def correlation(one, other):
    """Spearman's."""
    return float(torch.corrcoef(torch.stack([one, other]).argsort(1).argsort(1).double())[0, 1])


texts = torch.randint(0, VOCAB, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))
print(f"auto-circuit {version('auto-circuit')}: edges to the output, by its docstring 'the mean activation magnitude of each edge'")
print("expected: what writes larger activations has a larger score, whether TransformerLens takes the mean off what is written, as it does by default, or not")
seen = {}
for kind in ("as they are", "centred"):
    model = HookedTransformer(config)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            block.attn.W_O.mul_(torch.tensor([1.0, 3.0, 9.0, 27.0])[:, None, None])
            block.mlp.W_out.mul_(4.0**i)
    if kind == "centred":
        model.process_weights_(fold_ln=False, center_writing_weights=True, center_unembed=False)
    names, sizes, scores = scored(model, texts)
    seen[kind] = float((scores / sizes).max()), float((scores / sizes).min())
    print(f"seen: weights {kind}: root mean squares from {float(sizes.min()):.3f} to {float(sizes.max()):.3f}, scores from {float(scores.min()):.1e} to {float(scores.max()):.1e}, rank correlation {correlation(sizes, scores):.2f}")
    print("seen: " + ", ".join(f"{name} {float(size):.3f} has {float(score):.1e}" for name, size, score in list(zip(names, sizes, scores))[:6]))
raise SystemExit(not (seen["centred"][0] < 1e-6 and 1e-3 < seen["as they are"][0] < 0.5))
PY

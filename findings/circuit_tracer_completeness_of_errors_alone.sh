#!/usr/bin/env bash
# circuit-tracer's completeness score: nodes without inputs, errors among them, count as wholly explained, so a graph of errors alone has 0.5 and not 0.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 circuit-tracer==0.5.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph, compute_graph_scores
from transformer_lens import HookedTransformerConfig

config = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=16, act_fn="gelu", d_mlp=8)
# Nodes in their order: one feature, the errors of two tokens in one layer, two tokens, one logit.
FEATURE, ERRORS, TOKENS, LOGIT = 0, slice(1, 3), slice(3, 5), 5


def scores(*edges):
    adjacency = torch.zeros(6, 6)
    for target, source in edges:
        adjacency[target, source] = 1
    one = {"active_features": torch.tensor([[0, 1, 7]]), "selected_features": torch.tensor([0]), "activation_values": torch.ones(1)}
    logit = {"logit_targets": [LogitTarget("x", 5)], "logit_probabilities": torch.ones(1), "scan": "none"}
    return compute_graph_scores(Graph("a b", torch.tensor([1, 2]), adjacency_matrix=adjacency, cfg=config, **one, **logit))


print(f"circuit-tracer {version('circuit-tracer')}: completeness is by its docstring the fraction of incoming edges that are not of errors,")
print("  each node's weighted by its influence; tokens and errors have no incoming edges")
# Weights: the logit's influence is 1, that of a feature, which is its only input, 1 too.
asked = {
    "tokens to logit": ([(LOGIT, TOKENS)], 1.0, 1.0),
    "tokens to feature to logit": ([(FEATURE, TOKENS), (LOGIT, FEATURE)], 1.0, 1.0),
    "errors to logit": ([(LOGIT, ERRORS)], 0.0, 1 / 2),
    "errors to feature to logit": ([(FEATURE, ERRORS), (LOGIT, FEATURE)], 1 / 2, 2 / 3),
}
same = True
for name, (edges, expected, known) in asked.items():
    replacement, completeness = scores(*edges)
    same &= abs(completeness - known) < 1e-4
    print(f"{name}\n  expected: completeness {expected:.3f}\n  seen: completeness {completeness:.3f}, replacement {replacement:.3f}")
raise SystemExit(not same)
PY

#!/usr/bin/env bash
# interpreto's Sparsity is the share of concepts that are on, and SparsityRatio divides that by their number again; its MSE is the root of a sum, and doubles with four times the tokens.
set -euo pipefail
source "$(dirname "$0")/environment_interpreto.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
import math

import torch
from interpreto.concepts import PCAConcepts, TopKSAEConcepts
from interpreto.concepts.metrics import MSE, Sparsity, SparsityRatio
from words import LIBRARY, split

CONCEPTS, ON = 64, 4
splitter, _, activations = split()
sae = TopKSAEConcepts(splitter, nb_concepts=CONCEPTS, top_k=ON)
sae.fit(activations, nb_epochs=1)
on = float((sae.activations_to_concepts(activations) != 0).sum(1).float().mean())
print(f"{LIBRARY}: a TopK SAE of {CONCEPTS} concepts, of which {on:g} are on for each token")
print(f"expected: Sparsity, by its formula, counts what is on; SparsityRatio is its share of the concepts, {ON / CONCEPTS:g}")
sparsity, ratio = Sparsity(sae).compute(activations), SparsityRatio(sae).compute(activations)
print(f"seen: Sparsity {sparsity:g}, SparsityRatio {ratio:g}")
pca = PCAConcepts(splitter, nb_concepts=4)
pca.fit(activations)
with torch.no_grad():
    error = activations - pca.concepts_to_activations(pca.activations_to_concepts(activations))
once, often = (MSE(pca).compute(rows) for rows in (activations, activations.repeat(4, 1)))
print("expected: MSE of the same activations four times over is what it is of them once, or four times that, as its formula's sum has it")
print(f"seen: MSE once {once:.4f}, four times over {often:.4f}; the mean square is {float(error.square().mean()):.5f}, the sum of the tokens' norms {float(error.norm(dim=1).sum()):.3f}")
raise SystemExit(not (on == ON and math.isclose(sparsity, ON / CONCEPTS) and math.isclose(ratio, ON / CONCEPTS**2) and math.isclose(often, 2 * once, rel_tol=1e-3)))
PY

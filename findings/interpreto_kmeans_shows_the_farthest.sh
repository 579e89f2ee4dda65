#!/usr/bin/env bash
# interpreto's KMeansConcepts: a concept's activation is the distance to its centre, so TopKInputs shows for each concept what lies farthest from it.
set -euo pipefail
source "$(dirname "$0")/environment_interpreto.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
import torch
from interpreto.concepts import KMeansConcepts, TopKInputs
from words import LIBRARY, split

CONCEPTS, SHOWN = 4, 5
splitter, texts, activations = split()
kmeans = KMeansConcepts(splitter, nb_concepts=CONCEPTS)
kmeans.fit(activations)
words = " ".join(texts).split()
distances = torch.cdist(activations, kmeans.get_dictionary()).detach()
nearest = distances.argmin(1)
top = TopKInputs(concept_explainer=kmeans, activation_granularity=splitter.activation_granularities.TOKEN, k=SHOWN)
shown = top.interpret(inputs=texts, latent_activations=activations)
print(f"{LIBRARY}: KMeansConcepts of {len(words)} tokens, {CONCEPTS} concepts, and the {SHOWN} words that TopKInputs shows for each")
print("expected: words of tokens that belong to the concept's cluster, best those near its centre")
strange, last = [], []
for concept, found in shown.items():
    tokens = [max((i for i, w in enumerate(words) if w == word), key=lambda i: float(distances[i, concept])) for word in found]
    strange.append(sum(int(nearest[i] != concept) for i in tokens))
    farther = [float((distances[:, concept] > distances[i, concept]).float().mean()) for i in tokens]
    last.append(max(farther))
    print(f"seen: concept {concept}: {', '.join(found)}; {strange[-1]} of {len(found)} tokens are of another cluster, and at most {last[-1]:.1%} of all tokens lie farther away")
raise SystemExit(not (all(by == SHOWN for by in strange) and max(last) < 0.05))
PY

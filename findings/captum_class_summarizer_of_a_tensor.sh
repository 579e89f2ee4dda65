#!/usr/bin/env bash
# captum's ClassSummarizer takes labels as a tensor, and has them as keys of a dict one by one: tensors are other keys even where they are equal, so each example is a class of its own; of a list classes are right.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 captum==0.9.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from captum.attr import ClassSummarizer
from captum.attr._utils.stat import Count, Mean

EXAMPLES, CLASSES, BATCH = 60, 3, 20
attributions = torch.randn(EXAMPLES, 2, generator=torch.Generator().manual_seed(0)).double()
labels = torch.arange(EXAMPLES) % CLASSES
means = {c: attributions[labels == c].mean(0) for c in range(CLASSES)}


def summaries(convert):
    summarizer = ClassSummarizer([Count(), Mean()])
    for rows, classes in zip(attributions.split(BATCH), labels.split(BATCH)):
        summarizer.update(rows, convert(classes))
    return [(int(label), summary[0]) for label, summary in summarizer.class_summaries.items()]


print(f"captum {version('captum')}: attributions of {EXAMPLES} examples of {CLASSES} classes, {BATCH} to a batch; 'labels (int, tuple, Tensor, or list)'")
print(f"expected: a summary for each of the {CLASSES} classes, of its {EXAMPLES // CLASSES} examples, however the labels are given")
seen = {}
for name, convert in {"a list": torch.Tensor.tolist, "a tensor": lambda classes: classes}.items():
    found = seen[name] = summaries(convert)
    right = sum(torch.allclose(by["mean"], means[label]) for label, by in found)
    print(f"seen: labels in {name}: {len(found)} summaries, each of {', '.join(str(n) for n in sorted({by['count'] for _, by in found}))} examples; {right} have a class's mean")
lists, tensors = seen.values()
fine = len(lists) == CLASSES and all(torch.allclose(by["mean"], means[label]) for label, by in lists)
raise SystemExit(not (fine and len(tensors) == EXAMPLES and all(by["count"] == 1 for _, by in tensors)))
PY

#!/usr/bin/env bash
# torch.nested.narrow with layout=torch.jagged: sum, mean, max and their gradients are of the whole padded tensor; of its contiguous() copy they are of what was narrowed to.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6
"$python" -W ignore - 2>/dev/null <<'PY'
import torch

TEXTS, SEQ, WIDTH, PAD = 3, 6, 2, 100.0
lengths = torch.tensor([2, 3, 4])
torch.manual_seed(0)
padded = torch.full((TEXTS, SEQ, WIDTH), PAD)
real = torch.arange(SEQ) < lengths[:, None]
padded[real] = torch.randn(int(lengths.sum()), WIDTH)
acts = padded.clone().requires_grad_()
narrowed = torch.nested.narrow(acts, 1, torch.zeros(TEXTS, dtype=torch.long), lengths, layout=torch.jagged)
measures = {
    "sum()": lambda of: of.sum(),
    "mean()": lambda of: of.mean(),
    "max()": lambda of: of.max(),
    "(x - 1).pow(2).mean()": lambda of: (of - 1).pow(2).mean(),
    "sum(-1).sum()": lambda of: of.sum(-1).sum(),
    "(x > 50).any()": lambda of: (of > 50).any(),
}
print(f"torch {torch.__version__}, activations of {TEXTS} texts of {lengths.tolist()} tokens, padded to {SEQ} with {PAD:g}")
print(f"expected: narrowed to those tokens, {narrowed.numel()} numbers as numel() says, measures are of them")
seen = {}
for name, measure in measures.items():
    truth, of_all, found, copied = (float(measure(of).detach()) for of in (padded[real], padded, narrowed, narrowed.contiguous()))
    seen[name] = abs(found - of_all) <= 1e-3 * abs(of_all), abs(copied - truth) <= 1e-3 * abs(truth), found == truth
    print(f"seen: {name}: {found:.2f}, of the {narrowed.numel()} numbers {truth:.2f}, of all {padded.numel()} with the padding {of_all:.2f}; of contiguous() {copied:.2f}")
narrowed.mean().backward()
print(f"seen: the gradient of mean() is {acts.grad[~real].abs().max():.3f} where padding is, {acts.grad[real].abs().max():.3f} elsewhere; 1 / {narrowed.numel()} is {1 / narrowed.numel():.3f}")
each = torch.stack([text.detach().mean() for text in narrowed.unbind()])
print(f"seen: the texts, taken one by one, are right: their means are {[round(mean, 2) for mean in each.tolist()]}")
one_by_one = torch.allclose(each, torch.stack([padded[text, : lengths[text]].mean() for text in range(TEXTS)]))
raise SystemExit(not (all(each == (True, True, False) for each in seen.values()) and acts.grad.unique().tolist() == [acts.grad[0, 0, 0].item()] and one_by_one))
PY

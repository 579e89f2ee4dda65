"""Measure dictionaries on text that they never saw: what they reconstruct, and what the model predicts through them.

    python examples/evaluate.py checkpoints/RUN

`all` has the dictionaries of all hookpoints in the running model at once. docs/evaluation.md defines every number.
"""

import sys

from embedded import MODEL, documents

import sae
from sae import Sae, lm
from sae.data import chunk_and_tokenize


def main(run: str) -> None:
    device = lm.check_device()
    model = lm.load_model(MODEL, device=device, dtype=lm.compute_dtype(device), head=True)
    tokens = chunk_and_tokenize(documents("test"), lm.load_tokenizer(MODEL), max_seq_len=256)

    saes = Sae.load_many(run, device=device)  # by hookpoint, of the run's newest checkpoint
    found = sae.evaluate(model, tokens, saes, max_tokens=8192)

    for hookpoint in [*saes, "all"]:
        metrics, intervals = found[hookpoint].metrics, found[hookpoint].intervals
        low, high = intervals["kl_div_with_sae"]  # of 95 %, by sequence
        print(f"{hookpoint}: KL {metrics['kl_div_with_sae']:.4f} nats ({low:.4f} to {high:.4f})", end="")
        print(f", {metrics['ce_loss_score']:.1%} of the loss recovered", end="")
        print(f", FVU {metrics['fvu']:.4f} at L0 {metrics['l0']:.1f}" if hookpoint in saes else "")


if __name__ == "__main__":
    main(sys.argv[1])

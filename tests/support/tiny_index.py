"""A small index for the tests of the browser, and the dense code that it was made of."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer

from sae import Sae, SaeConfig, lm
from sae.browser import Index
from sae.browser.collect import collect
from sae.browser.reading import LiveText
from sae.browser.reads import Read
from sae.data.tokens import SampledSequences

CTX_LEN, SEQUENCES = 48, 37
HOOKPOINTS = ("layers.0", "layers.2", "layers.1.mlp")
EXCLUDED_POSITION, EXCLUDED_TOKEN = 1, 7


class Made(NamedTuple):
    folder: Path
    model: Any
    reads: dict[str, Read]
    sample: SampledSequences

    @property
    def index(self) -> Index:
        return Index.open(self.folder)


def tiny_sae(seed: int, num_latents: int = 90, k: int = 5, d_in: int = 32) -> Sae:
    sae = Sae(d_in, SaeConfig(num_latents=num_latents, k=k), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_dec.add_(0.05 * torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed + 1)))
        sae.encoder.bias[3] = -1e9  # never fires
        sae.encoder.bias[5] = 1e3 if seed == 1 else 0.0
    return sae


def tokens() -> torch.Tensor:
    """Mostly few different tokens, and a passage that stands there several times."""
    generator = torch.Generator().manual_seed(2)
    found = torch.randint(3, 60, (SEQUENCES, CTX_LEN), generator=generator)
    found[10], found[20] = found[3], found[3]
    found[:, 0] = 4
    return found


def make(folder: Path, **options: Any) -> Made:
    model = tiny_model("gpt_neox", causal_lm=True)
    with torch.no_grad():  # token 4 is a sink: enormous at the first position
        model.gpt_neox.embed_in.weight[4] *= 3000
    sample = SampledSequences(tokens(), None, 4, seed=0)
    reads = {name: Read(name, tiny_sae(seed)) for seed, name in enumerate(HOOKPOINTS)}
    about = {"model": "tiny", "dataset": "random"}
    excluded = {"exclude_tokens": [EXCLUDED_TOKEN], "exclude_positions": [EXCLUDED_POSITION]}
    texts = lm.token_texts(tiny_tokenizer(), VOCAB_SIZE)
    collect(folder, LiveText(model, sample, **excluded), reads, texts, model=model, about=about, **options)
    return Made(folder, model, reads, sample)


class Dense(NamedTuple):
    """Everything of a place as dense float64 arrays."""

    code: np.ndarray
    """(tokens, latents): what the index holds, read event by event."""
    exact: np.ndarray
    """(tokens, latents): what float64 says."""
    massive: np.ndarray
    counted: np.ndarray


def dense(made: Made, name: str) -> Dense:
    """Encode every token in float64, without any of the code that makes indexes."""
    sae = made.reads[name].dictionary
    batches = list(made.sample)
    x = torch.cat([lm.harvest(made.model, b, [name])[name].flatten(0, 1) for b in batches]).double()
    ids = torch.cat([batch.flatten() for batch in batches]).numpy()
    pre = (x - sae.b_dec.double()) @ sae.encoder.weight.double().T + sae.encoder.bias.double()
    top = pre.relu().topk(sae.cfg.k, dim=1)
    exact = torch.zeros_like(pre).scatter_(1, top.indices, top.values).detach().numpy()
    counted = (ids != EXCLUDED_TOKEN) & (np.arange(len(ids)) % CTX_LEN != EXCLUDED_POSITION)
    exact[~counted] = 0
    place, code = made.index[name], np.zeros_like(exact)
    for latent in place:
        positions, values = latent.activations()
        code[positions, latent.index] = values
    return Dense(code, exact, place.massive > 0, counted)

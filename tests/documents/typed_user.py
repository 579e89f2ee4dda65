"""What a user writes, annotated: mypy checks it in strict mode against the package, and nothing runs it.

`assert_type` says which type the checker has to find; one that decays to Any is an error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_type

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

import sae.lm
from sae import Encoded, Evaluation, Latents, RunConfig, Sae, SaeConfig, SaeOutput, SaeTrainer, TrainConfig
from sae.activations.cache.read import ActivationCache
from sae.browser import Context, Index, Latent
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import MemmapTokens, as_sequences, chunk_and_tokenize, load_data


def train(name: str) -> Path:
    device = assert_type(sae.lm.check_device(), torch.device)
    model = sae.lm.load_model(name, device=device, dtype=sae.lm.compute_dtype(device))
    assert_type(model, PreTrainedModel)
    texts = load_dataset("json", data_files="texts.jsonl", split="train")
    tokens = chunk_and_tokenize(texts, AutoTokenizer.from_pretrained(name), max_seq_len=512)
    cfg = TrainConfig(SaeConfig(k=16, selection="batchtopk"), batch_size=4, lr=[1e-3, 4e-3], layers=[3])
    trainer = SaeTrainer(cfg, tokens, model)
    assert_type(trainer.saes, dict[str, Sae])
    assert_type(trainer.save(measure=True), Path)
    return trainer.fit()


def sources(model: PreTrainedModel) -> list[Any]:
    cfg = RunConfig(model="gpt2", dataset="texts.jsonl", streaming=True)
    tokenizer = sae.lm.load_tokenizer(cfg.model)
    found = load_data(cfg.dataset, tokenizer=tokenizer, ctx_len=cfg.ctx_len, vocab_size=sae.lm.vocab_size(model))
    folder = assert_type(cache_activations(CacheConfig(activations="kept"), found, model), Path | str)
    tokens = MemmapTokens("tokens.bin", 512, vocab_size=50_257)
    assert_type(tokens.take([0, 1]), Tensor)
    return [as_sequences(torch.zeros(4, 8, dtype=torch.int64)), tokens, ActivationCache(folder, device="cuda")]


def encode(folder: Path, x: Tensor) -> Tensor:
    saes = assert_type(Sae.load_many(folder, layers=["layers.3"]), dict[str, Sae])
    dictionary = assert_type(saes["layers.3"], Sae)
    dictionary.save_to_disk(folder / "theirs", format="saelens")
    again = Sae.load_from_disk(folder / "theirs", device="cpu")
    theirs = Sae.load_from_hub("owner/name", "layers.3", revision="main")
    assert_type(theirs.spec.num_latents, int)
    acts, indices = assert_type(again.encode(x), Encoded)
    assert_type(dictionary(x), SaeOutput)
    assert_type(dictionary(x).fvu, Tensor)
    return again.decode(acts, indices)


def measure(model: PreTrainedModel, tokens: Tensor, saes: dict[str, Sae]) -> float:
    found = assert_type(sae.evaluate(model, tokens, saes, exclude_positions=[0]), Evaluation)
    low, high = found["layers.3"].intervals["fvu"]
    return found["layers.3"].metrics["fvu"] + high - low


def steered(latent: int, strength: float) -> Callable[[Latents], None]:
    def edit(latents: Latents) -> None:
        latents[latent] += strength

    return edit


def steer(model: PreTrainedModel, dictionary: Sae, tokens: Tensor) -> dict[str, Tensor]:
    hookpoints = assert_type(sae.lm.resolve_hookpoints(model, layers=[3]), list[str])
    with sae.graft(model, {"layers.3": dictionary}, keep_error=True, edit=steered(7, 3.0)) as grafted:
        grafted(tokens)
    with sae.graft(model, {"layers.3": torch.zeros_like}):
        model(tokens)
    return assert_type(sae.lm.harvest(model, tokens, hookpoints), dict[str, Tensor])


def look(run: Path) -> list[Context]:
    index = assert_type(Index.open(run), Index)
    latent = assert_type(index["layers.6"][1234], Latent)
    assert_type(latent.density, float)
    return latent.top_contexts(20)

"""An index of a cache of activations is that of the same text, read by the language model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_index import CTX_LEN, HOOKPOINTS, tiny_sae, tokens
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer

from sae import lm
from sae.activations.cache.format import HELD_OUT, TRAIN
from sae.browser import Index
from sae.browser.collect import collect
from sae.browser.reading import CachedText, LiveText, Text
from sae.browser.reads import Read
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.data.tokens import SampledSequences

BATCH = 4
EXCLUDED: dict[str, Any] = {"exclude_tokens": [7], "exclude_positions": [1]}
READS = {name: Read(name, tiny_sae(seed)) for seed, name in enumerate(HOOKPOINTS)}


@pytest.fixture(scope="module")
def model() -> Any:
    made = tiny_model("gpt_neox", causal_lm=True)
    with torch.no_grad():  # token 4 is a sink: enormous at the first position
        made.gpt_neox.embed_in.weight[4] *= 3000
    return made


def cached(folder: Path, model: Any, **changes: Any) -> ActivationCache:
    options: dict[str, Any] = {"batch_size": BATCH, "hookpoints": list(HOOKPOINTS), "model": "m", "dataset": "d"}
    options |= {"dtype": "float32", "activations": str(folder)} | EXCLUDED | changes
    return ActivationCache(cache_activations(CacheConfig(**options), tokens(), model))


def index_of(folder: Path, text: Text, model: Any) -> Index:
    collect(folder, text, READS, lm.token_texts(tiny_tokenizer(), VOCAB_SIZE), model=model, about={})
    return Index.open(folder)


class Batches:
    """The text of a cache as batches of token ids."""

    def __init__(self, cache: ActivationCache) -> None:
        train = cache.tokens(TRAIN)
        assert train is not None
        self._parts = [part for section in (cache.tokens(HELD_OUT), train) for part in section.split(BATCH)]
        self.ctx_len, self.num_tokens = CTX_LEN, sum(part.numel() for part in self._parts)

    def __iter__(self) -> Any:
        return iter(self._parts)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_index_of_a_cache_is_that_of_the_same_text_read_live(tmp_path: Path, model: Any, shuffle: bool) -> None:
    cache = cached(tmp_path / "c", model, shuffle=shuffle)
    found = index_of(tmp_path / "cached", CachedText(cache, 10**6, BATCH), model)
    live = index_of(tmp_path / "live", LiveText(model, Batches(cache), **EXCLUDED), model)
    assert (
        found.num_tokens
        == live.num_tokens
        == len(cache.held_out_tokens()) * CTX_LEN + len(cache.tokens(TRAIN)) * CTX_LEN
    )  # type: ignore[arg-type]
    assert np.array_equal(found.tokens, live.tokens) and np.array_equal(found.counted, live.counted)
    for name in HOOKPOINTS:
        assert np.array_equal(found[name].massive, live[name].massive)
        for mine, other in zip(found[name], live[name], strict=True):
            (at, acts), (at_live, acts_live) = mine.activations(), other.activations()
            assert np.array_equal(at, at_live)
            assert np.allclose(acts, acts_live, rtol=2e-3)
    assert found["layers.0"].massive.any() and found["layers.2"].events > 1000


def test_only_so_many_tokens_are_indexed_the_held_out_ones_first(tmp_path: Path, model: Any) -> None:
    cache = cached(tmp_path / "c", model)
    held_out, train = cache.held_out_tokens(), cache.tokens(TRAIN)
    assert train is not None
    for sequences in (1, len(held_out), len(held_out) + 3):
        text = CachedText(cache, sequences * CTX_LEN + 5, BATCH)
        parts = [part.tokens for part in text.parts([])]
        assert text.num_tokens == sequences * CTX_LEN
        assert torch.equal(torch.cat(parts), torch.cat([held_out, train])[:sequences])
        assert {len(part.read()["layers.0"]) for part in text.parts(["layers.0"])} == {
            int(part.counted.sum()) for part in text.parts([])
        }


def test_what_a_cache_lacks_is_named(tmp_path: Path, model: Any) -> None:
    cache = cached(tmp_path / "c", model, hookpoints=["layers.0"])
    with pytest.raises(ValueError, match=r"lack layers\.2, layers\.1\.mlp; choose among layers\.0 with --hookpoints"):
        index_of(tmp_path / "index", CachedText(cache, 10**6, BATCH), model)
    assert not (tmp_path / "index").exists()


def test_a_cache_whose_tokens_are_not_those_of_its_activations_makes_no_index(tmp_path: Path, model: Any) -> None:
    cache = cached(tmp_path / "c", model, exclude_tokens=[7, 8, 9])
    cache.header.options["exclude_tokens"].clear()  # as if another exclusion had been written down
    with pytest.raises(ValueError, match="is damaged: held_out holds other tokens than it says"):
        index_of(tmp_path / "index", CachedText(cache, 10**6, BATCH), model)
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_without_the_weights_of_the_model_an_index_says_why_it_has_no_logits(tmp_path: Path, model: Any) -> None:
    cache = cached(tmp_path / "c", model)
    text, texts = CachedText(cache, 500, BATCH), lm.token_texts(tiny_tokenizer(), VOCAB_SIZE)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    collect(tmp_path / "index", text, READS, texts, model=skeleton, about={}, why_no_logits="it is not here")
    index = Index.open(tmp_path / "index")
    assert index.header.why_no_logits == "it is not here" and index["layers.0"][1].promotes == []


def test_the_sample_may_be_of_any_batch_size(tmp_path: Path, model: Any) -> None:
    cache = cached(tmp_path / "c", model)
    one, two = (index_of(tmp_path / str(size), CachedText(cache, 10**6, size), model) for size in (3, 16))
    for name in HOOKPOINTS:
        assert np.array_equal(one[name].column("count"), two[name].column("count"))
    sampled = LiveText(model, SampledSequences(tokens(), None, BATCH, seed=0))
    assert sampled.widths(["layers.0"]) == CachedText(cache, 10, 1).widths(["layers.0"]) == {"layers.0": 32}

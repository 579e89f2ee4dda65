"""Tokenizers made on the spot, and a cache of `datasets` that each test run starts empty."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

WORDS = [f"w{i}" for i in range(100)]
SPECIAL = ["[UNK]", "<eos>", "<bos>", "[CLS]", "[SEP]"]
ENDS = {
    "plain": ("$A", {"eos_token": "<eos>"}),
    "bos": ("<bos> $A", {"eos_token": "<eos>", "bos_token": "<bos>"}),
    "both": ("<bos> $A <eos>", {"eos_token": "<eos>", "bos_token": "<bos>"}),
    "cls_sep": ("[CLS] $A [SEP]", {"cls_token": "[CLS]", "sep_token": "[SEP]"}),
}
VOCAB_SIZE = len(SPECIAL) + len(WORDS)


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A word-level tokenizer that puts nothing, <bos>, <bos> and <eos>, or [CLS] and [SEP] around a text.

    `w7` is token 12.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(kind: str = "plain", **options: Any) -> Any:
        vocab = {word: index for index, word in enumerate(SPECIAL + WORDS)}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        template, special = ENDS[kind]
        tokens = [(token, vocab[token]) for token in template.split() if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special, **options)

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """200 documents of 1 to 11 words; more than one batch of the streaming tokenizer."""
    return [" ".join(WORDS[(7 * i + 3 * j) % 100] for j in range(i % 11 + 1)) for i in range(200)]


def stream_of_tokens(texts: list[str], separator: int) -> list[int]:
    """The oracle: separator, document, separator, document, …"""
    ids = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    return [token for text in texts for token in [separator, *(ids[word] for word in text.split())]]


@pytest.fixture(scope="session")
def oracle() -> Callable[[list[str], int], list[int]]:
    return stream_of_tokens

"""Language models of a few thousand random weights, one for each family that we promise, and a tokenizer for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

FAMILIES = ("gpt_neox", "gpt2", "llama", "gemma3", "bert")
VOCAB_SIZE = 320  # 256 bytes, <|endoftext|>, and some merges
CTX_LEN = 64  # the context limit of every tiny model
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A sparse autoencoder writes each activation as a sum of few directions.",
    "Pack my box with five dozen liquor jugs, and count them: 1, 2, 3, 4, 5.",
    "Language models read tokens; the residual stream carries what they think.",
)
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def tiny_config(family: str) -> PreTrainedConfig:
    """3 layers of width 32 (gemma3: 40), no dropout, so that training mode and eval mode agree."""
    return _CONFIGS[family]()


def tiny_model(family: str, *, causal_lm: bool = False, seed: int = 0) -> PreTrainedModel:
    """The base model, or the one with a language-modelling head; float32, eval mode, the same for the same seed."""
    auto = AutoModelForCausalLM if causal_lm else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _spread(auto.from_config(tiny_config(family))).eval()


def tiny_tokens(batch: int = 2, seq: int = 7, *, seed: int = 0) -> torch.Tensor:
    """Random token ids (batch, seq) int64 without the special tokens."""
    return torch.randint(3, VOCAB_SIZE, (batch, seq), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer(vocab_size: int = VOCAB_SIZE, sentences: tuple[str, ...] = SENTENCES) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `vocab_size` >= 257 entries, trained on the spot; token 0 is <|endoftext|>.

    It has all bytes, so that any text comes back from it; small texts may yield fewer merges than there is room for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, alphabet = "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end, model_max_length=CTX_LEN
    )


def save_tiny(folder: Path, family: str, *, seed: int = 0) -> Path:
    """A complete local model, as a Hub snapshot is: config, safetensors (with the head, where usual) and tokenizer."""
    tiny_model(family, causal_lm=family != "bert", seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    """Weights ten times the usual 0.02, so that every module of so small a model moves the residual stream."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(10)
    return model


def _llama_like(**changes: Any) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CTX_LEN}
    return sizes | heads | IDS | changes


def _gpt2() -> GPT2Config:
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=CTX_LEN, **no_dropout, **IDS)


def _gpt_neox() -> GPTNeoXConfig:
    sizes = _llama_like()
    del sizes["num_key_value_heads"]
    return GPTNeoXConfig(**sizes)


def _bert() -> BertConfig:
    sizes = _llama_like(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    del sizes["num_key_value_heads"]
    return BertConfig(**sizes)


def _gemma3_text() -> Gemma3TextConfig:
    return Gemma3TextConfig(**_llama_like(hidden_size=40, head_dim=8, sliding_window=4, query_pre_attn_scalar=8))


def _gemma3_multimodal() -> Gemma3Config:
    """Text and vision towers of the same depth, so that counting layers cannot tell them apart."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Gemma3Config(
        text_config=_gemma3_text(), vision_config=vision, mm_tokens_per_image=1, image_token_index=VOCAB_SIZE - 1
    )


_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "llama": lambda: LlamaConfig(**_llama_like()),
    "gemma3": _gemma3_text,
    "bert": _bert,
    "gemma3_multimodal": _gemma3_multimodal,
}


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of a model with a head."""
    with torch.no_grad():
        return model(input_ids=tokens).logits

"""Language model and text, as a command line names them. The cheap checks come before what takes long."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sae import lm
from sae.activations.reading import check_sequences, chosen_hookpoints
from sae.config import RunConfig, SourceConfig, TextConfig
from sae.data import TokenizerNeededError, load_data
from sae.runs.log import note
from sae.storage.files import absolute
from sae.training.memory import free_memory


def check_model(cfg: RunConfig) -> tuple[Any, list[str]]:
    """The model's skeleton, or those of two, and the hookpoints that are chosen there."""
    skeleton = load_skeleton(cfg)
    check_sequences(cfg, skeleton, cfg.ctx_len)
    return skeleton, chosen_hookpoints(cfg, skeleton)


def load_skeleton(cfg: SourceConfig) -> Any:
    """The model that the command line names, without weights; a pair where it names two, which fit together."""
    first = lm.load_skeleton(cfg.model, revision=cfg.revision, token=cfg.hf_token)
    if cfg.model_b is None:
        return first
    second = _second(cfg)
    same_revision = (cfg.revision or "main") == (second.revision or "main")
    if absolute(cfg.model) == absolute(second.model) and same_revision:
        raise ValueError(
            f"model_b must be another model than MODEL, or another revision of it, got {cfg.model_b} twice, a copy of "
            "itself; give another --model_b, or --revision_b"
        )
    pair = lm.ModelPair(first, lm.load_skeleton(second.model, revision=second.revision, token=cfg.hf_token))
    _check_tokens(cfg, second, pair)
    return pair


def _second(cfg: SourceConfig) -> SourceConfig:
    """The same options with the second model as the only one."""
    assert cfg.model_b is not None
    return replace(cfg, model=cfg.model_b, revision=cfg.revision_b, model_b=None, revision_b=None)


def _check_tokens(cfg: SourceConfig, second: SourceConfig, pair: lm.ModelPair) -> None:
    """Raise ValueError unless the second model reads the tokens of the first; a checkpoint may lack its tokenizer."""
    sizes = lm.vocab_size(pair.a), lm.vocab_size(pair.b)
    try:
        tokenizers = [
            lm.load_tokenizer(each.model, revision=each.revision, token=cfg.hf_token) for each in (cfg, second)
        ]
    except ValueError as error:
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"model_b must have the vocabulary of MODEL, got {sizes[1]:,} tokens and {sizes[0]:,}, and tokenizers "
                f"that cannot be compared ({error}); give two models with one tokenizer"
            ) from None
        note(f"the tokenizers of the two models cannot be compared, and are taken to be one ({error})")
        return
    for sentence in lm.check_same_tokens(*tokenizers):
        note(sentence)
    if sizes[1] < min(sizes[0], needed := 1 + max(tokenizers[0].get_vocab().values(), default=0)):
        raise ValueError(
            f"model_b must have an embedding of the {needed:,} tokens of MODEL's tokenizer, got one of {sizes[1]:,}; "
            "give two models with one vocabulary"
        )


def load_text(cfg: TextConfig, skeleton: Any) -> Any:
    """The data that the command line names, as token sequences for the model whose `skeleton` is given."""
    try:
        tokenizer, why_none = lm.load_tokenizer(cfg.model, revision=cfg.revision, token=cfg.hf_token), None
    except ValueError as error:  # not needed where the data is tokens
        tokenizer, why_none = None, error
    try:
        return load_data(
            cfg.dataset,
            split=cfg.split,
            streaming=cfg.streaming,
            text_column=cfg.text_column,
            token=cfg.hf_token,
            tokenizer=tokenizer,
            ctx_len=cfg.ctx_len,
            num_proc=cfg.data_preprocessing_num_proc,
            vocab_size=lm.vocab_size(skeleton),
        )
    except TokenizerNeededError:
        raise why_none or AssertionError("a tokenizer was given") from None


def load_language_model(cfg: SourceConfig, device: Any, devices: Sequence[Any] = (), *, head: bool = False) -> Any:
    """The model that the command line names, with its weights, on `device`, or over all `devices` if it says so.

    It computes in what --dtype says, or else in what is fastest here; in float32 if it cannot. Where two are named it
    is the pair.
    """
    if cfg.model_b is None:
        return _load_one(cfg, device, devices, head=head)
    _check_room(cfg, device)
    pair = lm.ModelPair(*(_load_one(each, device, devices, head=head) for each in (cfg, _second(cfg))))
    if len(set(lm.fingerprints(pair).values())) == 1:
        note(f"{cfg.model} and {cfg.model_b} have the same weights, as far as samples of them tell")
    return pair


def _check_room(cfg: SourceConfig, device: Any) -> None:
    """Raise ValueError for two models that do not fit into the free memory together."""
    free = free_memory(torch.device(device))
    if free is None or cfg.device_map is not None:
        return
    number = torch.float32 if cfg.dtype == "float32" else lm.compute_dtype(torch.device(device))
    size = 1 if cfg.load_in_8bit else number.itemsize
    pair = [lm.load_skeleton(each.model, revision=each.revision, token=cfg.hf_token) for each in (cfg, _second(cfg))]
    needed = size * sum(weight.numel() for one in pair for weight in one.parameters())
    if needed > free:
        raise ValueError(
            f"the two models must fit into memory together, and take {needed / 1e9:,.1f} GB of {free / 1e9:,.1f} that "
            "are free; give smaller ones, --load_in_8bit, or --device_map for several GPUs"
        )


def _load_one(cfg: SourceConfig, device: Any, devices: Sequence[Any], *, head: bool) -> Any:
    """A single model with its weights."""
    load = partial(
        lm.load_model,
        cfg.model,
        device=device,
        attn_implementation=cfg.attn_implementation,
        load_in_8bit=cfg.load_in_8bit,
        head=head,
        device_map=cfg.device_map,
        devices=devices,
        revision=cfg.revision,
        token=cfg.hf_token,
    )
    if cfg.lm_dtype is not None:
        return load(dtype=getattr(torch, cfg.lm_dtype))
    dtype = lm.compute_dtype(device)
    model = load(dtype=dtype)
    if dtype == torch.float32 or not (reason := lm.cannot_compute(model)):
        return model
    del model
    in_float32 = load(dtype=torch.float32)
    if lm.cannot_compute(in_float32):  # it is not for the type
        return load(dtype=dtype)
    note(f"the language model cannot compute in {str(dtype).removeprefix('torch.')} ({reason}); it runs in float32")
    return in_float32

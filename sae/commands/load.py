"""Language model and text, as a command line names them. The cheap checks come before what takes long."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from sae import lm
from sae.activations.reading import check_sequences, chosen_hookpoints
from sae.config import RunConfig, SourceConfig, TextConfig
from sae.data import TokenizerNeededError, load_data
from sae.runs.log import note


def check_model(cfg: RunConfig) -> tuple[Any, list[str]]:
    """The model's skeleton, and the hookpoints that are chosen in it."""
    skeleton = lm.load_skeleton(cfg.model, revision=cfg.revision, token=cfg.hf_token)
    check_sequences(cfg, skeleton, cfg.ctx_len)
    return skeleton, chosen_hookpoints(cfg, skeleton)


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

    It computes in what --dtype says, or else in what is fastest here; in float32 if it cannot.
    """
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

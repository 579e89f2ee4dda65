"""SAEDashboard on the tokens of one of our indexes, in a process of its own: `browse_peer.py JOB`.

It makes the data of some batches of latents with the settings of its `NeuronpediaRunner`, and writes times.json: the
seconds of each batch. The first batch runs the language model and keeps its activations on the disk for the others.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM

LATENTS_AT_ONCE, PROMPTS_AT_ONCE = 128, 32
"""As its `NeuronpediaRunner` has them."""


def main() -> None:
    """Make the data of the batches that the job asks for.

    Its keys: `sae`, `model`, `tokens`, `batches`, `folder`, `ctx_len`, `theta` (the base of the rotary embedding).
    """
    job: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    tokens = torch.from_numpy(np.load(job["tokens"]).astype(np.int64))
    start = time.perf_counter()
    model, sae = _model(job), SAE.load_from_pretrained(job["sae"], device="cpu")
    seconds, density = [], {}
    loaded = time.perf_counter() - start
    for batch in range(job["batches"]):
        latents = list(range(LATENTS_AT_ONCE * batch, min(LATENTS_AT_ONCE * (batch + 1), sae.cfg.d_sae)))
        start = time.perf_counter()
        with torch.no_grad():
            found = SaeVisRunner(_settings(sae.cfg.metadata.hook_name, latents, folder)).run(sae, model, tokens)
        seconds.append(time.perf_counter() - start)
        density |= {
            latent: _density(data.acts_histogram_data.title) for latent, data in found.feature_data_dict.items()
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    times = {"load_s": loaded, "batch_s": seconds, "peak_MB": peak, "density": density}
    (folder / "times.json").write_text(json.dumps(times))


def _model(job: dict[str, Any]) -> HookedSAETransformer:
    """SmolLM2 in float32, their default. TransformerLens before 3 does not know it: its sizes and weights are given."""
    hf_model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    theirs = hf_model.config
    cfg = HookedTransformerConfig(
        n_layers=theirs.num_hidden_layers, d_model=theirs.hidden_size, n_ctx=job["ctx_len"],
        d_head=theirs.hidden_size // theirs.num_attention_heads, n_heads=theirs.num_attention_heads,
        n_key_value_heads=theirs.num_key_value_heads, d_mlp=theirs.intermediate_size, d_vocab=theirs.vocab_size,
        act_fn=theirs.hidden_act, eps=theirs.rms_norm_eps, normalization_type="RMS", final_rms=True, gated_mlp=True,
        positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_base=job["theta"],
        rotary_dim=theirs.hidden_size // theirs.num_attention_heads, original_architecture="LlamaForCausalLM",
        device="cpu", dtype=torch.float32,
    )  # fmt: skip
    model = HookedSAETransformer(cfg)
    model.load_and_process_state_dict(convert_llama_weights(hf_model, cfg), fold_ln=True)
    return model


def _settings(hook: str, latents: list[int], folder: Path) -> SaeVisConfig:
    sequences = SequencesConfig(
        stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=5, top_acts_group_size=20,
        quantile_group_size=5,
    )  # fmt: skip
    panels = [sequences, ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig()]
    return SaeVisConfig(
        hook_point=hook, features=latents, minibatch_size_features=LATENTS_AT_ONCE,
        minibatch_size_tokens=PROMPTS_AT_ONCE, quantile_feature_batch_size=64, device="cpu", dtype="float32",
        feature_centric_layout=SaeVisLayoutConfig(columns=[Column(*panels, FeatureTablesConfig(n_rows=3))]),
        cache_dir=folder / "activations",
    )  # fmt: skip


def _density(title: str) -> float:
    """Share of the tokens, from the title of a histogram: its only place."""
    return float(title.rpartition("=")[2].strip().rstrip("%")) / 100


if __name__ == "__main__":
    main()

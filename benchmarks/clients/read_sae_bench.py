"""Run by the Python of sae-bench: FOLDER KIND PLACE. Runs its evaluation `core` on a model of two blocks.

The answer is the mean L0 that it reports, of the activations that it measured.
"""

import sys

import torch
from datasets import Dataset
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg
from sae_lens import SAE, ActivationsStore
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

folder, kind, place = sys.argv[1:]
torch.manual_seed(0)
d_in = load_file(f"{folder}/x.safetensors")["0"].shape[1]
model = HookedTransformer(HookedTransformerConfig(
    n_layers=2, d_model=d_in, n_heads=2, d_head=24, n_ctx=16, d_vocab=64, act_fn="gelu", device="cpu",
    default_prepend_bos=False, tokenizer_prepends_bos=False,
))  # fmt: skip
model.embed.W_E.data *= 100  # so that some activations are above the thresholds of ours
sae = SAE.load_from_disk(place)
_standardize_sae_cfg(sae.cfg)  # as its own loader does
tokens = torch.randint(0, 64, (8, 16))
store = ActivationsStore(
    model, Dataset.from_dict({"tokens": tokens.tolist()}), hook_name=sae.cfg.hook_name, hook_head_index=None,
    streaming=False, context_size=16, d_in=d_in, n_batches_in_buffer=2, total_training_tokens=128,
    store_batch_size_prompts=8, train_batch_size_tokens=16, prepend_bos=False, normalize_activations="none",
    device=torch.device("cpu"), dtype="float32",
)  # fmt: skip
cfg = CoreEvalConfig(
    batch_size_prompts=8, n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1, context_size=16,
    compute_kl=True, compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
    compute_variance_metrics=True,
)  # fmt: skip
metrics, _ = run_evals(sae, store, model, cfg)
quality = metrics["reconstruction_quality"] | metrics["model_performance_preservation"]
assert all(torch.isfinite(torch.tensor(value)) for value in quality.values()), quality
_, found = model.run_with_cache(tokens)
x = found[sae.cfg.hook_name].flatten(0, 1).contiguous()
save_file({"x.0": x.detach(), "l0.0": torch.tensor(metrics["sparsity"]["l0"])}, f"{folder}/answer.safetensors")

#!/usr/bin/env bash
# SAELens' CacheActivationsRunner, shuffle=True by default: only the data set that run() returns is shuffled, the folder is in order.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - 2>/dev/null <<'PY'
import sae_lens
import torch
from datasets import Dataset, load_from_disk
from sae_lens import ActivationsStore, CacheActivationsRunner, CacheActivationsRunnerConfig
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ROWS, CTX_LEN, WIDTH = 64, 8, 8
words = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", bos_token="<end>").save_pretrained("model")
GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, n_positions=32, vocab_size=ROWS)).save_pretrained("model")
names = {"dataset_path": "tokens", "model_name": "model", "model_class_name": "AutoModelForCausalLM", "device": "cpu"}
places = {"hook_name": "transformer.h.0", "new_cached_activations_path": "cached"}
sizes = {"model_batch_size": 4, "d_in": WIDTH, "training_tokens": ROWS * CTX_LEN, "context_size": CTX_LEN, "buffer_size_gb": 1e-5}
cfg = CacheActivationsRunnerConfig(**names, **places, **sizes, prepend_bos=False, streaming=False)
runner = CacheActivationsRunner(cfg, override_dataset=Dataset.from_dict({"input_ids": [[i] * CTX_LEN for i in range(ROWS)]}))
returned, folder = runner.run(), load_from_disk("cached")
orders = {name: [int(row[0]) for row in data["token_ids"]] for name, data in (("returned", returned), ("folder", folder))}
store = ActivationsStore.from_cache_activations(runner.model, cfg)
trained_on = torch.cat([store.get_raw_llm_batch()[1][::CTX_LEN] for _ in range(4)]).tolist()
print(f"sae-lens {sae_lens.__version__}\nexpected: shuffle {cfg.shuffle} gives a cache whose sequences are not in the order of the data set")
for name, order in orders.items():
    print(f"seen: {name}: {len(order)} sequences, the first of the numbers {order[:12]}")
print(f"seen: what an ActivationsStore of that cache reads: {trained_on[:12]}")
in_order = list(range(ROWS))
raise SystemExit(not (orders["folder"][:ROWS] == in_order != orders["returned"][:ROWS] and trained_on == in_order[: len(trained_on)]))
PY

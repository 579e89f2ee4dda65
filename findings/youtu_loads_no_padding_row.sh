#!/usr/bin/env bash
# Youtu loaded from a folder whose config has a pad_token_id: the embedding of that token, and with it its unembedding, is set to 0 after the weights are read; where padding is the end of a text, its logit is 0.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, YoutuConfig, YoutuForCausalLM

END = 2
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
sizes |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "vocab_size": 64}
sizes |= {"max_position_embeddings": 64, "first_k_dense_replace": 2, "tie_word_embeddings": True}
sizes |= {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": END}
tokens = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}, a model with its end of text for padding, saved and loaded")
print("expected: the weights that were saved, and the same logits")
seen = {}
for kind, config in (DeepseekV3ForCausalLM, DeepseekV3Config(**sizes)), (YoutuForCausalLM, YoutuConfig(**sizes)):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
        model.save_pretrained(kind.__name__)
        loaded = kind.from_pretrained(kind.__name__).eval()
        norms = [each.get_input_embeddings().weight[END].norm().item() for each in (model, loaded)]
        logits = [each(tokens).logits[0, -1, END].item() for each in (model, loaded)]
    seen[kind] = norms, logits
    print(f"seen: {kind.__name__}: norm of the row {norms[0]:.3f}, loaded {norms[1]:.3f}; a logit of the end {logits[0]:.3f}, loaded {logits[1]:.3f}")
(held, same), (row, logit) = seen.values()
raise SystemExit(not (held[0] == held[1] and same[0] == same[1] and row[0] > 1 and row[1] == 0 and logit[0] != 0 and logit[1] == 0))
PY

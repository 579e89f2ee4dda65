#!/usr/bin/env bash
# DeepSeek V4 padded on the left, with a right mask and positions: its compressed attention pools the padding with a text's tokens, so states depend on how much there is and on what it is.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import DeepseekV3Config, DeepseekV3Model, DeepseekV4Config, DeepseekV4Model

LENGTH, VOCAB = 48, 64
sizes = {"vocab_size": VOCAB, "hidden_size": 32, "moe_intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "q_lora_rank": 16}
sizes |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
third = {"intermediate_size": 48, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
fourth = {"num_key_value_heads": 1, "head_dim": 16, "o_groups": 2, "o_lora_rank": 16, "sliding_window": 16, "index_n_heads": 4, "index_head_dim": 8, "index_topk": 64}


sparse, heavy, window = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"


def compressed(kind):
    return DeepseekV4Model(DeepseekV4Config(**sizes, **fourth, layer_types=[kind] * 2, compress_rates={sparse: 4, heavy: 8}))


kinds = {
    "deepseek_v3": lambda: DeepseekV3Model(DeepseekV3Config(**sizes, **third)),
    f"deepseek_v4, {window}": lambda: compressed(window),
    f"deepseek_v4, {sparse}": lambda: compressed(sparse),
    f"deepseek_v4, {heavy}": lambda: compressed(heavy),
}
text = torch.randint(4, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}, a text of {LENGTH} tokens, padded with token 0; compressed attention pools 4 or 8 tokens\nexpected: the text's states are those that it has alone")
seen = {}
for name, make in kinds.items():
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight *= 5
            elif not weight.any():
                weight.normal_(0, 0.2)
        alone = model(text, use_cache=False).last_hidden_state

        def off(left, right, token=0):
            ids = torch.cat([torch.full((1, left), token), text, torch.full((1, right), token)], 1)
            mask = torch.ones_like(ids)
            mask[:, :left] = 0
            mask[:, left + LENGTH :] = 0
            states = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).last_hidden_state
            return ((states[:, left : left + LENGTH] - alone).norm() / alone.norm()).item()

        seen[name] = {count: off(count, 0) for count in (1, 4, 8, 24)}
        other, right = off(8, 0, 7), off(0, 8)
    seen[name]["right"] = right
    print(f"seen: {name}: off by " + ", ".join(f"{seen[name][count]:.1%} after {count}" for count in (1, 4, 8, 24)) + f"; by {other:.1%} after 8 that are token 7; by {right:.1%} with 8 on the right")
exact = all(value < 1e-4 for name, values in seen.items() for key, value in values.items() if name in list(kinds)[:2] or key == "right")
heard = all(seen[name][count] > 0.01 for name in list(kinds)[2:] for count in (1, 4, 8, 24))
raise SystemExit(not (exact and heard))
PY

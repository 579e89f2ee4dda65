#!/usr/bin/env bash
# MiniMax in beam search, which caches by default: beams are put in another order and the recurrent layers' states are not, so a beam goes on from another one's past, and scores are of no text.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM, MixtralConfig, MixtralForCausalLM

TEXTS, NEW = 6, 8
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
sizes |= {"head_dim": 8, "vocab_size": 64, "num_local_experts": 4, "max_position_embeddings": 64, "eos_token_id": None}
print(f"transformers {transformers.__version__}, {TEXTS} texts, three beams")
print("expected: sequences_scores is the mean log probability of the new tokens, and the cache changes nothing")
seen = {}
for kind, config in (MixtralForCausalLM, MixtralConfig(**sizes)), (MiniMaxForCausalLM, MiniMaxConfig(**sizes)):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.18)
    for use_cache in False, True:
        errors = []
        for seed in range(TEXTS):
            tokens = torch.randint(4, 60, (1, 8), generator=torch.Generator().manual_seed(seed))
            options = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False, "output_scores": True}
            found = model.generate(tokens, use_cache=use_cache, return_dict_in_generate=True, pad_token_id=0, **options)
            with torch.no_grad():
                logits = model(found.sequences, use_cache=False).logits[:, 7:-1].log_softmax(-1)
            score = logits.gather(-1, found.sequences[:, 8:, None]).mean()
            errors.append((found.sequences_scores - score).abs().item())
        seen[kind, use_cache] = max(errors)
        print(f"seen: {kind.__name__}, use_cache={use_cache}: scores are up to {max(errors):.6f} off")
wrong = seen.pop((MiniMaxForCausalLM, True))
raise SystemExit(not (wrong > 0.02 and max(seen.values()) < 1e-4))
PY

#!/usr/bin/env bash
# ProphetNet's predict stream, of which its logits are, mixes up tokens and heads in its relative positions: a token's logits hear later tokens and the text's length, and those after a cache are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import ProphetNetConfig, ProphetNetForCausalLM
from transformers.models.prophetnet import modeling_prophetnet

LENGTH, CHANGED = 16, 6
sizes = {"hidden_size": 32, "decoder_ffn_dim": 48, "num_decoder_attention_heads": 4, "num_decoder_layers": 2, "vocab_size": 64, "max_position_embeddings": 64}
torch.manual_seed(0)
model = ProphetNetForCausalLM(ProphetNetConfig(**sizes)).eval()
tokens = torch.randint(4, 60, (1, LENGTH), generator=torch.Generator().manual_seed(0))
other = tokens.clone()
other[:, CHANGED] = 63
print(f"transformers {transformers.__version__}\nexpected: a token's logits do not depend on what comes after it, nor on whether they are computed after a cache")


def off(logits, from_):
    return ((logits - from_).norm() / from_.norm()).item()


def ordered(attention, states, weights, positions, buckets):
    """The stream's biases, each of its own token and head."""
    biases = attention.relative_pos_embeddings(states).unflatten(-1, (attention.num_buckets, attention.num_attn_heads))
    biases = biases.permute(0, 2, 4, 1, 3)  # (batch, stream, head, token, bucket)
    if buckets is None:
        distances = torch.arange(weights.shape[-1]) - positions[:, :, None]
        buckets = modeling_prophetnet.compute_relative_buckets(attention.num_buckets, attention.relative_max_distance, distances)
    return biases.gather(-1, buckets[:, None, None].long().expand(*biases.shape[:-1], -1))


def look():
    """Off what one forward has: logits before a changed token, those of the first half alone, those after a cache."""
    whole, changed = model(tokens).logits, model(other).logits
    cache, steps = None, []
    for token in tokens.split(1, 1):
        output = model(token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    half = LENGTH // 2
    return (
        off(changed[:, :CHANGED], whole[:, :CHANGED]),
        off(model(tokens[:, :half]).logits, whole[:, :half]),
        off(torch.cat(steps, 1), whole),
    )


seen = []
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter *= 8
    main = [model.prophetnet.decoder(t).last_hidden_state[:, :CHANGED] for t in (tokens, other)]
    print(f"seen: the main stream's states before token {CHANGED} move by {off(main[1], main[0]):.1%} if it is another one")
    for name in ("as it is", "with each bias at its own token and head"):
        seen.append(look())
        print(f"seen: {name}: the logits before token {CHANGED} move by {seen[-1][0]:.1%}; of half the text alone they are off by {seen[-1][1]:.1%}, step by step by {seen[-1][2]:.1%}")
        modeling_prophetnet.ProphetNetNgramSelfAttention.get_predict_relative_pos_embeddings = ordered
raise SystemExit(not (torch.equal(*main) and min(seen[0]) > 0.002 and max(seen[1]) < 1e-5))
PY

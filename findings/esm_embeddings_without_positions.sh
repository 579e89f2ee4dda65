#!/usr/bin/env bash
# ESM given inputs_embeds: no positions are added, though position_ids are given, and with token_dropout nothing is scaled.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import BertConfig, BertModel, EsmConfig, EsmModel

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64, "pad_token_id": 1}
esm = sizes | {"mask_token_id": 2, "max_position_embeddings": 40}
torch.manual_seed(0)
models = {
    "bert": BertModel(BertConfig(**sizes)),
    "esm, absolute positions": EsmModel(EsmConfig(**esm, position_embedding_type="absolute")),
    "esm, rotary": EsmModel(EsmConfig(**esm, position_embedding_type="rotary")),
    "esm, rotary, token_dropout": EsmModel(EsmConfig(**esm, position_embedding_type="rotary", token_dropout=True)),
}
tokens = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(0))
order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}\nexpected: get_input_embeddings() of the tokens, as inputs_embeds, gives the states of the tokens")


def relative(difference, of):
    return (difference.norm() / of.norm()).item()


off, moved = {}, {}
for name, model in models.items():
    with torch.no_grad():
        for parameter in model.eval().parameters():
            if parameter.ndim > 1:
                parameter *= 6
        embeds = model.get_input_embeddings()(tokens)
        of_tokens, of_embeds = model(tokens).last_hidden_state, model(inputs_embeds=embeds).last_hidden_state
        shuffled = model(inputs_embeds=embeds[:, order]).last_hidden_state
    off[name], moved[name] = relative(of_embeds - of_tokens, of_tokens), relative(shuffled - of_embeds[:, order], of_embeds)
    print(f"seen: {name}: off by {off[name]:.1%}; embeddings in another order give other states: {moved[name] > 1e-4}")
blind = [name for name, by in moved.items() if by < 1e-4]
wrong = [name for name, by in off.items() if by > 0.01]
raise SystemExit(not (blind == ["esm, absolute positions"] and wrong == ["esm, absolute positions", "esm, rotary, token_dropout"]))
PY

#!/usr/bin/env bash
# circuit-tracer puts a special token before a text; one whose id is 0, as the BOS of DeepSeek-V3 or StarCoder2, is passed over, and another one is put there.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 circuit-tracer==0.5.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

from circuit_tracer.replacement_model.common import ensure_tokenized
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = [f"word{i}" for i in range(20)]


def tokenizer_of(special, **roles):
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token=special[0]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, **roles)


# The order of ids and the roles are those of those two models' tokenizers, and of one whose BOS is 1.
tokenizers = {
    "BOS 0, EOS 1, pad 1": tokenizer_of(["<bos>", "<eos>"], bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"),
    "BOS and EOS 0, <fim_prefix> 1": tokenizer_of(
        ["<end>", "<fim_prefix>"], bos_token="<end>", eos_token="<end>", additional_special_tokens=["<fim_prefix>"]
    ),
    "unknown 0, BOS 1, EOS 2": tokenizer_of(["<unk>", "<bos>", "<eos>"], unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"),
}
print(f"circuit-tracer {version('circuit-tracer')}: ensure_tokenized, by which attribute() reads a prompt: 'word3 word4'")
first = []
for name, tokenizer in tokenizers.items():
    ids = ensure_tokenized("word3 word4", tokenizer, "cpu", "a-model").tolist()
    first.append(tokenizer.decode(ids[:1]))
    print(f"{name}\n  expected: {tokenizer.bos_token} word3 word4\n  seen: {tokenizer.decode(ids)}")
raise SystemExit(first != ["<eos>", "<fim_prefix>", "<bos>"])
PY

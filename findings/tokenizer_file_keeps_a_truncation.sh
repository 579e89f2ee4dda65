#!/usr/bin/env bash
# A tokenizer saved after one truncated, padded call: tokenizer.json keeps both; tokenizers obeys them for every text, transformers does not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
"$python" -W ignore - <<'PY'
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXTS = ["a b c d e f g h", "a"]
words = {word: number for number, word in enumerate(["<end>", *"abcdefgh"])}
core = Tokenizer(models.WordLevel(words, unk_token="<end>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
used = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print("expected: a file of a tokenizer gives a text the same tokens in both, whatever was called before it was saved")
lengths = {}
for when in ("before", "after"):
    if when == "after":
        used(TEXTS, truncation=True, padding="max_length", max_length=4)
    used.save_pretrained(when)
    lengths[when, "transformers"] = [len(AutoTokenizer.from_pretrained(when)(text)["input_ids"]) for text in TEXTS]
    lengths[when, "tokenizers"] = [len(Tokenizer.from_file(f"{when}/tokenizer.json").encode(text).ids) for text in TEXTS]
    for library in ("transformers", "tokenizers"):
        print(f"seen: saved {when} a call with max_length=4: {library} makes {lengths[when, library]} tokens of {TEXTS}")
whole = [8, 1]
raise SystemExit([lengths[key] for key in lengths] != [whole, whole, whole, [4, 4]])
PY

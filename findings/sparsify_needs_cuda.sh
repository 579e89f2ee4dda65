#!/usr/bin/env bash
# eai-sparsify's own command has no way to run without CUDA: the model is put on "cuda:<rank>" whatever is there.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 eai-sparsify==1.3.3
"$python" - <<'PY'
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

words = {word: number for number, word in enumerate(["<end>", *"abcdefghij"])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"eos_token": "<end>", "pad_token": "<end>"}
PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special).save_pretrained("model")
sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
GPT2LMHeadModel(GPT2Config(vocab_size=11, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained("model")
Path("data").mkdir()
Path("data/train.jsonl").write_text((json.dumps({"text": "a b c d e f g h i j " * 20}) + "\n") * 40)
PY
export CUDA_VISIBLE_DEVICES=
"$python" -c 'from importlib.metadata import version; print("eai-sparsify", version("eai-sparsify"))'
echo "expected: trains on the CPU, or says that it needs a GPU"
if "$python" -m sparsify model data --ctx_len 16 --batch_size 2 --log_to_wandb False > log 2>&1; then
    echo "seen: it trains"
    exit 1
fi
echo "seen: $(tail -n 1 log)"
grep -qi cuda log

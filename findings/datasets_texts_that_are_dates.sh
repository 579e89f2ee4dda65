#!/usr/bin/env bash
# datasets reads JSON lines whose texts all look like dates as timestamps: which text comes out depends on the files beside it and their order.
set -euo pipefail
source "$(dirname "$0")/environment.sh" datasets==5.2.0 pyarrow==26.0.1
"$python" - 2>/dev/null <<'PY'
import json
from pathlib import Path

import datasets
import pyarrow
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

files = {"dates": ["2020-01-01", "2021-02-03 04:05:06"], "words": ["2020-01-01", "a word"]}
for name, texts in files.items():
    Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
print(f"datasets {datasets.__version__}, pyarrow {pyarrow.__version__}\nexpected: the strings of the files, {files}")
seen = {}
for names in (["words"], ["dates"], ["words", "dates"], ["dates", "words"]):
    try:
        read = load_dataset("json", data_files=[f"{name}.jsonl" for name in names], split="train")
        seen[*names] = list(map(str, read["text"]))
        of_type = read.features["text"].dtype
    except DatasetGenerationError as error:
        seen[*names] = of_type = type(error).__name__
    print(f"seen: {' then '.join(names)}: {of_type}: {seen[*names]}")
midnight = "2020-01-01 00:00:00"
expected = [files["words"], [midnight, files["dates"][1]], [*files["words"], midnight, files["dates"][1]], "DatasetGenerationError"]
raise SystemExit(list(seen.values()) != expected)
PY

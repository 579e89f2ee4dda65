#!/usr/bin/env bash
# datasets' numpy format: a float64 column of numbers stays so, a float64 column of lists is rounded to float32; int32 lists become int64.
set -euo pipefail
source "$(dirname "$0")/environment.sh" datasets==5.2.0 numpy==2.4.6
"$python" - 2>/dev/null <<'PY'
import datasets
import numpy as np
from datasets import Array2D, Dataset, Features, List, Value

NUMBER = 1 + 2.0**-40
columns = {"number": [NUMBER], "list": [[NUMBER, NUMBER]], "matrix": [[[NUMBER, NUMBER]]], "whole": [[1, 2]], "half": [[0.5, 0.25]]}
features = {"number": Value("float64"), "list": List(Value("float64")), "matrix": Array2D((1, 2), "float64"), "whole": List(Value("int32")), "half": List(Value("float16"))}
data = Dataset.from_dict(columns, features=Features(features))
print(f"datasets {datasets.__version__}, numpy {np.__version__}\nexpected: arrays of the type that the features say, with the numbers that were put in")
row, kept = data.with_format("numpy")[0], {}
for name, feature in features.items():
    array = np.asarray(row[name])
    kept[name] = str(array.dtype), bool((array == np.asarray(columns[name][0])).all())
    print(f"seen: {name}: {feature} comes as {kept[name][0]}, the same numbers: {kept[name][1]}")
plain = data[0]["list"] == columns["list"][0]
print(f"seen: list without a format: the same numbers: {plain}")
expected = {"number": ("float64", True), "list": ("float32", False), "matrix": ("float32", False), "whole": ("int64", True), "half": ("float32", True)}
raise SystemExit(not (plain and kept == expected))
PY

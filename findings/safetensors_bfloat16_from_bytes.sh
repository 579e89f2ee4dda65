#!/usr/bin/env bash
# safetensors.flax and safetensors.numpy: save writes bfloat16 and load_file reads it, but load, which takes what save gave, ends in a KeyError.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 ml_dtypes==0.6.0 jax==0.10.2 safetensors==0.8.0
"$python" -W ignore - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import flax, numpy

print(f"safetensors {safetensors.__version__}, jax {jax.__version__}, numpy {np.__version__}\nexpected: load(save(tensors)) has the tensors that load_file has")
seen = {}
for dtype in (jnp.float16, jnp.bfloat16):
    for library, tensor in ((flax, jnp.ones(3, dtype)), (numpy, np.ones(3, dtype))):
        library.save_file({"weight": tensor}, "one.safetensors")
        found = [str(library.load_file("one.safetensors")["weight"].dtype)]
        try:
            found.append(str(library.load(library.save({"weight": tensor}))["weight"].dtype))
        except KeyError as error:
            found.append(f"KeyError {error}")
        seen[library.__name__, found[0]] = found[1]
        print(f"seen: {library.__name__}, {np.dtype(dtype).name}: load_file gives {found[0]}, load {found[1]}")
right = {found for (_, kind), found in seen.items() if kind == "float16"} == {"float16"}
raise SystemExit(not (right and all(found.startswith("KeyError") for (_, kind), found in seen.items() if kind != "float16")))
PY

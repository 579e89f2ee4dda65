#!/usr/bin/env bash
# JAX on a CPU counts in the dtype of what is counted: a bin of jnp.histogram of bfloat16 stops at 256, as do segment_sum, .at[].add and an embedding's gradient; 2,048 in float16.
set -euo pipefail
source "$(dirname "$0")/environment.sh" jax==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$python" -W ignore - 2>/dev/null <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

TOKENS = 5000
rng = np.random.default_rng(0)
acts = np.clip(rng.standard_normal(TOKENS), -2, 2)
which = jnp.zeros(TOKENS, jnp.int32)  # each token is of latent 0
counts = {
    "histogram, largest bin": lambda dtype: jnp.histogram(jnp.asarray(acts, dtype), bins=4, range=(-2, 2))[0].max(),
    "histogram, all bins": lambda dtype: jnp.histogram(jnp.asarray(acts, dtype), bins=4, range=(-2, 2))[0].astype(jnp.float32).sum(),
    "segment_sum of ones": lambda dtype: jax.ops.segment_sum(jnp.ones(TOKENS, dtype), which, 2)[0],
    "zeros.at[latent].add(1)": lambda dtype: jnp.zeros(2, dtype).at[which].add(1)[0],
    "bincount, weights of ones": lambda dtype: jnp.bincount(which, weights=jnp.ones(TOKENS, dtype), length=2)[0],
    "gradient of a row read for all": lambda dtype: jax.grad(lambda table: table[which].astype(jnp.float32).sum())(jnp.zeros((2, 1), dtype))[0, 0],
    "sum of ones": lambda dtype: jnp.ones(TOKENS, dtype).sum(),
}
print(f"jax {jax.__version__}, on a CPU, {TOKENS} tokens\nexpected: counts as in float32 and in numpy, or {TOKENS} within the dtype's rounding, as of sum")
seen = {}
for name, count in counts.items():
    seen[name] = {jnp.dtype(dtype).name: float(count(dtype)) for dtype in (jnp.float32, jnp.float16, jnp.bfloat16)}
    print(f"seen: {name}: " + ", ".join(f"{kind} {value:.0f}" for kind, value in seen[name].items()))
largest = np.histogram(acts, bins=4, range=(-2, 2))[0].max()
print(f"numpy's largest bin has {largest}, of values rounded to float16 {np.histogram(acts.astype(np.float16), bins=4, range=(-2, 2))[0].max()}")
stuck = [name for name in counts if name not in ("histogram, all bins", "sum of ones")]
wrong = all(seen[name]["bfloat16"] == 256 and seen[name]["float16"] in (2048, seen[name]["float32"]) for name in stuck) and seen["histogram, all bins"]["bfloat16"] <= 1024
right = all(seen[name]["float32"] == TOKENS for name in counts if name != "histogram, largest bin") and seen["histogram, largest bin"]["float32"] == largest
raise SystemExit(not (wrong and right and abs(seen["sum of ones"]["bfloat16"] - TOKENS) <= 16))
PY

#!/usr/bin/env bash
# optax's clip_by_global_norm of float16 gradients: squares are summed in float16, so a norm above 256 is infinite and each gradient is clipped to 0, in silence.
set -euo pipefail
source "$(dirname "$0")/environment.sh" jax==0.10.2 optax==0.2.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$python" -W ignore - 2>/dev/null <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import optax

LATENTS, WIDTH, LIMIT = 4096, 512, 1.0
rng = np.random.default_rng(0)
plain = rng.standard_normal((LATENTS, WIDTH))
print(f"optax {optax.__version__}, jax {jax.__version__}, gradients of a decoder of {LATENTS} x {WIDTH}, clipped to a norm of {LIMIT}")
print("expected: float16, whose largest number is 65504, has the norm as float32 and bfloat16 do, and what is clipped has the norm 1")
seen = {}
for scale in (0.1, 0.5):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        gradients = {"W_dec": jnp.asarray(plain * scale, dtype), "b_dec": jnp.ones(WIDTH, dtype)}
        norm = float(optax.global_norm(gradients))
        rule = optax.clip_by_global_norm(LIMIT)
        clipped = rule.update(gradients, rule.init(gradients))[0]
        after = float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in clipped.values())))
        kind = jnp.dtype(dtype).name
        truth = float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in gradients.values())))
        seen[scale, kind] = norm, after
        print(f"seen: {kind}, gradients of the norm {truth:.0f}, none above {float(abs(gradients['W_dec']).max()):.1f}: global_norm {norm:.0f}; after clip_by_global_norm their norm is {after:.3f}")
others = all(abs(clipped - LIMIT) < 0.01 and np.isfinite(norm) for (scale, kind), (norm, clipped) in seen.items() if kind != "float16" or scale < 0.5)
raise SystemExit(not (others and seen[0.5, "float16"] == (float("inf"), 0.0)))
PY

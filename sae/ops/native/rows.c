/* The passes of `sae.ops.momentum`, row by row. Matrices are (rows, d), one row after the other. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* To the nearest, ties to even; NaN stays NaN. */
static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* to[row] = scale * from, in float32 or bf16. */
static void write_row(void *to, long row, long d, const float *restrict from, float scale, int is_bf16) {
    if (is_bf16) {
        uint16_t *restrict out = (uint16_t *)to + row * d;
        for (long i = 0; i < d; i++) out[i] = to_bf16(from[i] * scale);
    } else {
        float *restrict out = (float *)to + row * d;
        for (long i = 0; i < d; i++) out[i] = from[i] * scale;
    }
}

/* out = from[row], as float32. */
static void read_row(const void *from, long row, long d, float *restrict out, int is_bf16) {
    if (is_bf16) {
        const uint16_t *restrict in = (const uint16_t *)from + row * d;
        for (long i = 0; i < d; i++) out[i] = from_bf16(in[i]);
    } else {
        memcpy(out, (const float *)from + row * d, d * sizeof(float));
    }
}

/* out = the sum of weights[e] * rows[tokens[e]] over e from begin to end. */
static void gather(long begin, long end, long d, const int64_t *tokens, const float *weights, const float *rows,
                   float *restrict out) {
    memset(out, 0, d * sizeof(float));
    for (long e = begin; e < end; e++) {
        const float *restrict row = rows + tokens[e] * d;
        const float weight = weights[e];
        for (long i = 0; i < d; i++) out[i] += weight * row[i];
    }
}

/* `momentum_` of the rows from first to end. The gradient is dense, or with `bounds` the sum of a segment. */
void momentum(long first, long end, long d, float *exp_avg, float *exp_avg_sq, const float *gradient,
              const int64_t *bounds, const int64_t *tokens, const float *weights, const float *rows,
              const float *along, const float *matrix, const float *rates, float weight1, float weight2,
              float epsilon, void *out, int is_bf16, float *energies) {
    float *restrict g = malloc(d * sizeof(float));
    for (long row = first; row < end; row++) {
        if (bounds)
            gather(bounds[row], bounds[row + 1], d, tokens, weights, rows, g);
        else
            memcpy(g, gradient + row * d, d * sizeof(float));
        if (along) {
            const float part = along[row], *restrict unit = matrix + row * d;
            for (long i = 0; i < d; i++) g[i] -= part * unit[i];
        }
        float *restrict m = exp_avg + row * d, square = 0, energy = 0;
        for (long i = 0; i < d; i++) {
            m[i] += weight1 * (g[i] - m[i]);
            square += g[i] * g[i];
            energy += m[i] * m[i];
        }
        exp_avg_sq[row] += weight2 * (square / d - exp_avg_sq[row]);
        const float scale = (rates ? rates[row] : 1.0f) / sqrtf(sqrtf(exp_avg_sq[row]) + epsilon);
        energies[row] = energy * scale * scale;
        write_row(out, row, d, m, scale, is_bf16);
    }
    free(g);
}

/* `descend_` of the rows from first to end, which are first multiplied by `factors`. Those of `follower` take
   `its_length` of the same step. */
void descend(long first, long end, long d, float *parameter, const void *step, int step_is_bf16, float length,
             const float *factors, int unit_rows, void *copy, int copy_is_bf16, float *follower, float its_length) {
    float *restrict s = malloc(d * sizeof(float));
    for (long row = first; row < end; row++) {
        read_row(step, row, d, s, step_is_bf16);
        if (follower) {
            float *restrict w = follower + row * d;
            for (long i = 0; i < d; i++) w[i] -= its_length * s[i];
        }
        const float factor = factors ? factors[row] : 1.0f;
        float *restrict w = parameter + row * d, square = 0;
        for (long i = 0; i < d; i++) {
            w[i] = factor * w[i] - length * s[i];
            square += w[i] * w[i];
        }
        if (unit_rows) {
            const float norm = fmaxf(sqrtf(square), FLT_MIN);
            for (long i = 0; i < d; i++) w[i] /= norm;
        }
        if (copy) write_row(copy, row, d, w, 1.0f, copy_is_bf16);
    }
    free(s);
}

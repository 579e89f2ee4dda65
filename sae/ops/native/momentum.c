/* The passes of `sae.ops.momentum`. Matrices are (rows, d), one row after the other. */

#include <float.h>
#include <math.h>

#include "rows.h"

/* `momentum_` of the rows from first to end. The gradient is dense, or with `bounds` the sum of a segment of rows that
   are `stride` apart. */
void momentum(long first, long end, long d, long threads, void *exp_avg, long moment_is_bf16, float *exp_avg_sq,
              const float *gradient, const int64_t *bounds, const int64_t *tokens, const float *weights,
              const float *rows, long stride, const float *along, const float *matrix, const float *rates,
              float weight1, float weight2, float epsilon, void *out, long is_bf16, float *energies) {
#pragma omp parallel num_threads(threads)
    {
        float *restrict g = malloc(2 * d * sizeof(float)), *restrict m = g + d;
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            if (bounds)
                gather(bounds[row], bounds[row + 1], d, tokens, weights, rows, stride, g);
            else
                memcpy(g, gradient + row * d, d * sizeof(float));
            if (along) {
                const float part = along[row], *restrict unit = matrix + row * d;
                for (long i = 0; i < d; i++) g[i] -= part * unit[i];
            }
            float square = 0, energy = 0;
            read_row(exp_avg, row, d, m, moment_is_bf16);
            for (long i = 0; i < d; i++) {
                m[i] += weight1 * (g[i] - m[i]);
                square += g[i] * g[i];
                energy += m[i] * m[i];
            }
            write_row(exp_avg, row, d, m, 1.0f, moment_is_bf16);
            exp_avg_sq[row] += weight2 * (square / d - exp_avg_sq[row]);
            const float scale = (rates ? rates[row] : 1.0f) / sqrtf(sqrtf(exp_avg_sq[row]) + epsilon);
            energies[row] = energy * scale * scale;
            write_row(out, row, d, m, scale, is_bf16);
        }
        free(g);
    }
}

/* `descend_` of the rows from first to end, which are first multiplied by `factors`. Those of `follower` take
   `its_length` of the same step. */
void descend(long first, long end, long d, long threads, float *parameter, const void *step, long step_is_bf16,
             float length, const float *factors, long unit_rows, void *copy, long copy_is_bf16, float *follower,
             float its_length) {
#pragma omp parallel num_threads(threads)
    {
        float *restrict s = malloc(d * sizeof(float));
#pragma omp for schedule(dynamic, ROWS)
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
}

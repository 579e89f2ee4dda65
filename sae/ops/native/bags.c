/* The passes of `sae.ops.decode` and `sae.ops.bags`: sums of weighted rows of a matrix, and their gradient. Bag b has the
   entries from starts[b] to starts[b + 1]. The rows of W are `stride` apart. */

#include "rows.h"

/* Columns of W that all bags are given before the next: of some thousand rows these stay in the third-level cache. */
enum { PANEL = 1024 };

static inline long panel_from(long start, long d) {
    return d - start < PANEL ? d - start : PANEL;
}

/* `decode_bags` of the bags from first to end. */
void decode(long first, long end, long d, long threads, float *out, const int64_t *starts, const int64_t *indices,
            const float *acts, const float *W, long stride) {
#pragma omp parallel num_threads(threads)
    for (long start = 0; start < d; start += PANEL)
#pragma omp for schedule(dynamic, ROWS)
        for (long bag = first; bag < end; bag++)
            gather(starts[bag], starts[bag + 1], panel_from(start, d), indices, acts, W + start, stride,
                   out + bag * d + start);
}

/* `gather_dot_bags` of the bags from first to end, whose rows are `apart`. */
void gather_dot(long first, long end, long d, long threads, const float *rows, long apart, const int64_t *starts,
                const int64_t *indices, const float *W, long stride, float *out) {
#pragma omp parallel num_threads(threads)
    for (long start = 0; start < d; start += PANEL)
#pragma omp for schedule(dynamic, ROWS)
        for (long bag = first; bag < end; bag++)
            for (long e = starts[bag]; e < starts[bag + 1]; e++) {
                const float *row = W + indices[e] * stride + start;
                const float product = dot(rows + bag * apart + start, row, panel_from(start, d));
                out[e] = start ? out[e] + product : product;
            }
}

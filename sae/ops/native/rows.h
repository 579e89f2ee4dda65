/* What the passes share: how many rows a thread takes, float32 beside bf16, sums and products of rows. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Rows that a thread takes at a time. Without OpenMP the pragmas below say nothing, and the caller's threads share. */
enum { ROWS = 16 };

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
static inline void write_row(void *to, long row, long d, const float *restrict from, float scale, int is_bf16) {
    if (is_bf16) {
        uint16_t *restrict out = (uint16_t *)to + row * d;
        for (long i = 0; i < d; i++) out[i] = to_bf16(from[i] * scale);
    } else {
        float *restrict out = (float *)to + row * d;
        for (long i = 0; i < d; i++) out[i] = from[i] * scale;
    }
}

/* out = from[row], as float32. */
static inline void read_row(const void *from, long row, long d, float *restrict out, int is_bf16) {
    if (is_bf16) {
        const uint16_t *restrict in = (const uint16_t *)from + row * d;
        for (long i = 0; i < d; i++) out[i] = from_bf16(in[i]);
    } else {
        memcpy(out, (const float *)from + row * d, d * sizeof(float));
    }
}

/* Numbers that are computed together; the compiler makes of them what the processor has. */
typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));

/* Columns whose sums stay in registers, and in how many `lanes`. */
enum { LANES = sizeof(lanes) / sizeof(float), PARTS = 4, COLUMNS = PARTS * LANES };

/* out = the sum of weights[e] * rows[at[e]] over e from begin to end; the rows are `stride` apart. */
static inline void gather(long begin, long end, long d, const int64_t *at, const float *weights, const float *rows,
                          long stride, float *restrict out) {
    long start = 0;
    for (; start + COLUMNS <= d; start += COLUMNS) {
        lanes sums[PARTS] = {0};
        for (long e = begin; e < end; e++) {
            const lanes *row = (const lanes *)(rows + at[e] * stride + start);
            for (long i = 0; i < PARTS; i++) sums[i] += weights[e] * row[i];
        }
        memcpy(out + start, sums, sizeof sums);
    }
    memset(out + start, 0, (d - start) * sizeof(float));
    for (long e = begin; e < end; e++)
        for (long i = start; i < d; i++) out[i] += weights[e] * rows[at[e] * stride + i];
}

/* The product of two rows. Many sums at a time: one alone would wait for each addition. */
static inline float dot(const float *restrict left, const float *restrict right, long n) {
    float sums[COLUMNS] = {0}, product = 0;
    long start = 0;
    for (; start + COLUMNS <= n; start += COLUMNS)
        for (long i = 0; i < COLUMNS; i++) sums[i] += left[start + i] * right[start + i];
    for (; start < n; start++) product += left[start] * right[start];
    for (long i = 0; i < COLUMNS; i++) product += sums[i];
    return product;
}

/* Candidates for the k largest latents of each token, from a product in 8 bits, which is never in memory.

   A panel of latents stays in the first-level cache, and a chunk of tokens in the second-level one. Each product of
   a tile of tokens with a panel stays in registers. What is above its token's threshold is kept, and the threshold
   rises. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* x86 multiplies unsigned by signed bytes and adds each four products to an int32, by 16 lanes or by 8. */
#if defined(__AVX512VNNI__) && defined(__AVX512DQ__) && !defined(EIGHT_LANES)
#include <immintrin.h>
enum { LANES = 16, TOKENS = 14 };
typedef __m512i whole;
#define MULTIPLY_ADD _mm512_dpbusd_epi32
#define SIGNS(mask) _mm512_movepi32_mask((__m512i)(mask))
#elif defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#include <immintrin.h>
enum { LANES = 8, TOKENS = 6 };
typedef __m256i whole;
#ifdef __AVXVNNI__
#define MULTIPLY_ADD _mm256_dpbusd_avx_epi32
#else
#define MULTIPLY_ADD _mm256_dpbusd_epi32
#endif
#define SIGNS(mask) _mm256_movemask_ps((__m256)(mask))
#endif

#ifndef MULTIPLY_ADD

int latents_in_panel(void) { return 0; }

#else

enum { VECTORS = 2, PANEL = VECTORS * LANES, HALF = 128, MOST = 127 };
/* Bytes of a chunk's tokens, which share the second-level cache with a panel. */
enum { CHUNK_BYTES = 384 * 1024 };
/* Adding it leaves the nearest whole number in a float's lowest bits, in two's complement. */
static const float SHIFTER = 12582912.0f;
static const float LEAST = 1e-37f; /* unit, whose inverse is finite */

typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));

int latents_in_panel(void) { return PANEL; }

static inline uint8_t rounded(float x) {
    uint32_t bits;
    x += SHIFTER;
    memcpy(&bits, &x, 4);
    return (uint8_t)bits;
}

/* A whole number in the order of floats, and back; NaN is the largest. */
static inline int32_t to_ordered(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? INT32_MAX : bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float from_ordered(int32_t bits) {
    float x;
    bits ^= bits >> 31 & 0x7fffffff;
    memcpy(&x, &bits, 4);
    return x;
}

/* codes = scale * factors * row, rounded, so that the largest is MOST; returns 1 / scale. `bytes` are d and zeros. */
static float quantise(const float *restrict row, const float *restrict factors, long d, long bytes,
                      float *restrict smooth, uint8_t *restrict codes) {
    int32_t bits = 0; /* of the largest magnitude: the order of positive floats, with NaN above */
    for (long i = 0; i < d; i++) {
        int32_t own;
        smooth[i] = row[i] * factors[i];
        memcpy(&own, smooth + i, 4);
        own &= INT32_MAX;
        bits = own > bits ? own : bits;
    }
    const float largest = from_ordered(bits) / MOST, unit = largest < LEAST ? LEAST : largest, scale = 1 / unit;
    for (long i = 0; i < d; i++) codes[i] = rounded(smooth[i] * scale);
    memset(codes + d, 0, bytes - d);
    return unit;
}

/* Rows from first to end of W * columns as unsigned bytes, 128 for 0, and a row's unit in `units`. Panels are apart;
   within one, four bytes of each row come after the other. */
void pack(long first, long end, long d, long threads, const float *W, const float *columns, uint32_t *packed,
          float *units) {
    const long words = (d + 3) / 4;
#pragma omp parallel num_threads(threads)
    {
        float *smooth = malloc(d * sizeof(float));
        uint32_t *codes = malloc(words * 4);
#pragma omp for schedule(static)
        for (long row = first; row < end; row++) {
            units[row] = quantise(W + row * d, columns, d, words * 4, smooth, (uint8_t *)codes);
            uint32_t *restrict to = packed + row / PANEL * PANEL * words + row % PANEL;
            for (long i = 0; i < words; i++) to[i * PANEL] = codes[i] ^ 0x80808080u;
        }
        free(smooth);
        free(codes);
    }
}

/* A token, and what it has kept: scores in the order of whole numbers, and their latents. */
typedef struct {
    int32_t *scores, *latents;
    long number;
    float threshold, unit;
    int32_t shift; /* of its sums: the latents' bytes are HALF too large */
} Token;

static long count_from(int32_t least, const int32_t *restrict scores, long number) {
    int32_t count = 0;
    for (long i = 0; i < number; i++) count += scores[i] >= least;
    return count;
}

/* Keep the `count` largest, of equal ones those that came first. */
static void prune(Token *kept, long count) {
    int32_t *restrict scores = kept->scores, *restrict latents = kept->latents;
    int64_t low = INT32_MAX, high = INT32_MIN; /* at least `count` from low on, fewer from high on */
    for (long i = 0; i < kept->number; i++) {
        low = scores[i] < low ? scores[i] : low;
        high = scores[i] > high ? scores[i] : high;
    }
    high++;
    long above = 0, from = kept->number;
    while (high - low > 1 && from != count) {
        const int64_t middle = low + (high - low) / 2;
        const long here = count_from((int32_t)middle, scores, kept->number);
        if (here >= count)
            low = middle, from = here;
        else
            high = middle, above = here;
    }
    long equal = count - above, number = 0;
    for (long i = 0; i < kept->number; i++) {
        if (scores[i] < low || (from != count && scores[i] == low && equal-- <= 0)) continue;
        scores[number] = scores[i], latents[number++] = latents[i];
    }
    int32_t least = INT32_MAX;
    for (long i = 0; i < number; i++) least = scores[i] < least ? scores[i] : least;
    kept->number = number;
    kept->threshold = from_ordered(least);
}

/* Add the scores of a panel, sums * units * unit + bias, that are above the threshold. `first` is its first latent, and
   the last panel has lanes beyond the `latents`. */
static inline void keep(Token *kept, const ints *sums, const float *units, const float *bias, long first, long latents,
                        long count, long room) {
    for (long v = 0; v < VECTORS; v++) {
        floats scale, score, add;
        memcpy(&scale, units + first + v * LANES, sizeof scale);
        memcpy(&add, bias + first + v * LANES, sizeof add);
        score = __builtin_convertvector(sums[v] - kept->shift, floats) * (scale * kept->unit) + add;
        unsigned left = (unsigned)SIGNS(~(score <= kept->threshold));
        for (; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            const long latent = first + v * LANES + lane;
            if (latent >= latents) break; /* -infinity, but no number where a product overflows */
            kept->scores[kept->number] = to_ordered(score[lane]);
            kept->latents[kept->number++] = (int32_t)latent;
        }
    }
    if (kept->number + PANEL > room) prune(kept, count);
}

/* Any others, where fewer than `count` have a score above -infinity. */
static void fill(Token *kept, long count) {
    for (int32_t next = 0; kept->number < count; next++) {
        long at = 0;
        while (at < kept->number && kept->latents[at] != next) at++;
        if (at == kept->number) kept->latents[kept->number++] = next;
    }
}

/* The products of a tile of tokens with a panel of latents. */
static inline void multiply(const int32_t *restrict tile, const int32_t *restrict panel_codes, long words,
                            ints sums[TOKENS][VECTORS]) {
    ints s[TOKENS][VECTORS] = {0};
    for (long i = 0; i < words; i++) {
        ints latents[VECTORS];
        for (int v = 0; v < VECTORS; v++) memcpy(latents + v, panel_codes + i * PANEL + v * LANES, sizeof(ints));
#pragma GCC unroll 16
        for (int t = 0; t < TOKENS; t++) {
            const ints token = tile[i * TOKENS + t] - (ints){0};
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                s[t][v] = (ints)MULTIPLY_ADD((whole)s[t][v], (whole)latents[v], (whole)token);
        }
    }
    memcpy(sums, s, sizeof s);
}

/* Write the bytes of token t where its tile has them, four at a time, TOKENS apart; `row` is null for none. `codes` is
   scratch. */
static void read_token(Token *token, const float *row, const float *factors, long d, long words, float *smooth,
                       int32_t *codes, int32_t *restrict to) {
    token->number = 0, token->threshold = -INFINITY, token->unit = 0, token->shift = 0;
    memset(codes, 0, words * 4);
    if (row) token->unit = quantise(row, factors, d, words * 4, smooth, (uint8_t *)codes);
    const int8_t *restrict bytes = (const int8_t *)codes;
    for (long i = 0; i < words * 4; i++) token->shift += HALF * bytes[i];
    for (long i = 0; i < words; i++) to[i * TOKENS] = codes[i];
}

/* Rows from first to end of `found`: the `count` latents of each token x whose scores in 8 bits are the largest, in the
   order of latents. `packed` and `units` are of `pack`, over as many panels as hold all latents; beyond them `bias` is
   -infinity. `factors` are what x is multiplied by where W is by the columns. */
void candidates(long first, long end, long d, long threads, const float *x, const float *factors,
                const int32_t *packed, const float *units, const float *bias, long latents, long count,
                int64_t *found) {
    const long words = (d + 3) / 4, tile_words = TOKENS * words, tiles = (end - first + TOKENS - 1) / TOKENS;
    const long room = 2 * count + 2 * PANEL, fit = CHUNK_BYTES / (tile_words * 4);
    const long most_tiles = threads * (fit > 1 ? fit : 1), chunks = threads * ((tiles + most_tiles - 1) / most_tiles);
    const long most = chunks ? (tiles + chunks - 1) / chunks * TOKENS : 0;
#pragma omp parallel num_threads(threads)
    {
        int32_t *tokens_codes = malloc(most * words * 4), *codes = malloc(words * 4);
        int32_t *kept = malloc(2 * most * room * sizeof(int32_t));
        float *smooth = malloc(d * sizeof(float));
        Token *tokens = malloc(most * sizeof(Token));
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long begin = tiles * chunk / chunks * TOKENS, own = tiles * (chunk + 1) / chunks * TOKENS - begin;
            for (long t = 0; t < own; t++) {
                const long row = first + begin + t;
                tokens[t].scores = kept + 2 * t * room, tokens[t].latents = tokens[t].scores + room;
                read_token(tokens + t, row < end ? x + row * d : NULL, factors, d, words, smooth, codes,
                           tokens_codes + t / TOKENS * tile_words + t % TOKENS);
            }
            for (long latent = 0; latent < latents; latent += PANEL)
                for (long tile = 0; tile < own; tile += TOKENS) {
                    ints sums[TOKENS][VECTORS];
                    multiply(tokens_codes + tile * words, packed + latent * words, words, sums);
                    for (long t = 0; t < TOKENS; t++)
                        keep(tokens + tile + t, sums[t], units, bias, latent, latents, count, room);
                }
            for (long t = 0; t < own && first + begin + t < end; t++) {
                if (tokens[t].number > count) prune(tokens + t, count);
                fill(tokens + t, count);
                int64_t *restrict to = found + (first + begin + t) * count;
                for (long c = 0; c < count; c++) to[c] = tokens[t].latents[c];
            }
        }
        free(tokens_codes), free(codes), free(kept), free(smooth), free(tokens);
    }
}

#endif

/* Attention of queries to all keys, or to those up to their own place, in bf16 with float32 sums: the scores of a block
   of queries stay in the second-level cache, and the largest score so far moves with the blocks of keys. The products
   are those of two pairs of bf16 (AVX512-BF16). Where the processor has none, or has matrix units, there is nothing. */

#include "rows.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(__AMX_BF16__)
#include <immintrin.h>

long has_attention(void) { return 1; }

enum {
    KEYS = 64,              /* keys that are packed together; what is packed is filled up with zeros to a multiple */
    BLOCK = 4 * KEYS,       /* keys whose scores are held at a time */
    QUERIES = 32,           /* queries whose scores are held */
    WIDEST = 256,           /* numbers of a head */
    TILE = 4,               /* rows whose sums are in registers, in */
    COLUMNS_OF_TILE = 4,    /* vectors of 16 columns */
};

typedef struct {
    const uint16_t *at;
    long batch, head, row;
} strided;

static inline const uint16_t *row_of(strided x, long batch, long head, long row) {
    return x.at + batch * x.batch + head * x.head + row * x.row;
}

static inline uint32_t pair(const uint16_t *at) {
    uint32_t both;
    memcpy(&both, at, 4);
    return both;
}

/* Of each head of keys and values, a row of `keys` and `values`: pairs along what is summed over, vectors along the other.
   keys: (blocks of KEYS, width / 2, KEYS, 2); values: (pairs of places, width, 2). */
void pack_heads(long first, long end, long size, long threads, uint16_t *keys, uint16_t *values, const uint16_t *k,
                long k_batch, long k_head, long k_row, const uint16_t *v, long v_batch, long v_head, long v_row,
                long seq, long heads, long width) {
    const strided from = {k, k_batch, k_head, k_row}, also = {v, v_batch, v_head, v_row};
    const long blocks = (seq + KEYS - 1) / KEYS;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long each = first * blocks; each < end * blocks; each++) {
        const long head = each / blocks, start = each % blocks * KEYS;
        uint16_t *to = keys + head * size + start * width, *beside = values + head * size + start * width;
        for (long key = 0; key < KEYS; key++) {
            const int there = start + key < seq;
            const uint16_t *one = row_of(from, head / heads, head % heads, start + key);
            const uint16_t *other = row_of(also, head / heads, head % heads, start + key);
            for (long i = 0; i < width; i += 2) {
                const uint32_t both = there ? pair(one + i) : 0;
                memcpy(to + (i / 2 * KEYS + key) * 2, &both, 4);
            }
            for (long i = 0; i < width; i++) beside[(key / 2 * width + i) * 2 + key % 2] = there ? other[i] : 0;
        }
    }
}

/* to = (add ? kept * to : 0) + left (TILE rows of pairs) times right (pairs of rows `stride` pairs apart). */
static inline __attribute__((always_inline)) void tile(long pairs, const uint16_t *const *left, const uint16_t *right,
                                                       long stride, const int vectors, float *to, long apart,
                                                       const float *kept) {
    __m512 sums[TILE][COLUMNS_OF_TILE];
    for (int row = 0; row < TILE; row++)
        for (int i = 0; i < vectors; i++)
            if (kept == NULL) sums[row][i] = _mm512_setzero_ps();
            else sums[row][i] = _mm512_mul_ps(_mm512_loadu_ps(to + row * apart + 16 * i), _mm512_set1_ps(kept[row]));
    for (long p = 0; p < pairs; p++) {
        __m512bh columns[COLUMNS_OF_TILE];
        for (int i = 0; i < vectors; i++)
            columns[i] = (__m512bh)_mm512_loadu_si512(right + (p * stride + 16 * i) * 2);
        for (int row = 0; row < TILE; row++) {
            const __m512bh one = (__m512bh)_mm512_set1_epi32((int)pair(left[row] + 2 * p));
            for (int i = 0; i < vectors; i++) sums[row][i] = _mm512_dpbf16_ps(sums[row][i], one, columns[i]);
        }
    }
    for (int row = 0; row < TILE; row++)
        for (int i = 0; i < vectors; i++) _mm512_storeu_ps(to + row * apart + 16 * i, sums[row][i]);
}

/* 2 to the power x <= 0, to float32's last place or so; what is far below is as good as 0, and NaN stays NaN. */
static inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = x - whole;
    /* The Taylor series of exp(r ln 2), |r| <= 1/2, whose next term is below 2^-26. */
    __m512 sum = _mm512_set1_ps(1.5403530e-4f);
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.3333558e-3f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(9.6181291e-3f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(5.5504109e-2f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(2.4022651e-1f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(6.9314718e-1f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(sum, whole);
}

typedef struct {
    float largest, sum;
} running;

/* Weights of one query, in bf16, from its scores with `n` keys, of which it hears the first `heard`; returns by what
   that which was summed before is to be multiplied. */
static inline float soften(long n, long heard, const float *scores, float scale, uint16_t *weights, running *so_far) {
    const __m512 least = _mm512_set1_ps(-__builtin_inff()), factor = _mm512_set1_ps(scale);
    __m512 most = least, total = _mm512_setzero_ps();
    for (long i = 0; i < heard; i += 16) {
        const __mmask16 own = heard - i >= 16 ? 0xffff : (__mmask16)((1u << (heard - i)) - 1);
        most = _mm512_max_ps(most, _mm512_mask_mul_ps(least, own, _mm512_loadu_ps(scores + i), factor));
    }
    const float before = so_far->largest, found = _mm512_reduce_max_ps(most);
    so_far->largest = found > before ? found : before;
    /* Where all scores so far are -infinity, what is summed counts for nothing once there is another. */
    const __m512 largest = _mm512_set1_ps(so_far->largest == -__builtin_inff() ? 0 : so_far->largest);
    for (long i = 0; i < n; i += 32) {
        __m512 parts[2];
        for (int half = 0; half < 2; half++) {
            const long left = heard - i - 16 * half;
            const __mmask16 own = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
            const __m512 score = _mm512_fmsub_ps(_mm512_loadu_ps(scores + i + 16 * half), factor, largest);
            parts[half] = _mm512_maskz_mov_ps(own, power_of_two(score));
            total += parts[half];
        }
        _mm512_storeu_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(parts[1], parts[0]));
    }
    const float kept = before == so_far->largest ? 1 : __builtin_exp2f(before - so_far->largest);
    so_far->sum = so_far->sum * kept + _mm512_reduce_add_ps(total);
    return kept;
}

static inline long least_of(long a, long b) { return a < b ? a : b; }

/* The queries `start` to `stop` of one head; `out` is the row of the first. */
static void attend_some(long start, long stop, long width, strided q, long batch, long head, const uint16_t *keys,
                        const uint16_t *values, long seq, int causal, float scale, uint16_t *out, long apart) {
    float scores[QUERIES * BLOCK], sums[QUERIES * WIDEST], kept[QUERIES];
    uint16_t weights[QUERIES * BLOCK];
    running so_far[QUERIES];
    const long n = stop - start, tiles = (n + TILE - 1) / TILE, heard = causal ? stop : seq;
    for (long i = 0; i < QUERIES; i++) so_far[i] = (running){-__builtin_inff(), 0};
    for (long first = 0; first < heard; first += BLOCK) {
        const long some = (least_of(heard - first, BLOCK) + KEYS - 1) / KEYS * KEYS;
        for (long from = 0; from < some; from += KEYS)
            for (long t = 0; t < tiles; t++) {
                const uint16_t *left[TILE];
                for (long i = 0; i < TILE; i++)
                    left[i] = row_of(q, batch, head, least_of(start + t * TILE + i, stop - 1));
                tile(width / 2, left, keys + (first + from) * width, KEYS, COLUMNS_OF_TILE,
                     scores + t * TILE * BLOCK + from, BLOCK, NULL);
            }
        for (long i = 0; i < tiles * TILE; i++) {
            const long own = causal ? least_of(start + i, stop - 1) + 1 : seq;
            kept[i] = soften(some, least_of(own - first, some), scores + i * BLOCK, scale, weights + i * BLOCK,
                             so_far + i);
        }
        for (long t = 0; t < tiles; t++) {
            const uint16_t *left[TILE];
            const float *before = first ? kept + t * TILE : NULL;
            for (long i = 0; i < TILE; i++) left[i] = weights + (t * TILE + i) * BLOCK;
            long column = 0;
            for (; column + 16 * COLUMNS_OF_TILE <= width; column += 16 * COLUMNS_OF_TILE)
                tile(some / 2, left, values + first * width + 2 * column, width, COLUMNS_OF_TILE,
                     sums + t * TILE * WIDEST + column, WIDEST, before);
            for (; column < width; column += 16)
                tile(some / 2, left, values + first * width + 2 * column, width, 1, sums + t * TILE * WIDEST + column,
                     WIDEST, before);
        }
    }
    for (long i = 0; i < n; i++)
        for (long column = 0; column < width; column += 16) {
            const float total = so_far[i].largest == -__builtin_inff() ? __builtin_nanf("") : so_far[i].sum;
            const __m512 mean = _mm512_loadu_ps(sums + i * WIDEST + column) / _mm512_set1_ps(total);
            _mm256_storeu_si256((__m256i *)(out + i * apart + column), (__m256i)_mm512_cvtneps_pbh(mean));
        }
}

/* out: (batch, seq, heads, width), whose rows first to end are of a place in a sequence each. */
void attend(long first, long end, long d, long threads, uint16_t *out, const uint16_t *q, long q_batch, long q_head,
            long q_row, const uint16_t *keys, const uint16_t *values, long size, long seq, long width, long kv_heads,
            long causal, float scale) {
    const strided from = {q, q_batch, q_head, q_row};
    const long heads = d / width, blocks = (seq + QUERIES - 1) / QUERIES;
    const long begin = first / seq * blocks, last = ((end + seq - 1) / seq) * blocks;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long each = begin * heads; each < last * heads; each++) {
        const long block = each / heads, head = each % heads, batch = block / blocks;
        /* The last blocks of a sequence have the most keys. */
        const long start = (causal ? blocks - 1 - block % blocks : block % blocks) * QUERIES;
        const long own = batch * seq, stop = least_of(least_of(start + QUERIES, seq), end - own);
        const long begins = first - own > start ? first - own : start;
        if (begins >= stop) continue;
        const long kv = (batch * kv_heads + head / (heads / kv_heads)) * size;
        attend_some(begins, stop, width, from, batch, head, keys + kv, values + kv, seq, causal,
                    scale * 1.44269504088896340736f, out + (own + begins) * d + head * width, d);
    }
}

#else

long has_attention(void) { return 0; }

#endif

/* The passes of `sae.ops.topk`, `extremes`, of logits and of a transformer's elementwise work, row by row.
   Matrices are (rows, d), one row after the other. */

#include <float.h>
#include <math.h>

#include "rows.h"

int has_team(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* The k-th largest of n values, or 0 if fewer than k are positive. Values are read as bits of bf16, whose order is that
   of integers where they are positive. */
static int16_t kth_largest(const int16_t *values, long n, long k) {
    int counts[256] = {0}, high, low;
    for (long i = 0; i < n; i++)
        if (values[i] > 0) counts[values[i] >> 8]++;
    for (high = 127; high >= 0 && k > counts[high]; high--) k -= counts[high];
    if (high < 0) return 0;
    memset(counts, 0, sizeof counts);
    for (long i = 0; i < n; i++)
        if (values[i] > 0 && values[i] >> 8 == high) counts[values[i] & 255]++;
    for (low = 255; low > 0 && k > counts[low]; low--) k -= counts[low];
    return (int16_t)(high << 8 | low);
}

/* Put a score among the `number` best so far, which are in descending order and at most `most`; returns how many there
   are now. Of equal scores the one that came first stays first. */
static long place(float score, long column, long number, long most, float *scores, int64_t *columns) {
    if (number == most && score <= scores[most - 1]) return number;
    long at = number < most ? number : most - 1;
    for (; at > 0 && scores[at - 1] < score; at--) scores[at] = scores[at - 1], columns[at] = columns[at - 1];
    scores[at] = score, columns[at] = column;
    return number < most ? number + 1 : most;
}

/* The product of two rows; 0 where it is no number. */
static float product_of(const float *left, const float *right, long n) {
    const float product = dot(left, right, n);
    return fabsf(product) <= FLT_MAX ? product : 0.0f;
}

/* Column j is in group j % num_groups. */
static void group_maxima(const int16_t *restrict x, long d, long num_groups, int16_t *restrict maxima) {
    memcpy(maxima, x, num_groups * sizeof(int16_t));
    for (long start = num_groups; start < d; start += num_groups) {
        const long count = d - start < num_groups ? d - start : num_groups;
        for (long g = 0; g < count; g++) maxima[g] = x[start + g] > maxima[g] ? x[start + g] : maxima[g];
    }
}

/* The entries from `least` on, and their columns; returns how many. Both have room for d. */
static long entries_from(int16_t least, const int16_t *restrict x, long d, long num_groups, const int16_t *maxima,
                         int16_t *restrict found, int64_t *restrict at) {
    long number = 0;
    for (long g = 0; g < num_groups; g++)
        if (maxima[g] >= least)
            for (long j = g; j < d; j += num_groups)
                if (x[j] >= least) found[number] = x[j], at[number++] = j;
    return number;
}

/* Positive entries with the k largest among them, as far as there are so many, and their columns; returns how many. */
static long contenders(const int16_t *restrict x, long d, long k, long num_groups, int16_t *maxima, int16_t *found,
                       int64_t *at) {
    group_maxima(x, d, num_groups, maxima);
    const int16_t least = kth_largest(maxima, num_groups, k);
    return entries_from(least < 1 ? 1 : least, x, d, num_groups, maxima, found, at);
}

/* `topk` of bf16, of the rows from first to end. Column j is in group j % num_groups, of `slices` columns or one more:
   the k groups with the largest maxima hold the k largest values. */
void topk(long first, long end, long d, long threads, const int16_t *matrix, long k, long slices, int16_t *values,
          int64_t *indices) {
#pragma omp parallel num_threads(threads)
    {
        const long num_groups = d / slices;
        int16_t *restrict maxima = malloc((num_groups + d) * sizeof(int16_t)), *found = maxima + num_groups;
        int64_t *at = malloc(d * sizeof(int64_t));
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            const int16_t *restrict x = matrix + row * d;
            const long number = contenders(x, d, k, num_groups, maxima, found, at);
            int16_t *restrict top = values + row * k;
            int64_t *restrict where = indices + row * k;
            const int16_t last = number > k ? kth_largest(found, number, k) : 0;
            long taken = 0;
            for (long i = 0; i < number; i++)
                if (found[i] > last) top[taken] = found[i], where[taken++] = at[i];
            for (long i = 0; i < number && taken < k; i++)
                if (found[i] == last) top[taken] = last, where[taken++] = at[i];
            for (long j = 0; j < d && taken < k; j++)
                if (x[j] < 1) top[taken] = 0, where[taken++] = j;
        }
        free(maxima);
        free(at);
    }
}

/* `encode` with topk, of the tokens from first to end, whose products in bf16 are given. Entry j of `products` has an
   error of at most errors[row] * lengths[j] + shift, and `rounding` of itself. What that could lift among the k largest
   is computed anew: x @ W[j] + bias[j], rows of n. Returns 1 for a token of which too much would be. `scores`, `found`
   and `at` are scratch. Groups are those of `topk`. */
static int topk_anew(const int16_t *restrict products, long d, long k, long num_groups, const int16_t *maxima,
                     int16_t kth, float error, float shift, float rounding, const float *lengths, float longest,
                     const float *x, const float *W, const float *bias, long n, float *scores, int16_t *found,
                     int64_t *at, float *values, int64_t *indices) {
    const float last = from_bf16((uint16_t)kth), least = last - 2 * (error * longest + shift + rounding * last);
    if (!(least > 0 && last <= FLT_MAX)) return 1;
    const int16_t bits = (int16_t)(to_bf16(least) - 1);  /* rounded down: the order of positive floats */
    const long number = entries_from(bits, products, d, num_groups, maxima, found, at);
    if (number > 16 * k + 64) return 1;
    long taken = 0;
    /* The first of them are surely wanted: what they have keeps others from being computed. */
    for (int certain = 1; certain >= 0; certain--)
        for (long c = 0; c < number; c++) {
            const long j = at[c];
            if ((products[j] >= kth) != certain) continue;
            const float score = from_bf16((uint16_t)products[j]);
            const float highest = score + error * lengths[j] + shift + rounding * score;
            if (taken == k && highest < scores[k - 1]) continue;
            taken = place(product_of(x, W + j * n, n) + bias[j], j, taken, k, scores, indices);
        }
    for (long i = 0; i < k; i++) values[i] = scores[i] > 0 ? scores[i] : 0.0f;
    return 0;
}

/* `topk_anew` of the tokens from first to end; 1 in `missed` for those that it leaves. */
void encode_exactly(long first, long end, long d, long threads, const int16_t *products, long k, long slices,
                    const float *errors, float shift, float rounding, const float *lengths, float longest,
                    const float *x, const float *W, const float *bias, long n, float *values, int64_t *indices,
                    uint8_t *missed) {
#pragma omp parallel num_threads(threads)
    {
        const long num_groups = d / slices;
        int16_t *maxima = malloc((num_groups + d) * sizeof(int16_t)), *found = maxima + num_groups;
        float *scores = malloc(k * sizeof(float));
        int64_t *at = malloc(d * sizeof(int64_t));
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            const int16_t *restrict own = products + row * d;
            const long number = contenders(own, d, k, num_groups, maxima, found, at);
            int16_t largest = 0;
            for (long g = 0; g < num_groups; g++) largest = maxima[g] > largest ? maxima[g] : largest;
            const int16_t kth = number < k ? 0 : kth_largest(found, number, k);
            missed[row] = kth < 1 || largest > 0x7f7f || /* infinite, or no number */
                          topk_anew(own, d, k, num_groups, maxima, kth, errors[row], shift, rounding, lengths, longest,
                                    x + row * n, W, bias, n, scores, found, at, values + row * k, indices + row * k);
        }
        free(maxima);
        free(scores);
        free(at);
    }
}

/* A whole number in the order of finite floats, and back. */
static inline int32_t to_ordered(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float from_ordered(int32_t bits) {
    float x;
    bits ^= bits >> 31 & 0x7fffffff;
    memcpy(&x, &bits, 4);
    return x;
}

/* Columns whose largest entry is found together, and how many more than twice the wanted entries are scored anew. */
enum { BLOCK = 64, CANDIDATES = 1024 };

/* The `most` largest entries of sign * x, exactly. Entry j of x has an error of at most `error` * lengths[j], whose
   largest is `longest`, and `rounding` of itself. It is scored anew, by the product of `left` with row j of `right`,
   (d, n), if that could lift it among the largest. `maxima` are those of sign * x by blocks. `scores` and `columns` are
   scratch. */
static void extreme_entries(float sign, const float *restrict x, const float *restrict maxima, long d, float error,
                            float rounding, const float *lengths, float longest, const float *left, const float *right,
                            long n, long most, float *scores, int64_t *columns, float *to_scores, int64_t *to_columns) {
    const long blocks = (d + BLOCK - 1) / BLOCK, kept = 2 * most + CANDIDATES;
    long number = 0;
    for (long b = 0; b < blocks; b++) number = place(maxima[b], b, number, most, scores, columns);
    const float last = number < most ? -FLT_MAX : scores[most - 1];
    const float least = number < most ? -FLT_MAX : last - 2 * (error * longest + rounding * fabsf(last));
    number = 0;
    for (long b = 0; b < blocks; b++) {
        if (maxima[b] < least) continue;
        const long end = (b + 1) * BLOCK < d ? (b + 1) * BLOCK : d;
        for (long j = b * BLOCK; j < end; j++)
            if (!(sign * x[j] < least)) number = place(sign * x[j], j, number, kept, scores, columns);
    }
    long taken = 0;
    for (long c = 0; c < number; c++) {
        const float highest = scores[c] + error * lengths[columns[c]] + rounding * fabsf(scores[c]);
        if (taken == most && highest < to_scores[most - 1]) continue;
        const float product = product_of(left, right + columns[c] * n, n);
        taken = place(sign * product, columns[c], taken, most, to_scores, to_columns);
    }
    for (long i = 0; i < most; i++) to_scores[i] *= sign;
}

/* Counts of the entries of x in `bins` equal parts from low to high, inclusive; a row of one value is in the middle. */
static void histogram(const float *restrict x, long d, float low, float high, long bins, int64_t *counts) {
    int32_t bin[BLOCK], *restrict tables = calloc(4 * bins, sizeof(int32_t));
    if (high <= low) low -= 1, high = low + 2;
    const float width = bins / (high - low);
    for (long start = 0; start < d; start += BLOCK) {
        const long count = d - start < BLOCK ? d - start : BLOCK;
        for (long i = 0; i < count; i++) {
            int32_t at = (int32_t)((x[start + i] - low) * width);
            at = at < 0 ? 0 : at;
            bin[i] = at < bins ? at : bins - 1;
        }
        for (long i = 0; i < count; i++) tables[(i & 3) * bins + bin[i]]++;  /* no increment waits for the one before */
    }
    for (long b = 0; b < bins; b++) counts[b] = tables[b] + tables[bins + b] + tables[2 * bins + b] + tables[3 * bins + b];
    free(tables);
}

/* Maxima of x and of -x by blocks. What is no number counts as 0. */
static void by_blocks(float *restrict x, long d, float *restrict maxima, float *restrict minima) {
    for (long j = 0; j < d; j++) x[j] = fabsf(x[j]) <= FLT_MAX ? x[j] : 0.0f;
    for (long start = 0; start < d; start += BLOCK) {
        const long end = start + BLOCK < d ? start + BLOCK : d;
        int32_t largest = INT32_MIN, smallest = INT32_MAX;  /* whole numbers, whose extremes compilers vectorise */
        for (long j = start; j < end; j++) {
            const int32_t each = to_ordered(x[j]);
            largest = each > largest ? each : largest;
            smallest = each < smallest ? each : smallest;
        }
        maxima[start / BLOCK] = from_ordered(largest), minima[start / BLOCK] = -from_ordered(smallest);
    }
}

/* `extremes` of the rows from first to end of `products`, (rows, d), which are left @ right^T with errors of at most
   errors[row] * lengths[column], and `rounding` of themselves. */
void extremes(long first, long end, long d, long threads, const void *products, long is_bf16, const float *errors,
              float rounding, const float *lengths, float longest, const float *left, const float *right, long n,
              long most, long bins, float *top, int64_t *top_at, float *bottom, int64_t *bottom_at, int64_t *counts) {
#pragma omp parallel num_threads(threads)
    {
        const long blocks = (d + BLOCK - 1) / BLOCK, scratch = 2 * most + CANDIDATES;
        float *x = malloc((d + 2 * blocks + scratch) * sizeof(float)), *maxima = x + d, *minima = maxima + blocks;
        float *scores = minima + blocks;
        int64_t *columns = malloc(scratch * sizeof(int64_t));
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            read_row(products, row, d, x, is_bf16);
            by_blocks(x, d, maxima, minima);
            const float *own = left + row * n, error = errors[row];
            const long at = row * most;
            extreme_entries(1, x, maxima, d, error, rounding, lengths, longest, own, right, n, most, scores, columns,
                            top + at, top_at + at);
            extreme_entries(-1, x, minima, d, error, rounding, lengths, longest, own, right, n, most, scores, columns,
                            bottom + at, bottom_at + at);
            histogram(x, d, bottom[at], top[at], bins, counts + row * bins);
        }
        free(x);
        free(columns);
    }
}

/* RMSNorm of the rows from first to end: weight * bf16(x / rms(x)); with `widely` the product with the weight, or with
   1 + weight, is of float32 and rounded once. */
void rms_norm(long first, long end, long d, long threads, const uint16_t *x, const uint16_t *weight, long widely,
              long plus_one, float epsilon, uint16_t *to) {
#pragma omp parallel num_threads(threads)
    {
        float *restrict scale = malloc(2 * d * sizeof(float)), *restrict wide = scale + d;
        for (long i = 0; i < d; i++) scale[i] = from_bf16(weight[i]) + (plus_one ? 1.0f : 0.0f);
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            const uint16_t *restrict in = x + row * d;
            uint16_t *restrict out = to + row * d;
            float square = 0;
            for (long i = 0; i < d; i++) {
                wide[i] = from_bf16(in[i]);
                square += wide[i] * wide[i];
            }
            const float factor = 1.0f / sqrtf(square / d + epsilon);
            if (widely)
                for (long i = 0; i < d; i++) out[i] = to_bf16(wide[i] * factor * scale[i]);
            else
                for (long i = 0; i < d; i++) out[i] = to_bf16(from_bf16(to_bf16(wide[i] * factor)) * scale[i]);
        }
        free(scale);
    }
}

/* e^x to about six digits, in operations that have vectors. */
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float whole = floorf(x * 1.44269504f + 0.5f), part = x - whole * 0.693147181f;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power * (1.0f + part * (1.0f + part * (0.5f + part * (1.0f / 6 + part * (1.0f / 24 + part * (1.0f / 120 +
           part / 720))))));
}

/* to = bf16(x / (1 + e^-s)), where s is x, or with `is_gelu` sqrt(8 / pi) (x + 0.044715 x^3). */
static void activate(long d, const uint16_t *restrict from, int is_gelu, float *restrict to) {
    if (is_gelu)
        for (long i = 0; i < d; i++) {
            const float x = from_bf16(from[i]);
            to[i] = x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
        }
    else
        for (long i = 0; i < d; i++) {
            const float x = from_bf16(from[i]);
            to[i] = x / (1.0f + exponential(-x));
        }
    for (long i = 0; i < d; i++) to[i] = from_bf16(to_bf16(to[i]));
}

/* Gated activation of the rows from first to end: act(gate) * up, act SiLU, or with `is_gelu` the tanh form of GELU. */
void gated(long first, long end, long d, long threads, const uint16_t *gate, const uint16_t *up, long is_gelu,
           uint16_t *to) {
#pragma omp parallel num_threads(threads)
    {
        float *restrict active = malloc(d * sizeof(float));
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            activate(d, gate + row * d, is_gelu, active);
            const uint16_t *restrict u = up + row * d;
            for (long i = 0; i < d; i++) active[i] *= from_bf16(u[i]);
            write_row(to, row, d, active, 1.0f, 1);
        }
        free(active);
    }
}

/* Rotary position embedding of one head: x * cos + (-x2, x1) * sin, each term rounded, x1 and x2 its halves. */
static void rotate_head(long half, const uint16_t *restrict x, const uint16_t *restrict cosines,
                        const uint16_t *restrict sines, uint16_t *restrict low, uint16_t *restrict high) {
    for (long i = 0; i < half; i++) {
        const float turned = from_bf16(to_bf16(from_bf16(x[i + half]) * from_bf16(sines[i])));
        low[i] = to_bf16(from_bf16(to_bf16(from_bf16(x[i]) * from_bf16(cosines[i]))) - turned);
    }
    for (long i = 0; i < half; i++) {
        const float turned = from_bf16(to_bf16(from_bf16(x[i]) * from_bf16(sines[i + half])));
        high[i] = to_bf16(from_bf16(to_bf16(from_bf16(x[i + half]) * from_bf16(cosines[i + half]))) + turned);
    }
}

/* Of the rows from first to end, each of d / width heads. Row r has the angles of row r % angles. */
void rotate(long first, long end, long d, long threads, const uint16_t *x, long width, const uint16_t *cosines,
            const uint16_t *sines, long angles, uint16_t *to) {
#pragma omp parallel num_threads(threads)
    {
        const long half = width / 2, heads = d / width;
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            const long at = row % angles * width;
            for (long head = 0; head < heads; head++) {
                uint16_t *out = to + row * d + head * width;
                rotate_head(half, x + row * d + head * width, cosines + at, sines + at, out, out + half);
            }
        }
    }
}

/* Column of the largest entry, the first of several. */
static long first_largest(const float *restrict x, long d) {
    int32_t most = INT32_MIN;
    long in_block = 0;
    for (long start = 0; start < d; start += BLOCK) {
        const long end = start + BLOCK < d ? start + BLOCK : d;
        int32_t here = INT32_MIN;
        for (long j = start; j < end; j++) {
            const int32_t each = to_ordered(x[j]);
            here = each > here ? each : here;
        }
        if (here > most) most = here, in_block = start;
    }
    long at = in_block;
    while (at < d - 1 && to_ordered(x[at]) != most) at++;
    return at;
}

/* x - `most`, in a loop of its own: what compilers may reorder would else be taken from x together, and rounded. */
static void subtract(float *restrict x, long d, float most) {
    for (long j = 0; j < d; j++) x[j] -= most;
}

/* x becomes x - m, m its largest entry. The log of the sum of e^x then, and the column of m. */
static float log_total(float *restrict x, long d, int64_t *at) {
    *at = first_largest(x, d);
    subtract(x, d, x[*at]);
    double total = 0;
    for (long start = 0; start < d; start += BLOCK) {
        const long end = start + BLOCK < d ? start + BLOCK : d;
        float sum = 0;
        for (long j = start; j < end; j++) sum += exponential(x[j]);
        total += sum;
    }
    return (float)log(total);
}

/* `log_total` of the rows from first to end. */
void log_totals(long first, long end, long d, long threads, const void *logits, long is_bf16, float *totals,
                int64_t *largest) {
#pragma omp parallel num_threads(threads)
    {
        float *x = malloc(d * sizeof(float));
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            read_row(logits, row, d, x, is_bf16);
            totals[row] = log_total(x, d, largest + row);
        }
        free(x);
    }
}

/* KL(p || q) of the rows from first to end, log p = x - x[largest] - totals and log q likewise of y. Each is taken apart
   from what x or y have in common, so that nothing large cancels. A probability below the least float32, e^-87, adds
   nothing. */
void divergences(long first, long end, long d, long threads, const void *logits, long is_bf16, const float *totals,
                 const int64_t *largest, const void *changed, long changed_is_bf16, float *divergence,
                 float *changed_totals, int64_t *changed_largest) {
#pragma omp parallel num_threads(threads)
    {
        float *restrict x = malloc(2 * d * sizeof(float)), *restrict y = x + d;
#pragma omp for schedule(dynamic, ROWS)
        for (long row = first; row < end; row++) {
            read_row(logits, row, d, x, is_bf16);
            read_row(changed, row, d, y, changed_is_bf16);
            subtract(x, d, x[largest[row]]);
            const float of_x = totals[row], of_y = log_total(y, d, changed_largest + row);
            double total = 0;
            for (long start = 0; start < d; start += BLOCK) {
                const long stop = start + BLOCK < d ? start + BLOCK : d;
                float sum = 0;
                for (long j = start; j < stop; j++) {
                    const float p = x[j] - of_x, q = y[j] - of_y;
                    sum += p < -87.0f ? 0.0f : exponential(p) * (p - q);
                }
                total += sum;
            }
            divergence[row] = (float)total;
            changed_totals[row] = of_y;
        }
        free(x);
    }
}

/* Pruned task vectors: their sum, or what is left of it by election. */
#include "kernels.h"

/* What becomes of x - base: kept where its magnitude is at least `least` (up to the place `end`,
 * beyond that above it) and not in the cut that `dropped` and its end are; where `mask` says so; or
 * where the random `words` are below its probability. Then divided, and multiplied. Null pointers,
 * and `has_cut`, say what does not apply. */
struct change {
    struct operand x;
    const uint8_t *mask;
    const uint32_t *words;
    const double *chances;
    int64_t has_cut;
    double least;
    int64_t end;
    double dropped;
    int64_t dropped_end;
    double divide, multiply, weight, share;
};

INLINE size_t before(int64_t end, size_t start, size_t size)
{
    return end <= (int64_t)start ? 0 : least_of((size_t)end - start, size);
}

/* The largest value that is not a magnitude of at least `least`, which is no negative number. */
INLINE double below(double least)
{
    return least > 0 ? double_of(long_bits_of(least) - 1) : -1;
}

INLINE double apart(double x, double base, int negative) { return negative ? base - x : x - base; }

/* Keep magnitudes above `least` that are not above `dropped`. By a product, here and elsewhere, so
 * that NaN and Inf stay visible. */
INLINE void trim(size_t from, size_t end, double least, double dropped, int negative,
                 const double *restrict base, double *restrict to)
{
    for (size_t i = from; i < end; i++) {
        double change = apart(to[i], base[i], negative), magnitude = fabs(change);
        to[i] = change * (((magnitude > least) & !(magnitude > dropped)) ? 1.0 : 0.0);
    }
}

INLINE void trim_at_ends(const struct change *how, const double *restrict base, size_t start,
                         size_t size, int negative, double *restrict to)
{
    size_t end = before(how->end, start, size), other = before(how->dropped_end, start, size);
    size_t ends[] = {least_of(end, other), end < other ? other : end, size};
    for (size_t part = 0, from = 0; part < 3; from = ends[part++]) {
        double least = from < end ? below(how->least) : how->least;
        double dropped = from < other ? below(how->dropped) : how->dropped;
        trim(from, ends[part], least, dropped, negative, base, to);
    }
}

INLINE void change_some(const struct change *how, const double *restrict base, size_t start,
                        size_t size, int negative, double *restrict to)
{
    if (how->has_cut)
        trim_at_ends(how, base, start, size, negative, to);
    else if (how->mask)
        for (size_t i = 0; i < size; i++)
            to[i] = apart(to[i], base[i], negative) * (how->mask[start + i] ? 1.0 : 0.0);
    else if (how->words)
        for (size_t i = 0; i < size; i++) {
            double number = (double)(int32_t)(how->words[start + i] >> 8);
            double chance = how->chances[start + i];
            to[i] = apart(to[i], base[i], negative) * (number < chance * 16777216.0 ? 1.0 : 0.0) /
                    chance;
        }
    else
        for (size_t i = 0; i < size; i++)
            to[i] = apart(to[i], base[i], negative);
}

/* A cut, a mask and random words exclude one another. */
CLONES static void change_of(const struct change *how, const double *restrict base, size_t start,
                             size_t size, int negative, double *restrict to)
{
    load(how->x, start, size, to);
    if (negative)
        change_some(how, base, start, size, 1, to);
    else
        change_some(how, base, start, size, 0, to);
    if (how->divide != 1)
        for (size_t i = 0; i < size; i++)
            to[i] /= how->divide;
    double factor[] = {how->multiply, how->weight};
    for (size_t k = 0; k < 2; k++)
        if (factor[k] != 1)
            for (size_t i = 0; i < size; i++)
                to[i] *= factor[k];
}

/* How a sum of changes is finished: divided, then multiplied. */
struct ending {
    double divide, multiply;
    int64_t from_zero;
};

/* base - Σ (base - x), each changed. */
CLONES EXPORT int surgeon_sum(size_t count, struct operand base, const struct change *changes,
                              size_t models, struct ending end, int64_t dtype, void *to)
{
    double own[CHUNK], sum[CHUNK], change[CHUNK];
    int beyond = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(base, start, size, own);
        if (end.from_zero)
            memset(sum, 0, sizeof sum);
        for (size_t k = 0; k < models; k++) {
            int adds = k || end.from_zero;
            change_of(changes + k, own, start, size, 1, adds ? change : sum);
            for (size_t i = 0; i < size && adds; i++)
                sum[i] += change[i];
        }
        for (size_t i = 0; i < size && end.divide != 1; i++)
            sum[i] /= end.divide;
        for (size_t i = 0; i < size; i++)
            sum[i] = keep_zero(own[i] - sum[i] * end.multiply, own[i]);
        beyond |= surgeon_downcast64(dtype, sum, start, size, to, 1);
    }
    return beyond;
}

/* What contributions that agree are divided by: nothing, or the sum of their weights, in order, or
 * what a table has for their set, of which the first model is bit 0; 1 where it is empty. */
enum { BY_NONE, BY_SUM, BY_TABLE, MOST = 8 };

static int dividing(const double *divisors, size_t models)
{
    int by_none = 1, by_sum = divisors[0] == 1;
    for (size_t code = 1; code < (size_t)1 << models; code++) {
        double sum = 0;
        for (size_t k = 0; k < models; k++)
            sum += code >> k & 1 ? divisors[(size_t)1 << k] : 0.0;
        by_none &= divisors[code] == 1;
        by_sum &= divisors[code] == sum && sum != 0;
    }
    return by_none && divisors[0] == 1 ? BY_NONE : by_sum ? BY_SUM : BY_TABLE;
}

struct election {
    const struct change *changes;
    const double *divisors;
    double lambda;
    int has_shares, by;
};

/* Elect the sign of the sum of contributions, which have CHUNK elements for each model; add those
 * that have it, and divide. Returns whether what is divided by is not a number. */
INLINE int elect_some(const struct election *how, size_t size, size_t models, int by,
                      const double *restrict base, const double *restrict contributions,
                      double *restrict to)
{
    uint64_t undefined = 0;
    const double *divisors = how->divisors;
    double lambda = how->lambda, share[MOST], weight[MOST];
    for (size_t k = 0; k < models; k++) {
        share[k] = how->has_shares ? how->changes[k].share : 1.0;
        weight[k] = divisors[(size_t)1 << k];
    }
    for (size_t i = 0; i < size; i++) {
        double sum = contributions[i], total = 0, divisor = 0;
        uint64_t code = 0;
        for (size_t k = 1; k < MOST; k++)
            if (k < models)
                sum += contributions[k * CHUNK + i];
        uint64_t sign = long_bits_of(sum) & 0x8000000000000000;
        for (size_t k = 0; k < MOST; k++)
            if (k < models) {
                double value = double_of(long_bits_of(contributions[k * CHUNK + i]) ^ sign);
                /* A product, and only `<=`, so that NaN stays visible. */
                total += (value <= 0 ? 0.0 : value) * share[k];
                divisor += value > 0 ? weight[k] : 0.0;
                code |= (uint64_t)(value > 0) << k;
            }
        if (by == BY_TABLE)
            divisor = divisors[code];
        else
            divisor = divisor == 0 ? 1.0 : divisor;
        undefined |= divisor != divisor;
        total = by == BY_NONE ? total : total / divisor;
        total = double_of(long_bits_of(total) ^ sign);
        to[i] = keep_zero(base[i] + total * lambda, base[i]);
    }
    return (int)undefined;
}

#define ELECT(MODELS)                                                                            \
    (how->by == BY_NONE  ? elect_some(how, size, MODELS, BY_NONE, base, contributions, to)       \
     : how->by == BY_SUM ? elect_some(how, size, MODELS, BY_SUM, base, contributions, to)        \
                         : elect_some(how, size, MODELS, BY_TABLE, base, contributions, to))

/* Of so many models that the loop over them is unrolled. */
CLONES static int elect(const struct election *how, size_t size, size_t models,
                        const double *restrict base, const double *restrict contributions,
                        double *restrict to)
{
    switch (models) {
    case 2:
        return ELECT(2);
    case 3:
        return ELECT(3);
    case 4:
        return ELECT(4);
    }
    return ELECT(models);
}

/* base + λ · what is elected. Returns 2, besides whether a value is beyond the dtype, where weights
 * that agree add up to zero. `spare` has CHUNK for each model. */
CLONES EXPORT int surgeon_elect(size_t count, struct operand base, const struct change *changes,
                                size_t models, int has_shares, const double *divisors,
                                double lambda, double *spare, int64_t dtype, void *to)
{
    double own[CHUNK], sum[CHUNK];
    struct election how = {changes, divisors, lambda, has_shares, dividing(divisors, models)};
    int flags = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(base, start, size, own);
        for (size_t k = 0; k < models; k++)
            change_of(changes + k, own, start, size, 0, spare + k * CHUNK);
        flags |= 2 * elect(&how, size, models, own, spare, sum);
        flags |= surgeon_downcast64(dtype, sum, start, size, to, 1);
    }
    return flags;
}

INLINE void add_magnitude(double magnitude, int keeps, double *all, double *kept)
{
    *all += magnitude;
    *kept += magnitude * (keeps ? 1.0 : 0.0);
}

/* Write Σ |x - base| and the same of those that `mask` keeps, each by lanes. */
CLONES EXPORT void surgeon_magnitudes(size_t count, struct operand base, struct operand x,
                                      const uint8_t *mask, double *to)
{
    uint64_t keys[CHUNK];
    double lanes[2][LANES];
    memset(lanes, 0, sizeof lanes);
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        surgeon_magnitude_keys(base, x, start, size, keys);
        const uint8_t *keeps = mask + start;
        size_t from = 0;
        for (; from + LANES <= size; from += LANES)
            for (size_t i = 0; i < LANES; i++)
                add_magnitude(double_of(keys[from + i]), keeps[from + i], lanes[0] + i, lanes[1] + i);
        for (size_t i = 0; from + i < size; i++)
            add_magnitude(double_of(keys[from + i]), keeps[from + i], lanes[0] + i, lanes[1] + i);
    }
    to[0] = folded(lanes[0]);
    to[1] = folded(lanes[1]);
}

/* base + scale · m, where m is the sum of the changes, or what is elected of it where there are
 * divisors; base alone where fewer than `at_least` models need it: those whose own change exceeds
 * `limits` of what m adds to it. Returns what `surgeon_elect` does. */
CLONES EXPORT int surgeon_consensus(size_t count, struct operand base, const struct change *changes,
                                    size_t models, const double *divisors, const double *limits,
                                    size_t at_least, double scale, double *spare, int64_t dtype,
                                    void *to)
{
    double own[CHUNK], none[CHUNK] = {0}, sum[CHUNK], change[CHUNK], votes[CHUNK];
    struct election how = {changes, divisors, 1, 0, divisors ? dividing(divisors, models) : BY_NONE};
    int flags = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(base, start, size, own);
        for (size_t k = 0; k < models; k++)
            change_of(changes + k, own, start, size, 0, spare + k * CHUNK);
        if (divisors)
            flags |= 2 * elect(&how, size, models, none, spare, sum);
        else
            memcpy(sum, spare, size * sizeof *sum);
        for (size_t k = 1; k < models && !divisors; k++)
            for (size_t i = 0; i < size; i++)
                sum[i] += spare[k * CHUNK + i];
        memset(votes, 0, sizeof votes);
        for (size_t k = 0; k < models; k++) {
            load(changes[k].x, start, size, change);
            for (size_t i = 0; i < size; i++) {
                double apart_from_base = change[i] - own[i];
                double others = fabs(sum[i] - apart_from_base) * limits[k];
                votes[i] += fabs(apart_from_base) > others ? 1.0 : 0.0;
            }
        }
        for (size_t i = 0; i < size; i++) {
            double merged = sum[i] * scale;
            /* NaN and Inf stay, to be seen. */
            int is_left_out = (votes[i] < (double)at_least) & (fabs(merged) <= 0x1.fffffffffffffp1023);
            sum[i] = keep_zero(own[i] + (is_left_out ? 0.0 : merged), own[i]);
        }
        flags |= surgeon_downcast64(dtype, sum, start, size, to, 1);
    }
    return flags;
}

/* Loops of single merges and ops: of changes that act, of values that are near, of limits,
 * of variances, of sums that are weighed element by element. */
#include "kernels.h"

/* base + the mean of those changes that are larger than their limits; one that is alone is
 * multiplied by its boost. The first operand is the base. */
CLONES EXPORT int surgeon_act(size_t count, const struct operand *from, size_t operands,
                              const double *limits, const double *boosts, int64_t dtype, void *to)
{
    double own[CHUNK], change[CHUNK], sum[CHUNK], alone[CHUNK], together[CHUNK];
    int beyond = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(from[0], start, size, own);
        memset(sum, 0, sizeof sum);
        memset(alone, 0, sizeof alone);
        memset(together, 0, sizeof together);
        for (size_t k = 1; k < operands; k++) {
            double limit = limits[k - 1], boost = boosts[k - 1];
            load(from[k], start, size, change);
            for (size_t i = 0; i < size; i++) {
                double value = change[i] - own[i], acts = fabs(value) > limit ? 1.0 : 0.0;
                value *= acts; /* a product, so that NaN and Inf stay visible */
                together[i] += acts;
                sum[i] += value;
                alone[i] += value * boost;
            }
        }
        for (size_t i = 0; i < size; i++) {
            double mean = sum[i] / (together[i] > 1 ? together[i] : 1.0);
            sum[i] = keep_zero(own[i] + (together[i] == 1 ? alone[i] : mean), own[i]);
        }
        beyond |= surgeon_downcast64(dtype, sum, start, size, to, 1);
    }
    return beyond;
}

/* The second operand where it is no more than `most` from the first, else the first and `most`
 * towards it. Returns, too, whether an operand is not finite. */
CLONES EXPORT int surgeon_near(size_t count, const struct operand *from, double most, int64_t dtype,
                               void *to)
{
    double own[CHUNK], other[CHUNK];
    uint64_t odd = 0;
    int beyond = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(from[0], start, size, own);
        load(from[1], start, size, other);
        for (size_t i = 0; i < size; i++) {
            double change = other[i] - own[i];
            double found = fabs(change) <= most ? other[i] : copysign(most, change) + own[i];
            odd |= !(fabs(own[i]) <= 0x1.fffffffffffffp1023);
            odd |= !(fabs(other[i]) <= 0x1.fffffffffffffp1023);
            other[i] = keep_zero(found, own[i]);
        }
        beyond |= surgeon_downcast64(dtype, other, start, size, to, 1);
    }
    return beyond | (int)odd;
}

/* Values between limits. */
CLONES EXPORT int surgeon_clamp(size_t count, struct operand from, double low, double high,
                                int64_t dtype, void *to)
{
    double values[CHUNK];
    int beyond = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(from, start, size, values);
        for (size_t i = 0; i < size; i++) {
            double value = values[i] < low ? low : values[i];
            values[i] = value > high ? high : value;
        }
        beyond |= surgeon_downcast64(dtype, values, start, size, to, 1);
    }
    return beyond;
}

/* The variance of what the other operands add to the first, times their number: zero where all add
 * the same (Welford 1962). */
CLONES EXPORT void surgeon_variance(size_t count, const struct operand *from, size_t operands,
                                    double *restrict to)
{
    double own[CHUNK], mean[CHUNK], other[CHUNK];
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        load(from[0], start, size, own);
        load(from[1], start, size, mean);
        for (size_t i = 0; i < size; i++) {
            mean[i] -= own[i];
            to[start + i] = 0;
        }
        for (size_t k = 2; k < operands; k++) {
            load(from[k], start, size, other);
            for (size_t i = 0; i < size; i++) {
                double change = other[i] - own[i], before = change - mean[i];
                mean[i] += before / (double)k;
                to[start + i] += before * (change - mean[i]);
            }
        }
    }
}

/* What an operand of a weighed sum is multiplied by: for element i of vector v the number at v *
 * `by_vector` + i * `by_place`, times `factor`. */
struct weights {
    struct operand from;
    int64_t by_vector, by_place;
    double factor;
};

enum { SUM, CHANGES, MEAN };

INLINE int weigh(size_t vectors, size_t length, const struct operand *from, size_t operands,
                 const struct weights *weights, int what, double total, int64_t dtype, void *to)
{
    /* Not whole pages apart: processors take places of the same last bits for the same. */
    enum { APART = CHUNK + 24 };
    double own[APART], x[APART], weight[APART], sum[APART], least[APART], most[APART];
    double divisor[APART], plain[APART];
    uint64_t negative = 0;
    int beyond = 0;
    /* Chunks of all vectors, one after the other. */
    size_t chunks = (length + CHUNK - 1) / CHUNK;
    for (size_t chunk = 0; chunk < vectors * chunks; chunk++) {
        size_t v = chunk / chunks, start = chunk % chunks * CHUNK;
        size_t size = least_of(CHUNK, length - start), at = v * length + start;
        load(from[0], at, size, own);
        for (size_t i = 0; i < size; i++) {
            sum[i] = what == SUM ? -0.0 : 0.0; /* anything that is added to -0 stays as it is */
            if (what == MEAN) {
                plain[i] = -0.0;
                divisor[i] = 0;
                least[i] = most[i] = own[i];
            }
        }
        for (size_t k = what == CHANGES; k < operands; k++) {
            const struct weights *by = weights + k;
            size_t place = v * (size_t)by->by_vector + start * (size_t)by->by_place;
            load(from[k], at, size, x);
            load(by->from, place, by->by_place ? size : 1, weight);
            for (size_t i = 1; i < size && !by->by_place; i++)
                weight[i] = weight[0];
            if (what == MEAN)
                for (size_t i = 0; i < size; i++) {
                    negative |= weight[i] < 0;
                    weight[i] *= by->factor;
                    divisor[i] += weight[i];
                    plain[i] += x[i] * by->factor;
                    least[i] = x[i] < least[i] ? x[i] : least[i];
                    most[i] = x[i] > most[i] ? x[i] : most[i];
                }
            for (size_t i = 0; i < size; i++)
                sum[i] += (what == CHANGES ? own[i] - x[i] : x[i]) * weight[i];
        }
        for (size_t i = 0; i < size && what == MEAN; i++) {
            double by = divisor[i], mean = (by != 0 ? sum[i] : plain[i]) / (by != 0 ? by : total);
            mean = mean < least[i] ? least[i] : mean;
            sum[i] = (mean > most[i] ? most[i] : mean) + 0.0;
        }
        for (size_t i = 0; i < size; i++)
            sum[i] = keep_zero(what == CHANGES ? own[i] - sum[i] : sum[i], own[i]);
        beyond |= surgeon_downcast64(dtype, sum, at, size, to, 1);
    }
    return beyond | (negative ? 2 : 0);
}

/* Of so many vectors: the weighed sum of the operands; or the first, less the weighed sum of what it
 * has more than each; or the mean, which is between the operands, and where weights are all 0 has
 * the factors as weights, which add up to `total`. Returns 2, besides whether a value is beyond the
 * dtype, where a weight of a mean is negative. */
CLONES EXPORT int surgeon_weighed(size_t vectors, size_t length, const struct operand *from,
                                  size_t operands, const struct weights *weights, int what,
                                  double total, int64_t dtype, void *to)
{
    switch (what) { /* so that each is compiled for itself */
    case SUM:
        return weigh(vectors, length, from, operands, weights, SUM, total, dtype, to);
    case CHANGES:
        return weigh(vectors, length, from, operands, weights, CHANGES, total, dtype, to);
    }
    return weigh(vectors, length, from, operands, weights, MEAN, total, dtype, to);
}

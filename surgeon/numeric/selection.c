/* Selection by magnitude: windows of |x - base|, how many are in them, and the n-th largest. */
#include "kernels.h"

CLONES void surgeon_magnitude_keys(struct operand base, struct operand x, size_t start,
                                   size_t count, uint64_t *restrict keys)
{
    double own[CHUNK], other[CHUNK];
    float narrow[2][CHUNK];
    if (x.dtype == F64 || base.dtype == F64 || !base.data) {
        load(x, start, count, own);
        if (base.data)
            load(base, start, count, other);
        else
            memset(other, 0, sizeof other);
        for (size_t i = 0; i < count; i++)
            keys[i] = long_bits_of(fabs(own[i] - other[i]));
        return;
    }
    /* Float32 is half as much to write and to read. */
    surgeon_upcast32(x.dtype, x.data, start, count, narrow[0]);
    surgeon_upcast32(base.dtype, base.data, start, count, narrow[1]);
    for (size_t i = 0; i < count; i++)
        keys[i] = long_bits_of(fabs((double)narrow[0][i] - (double)narrow[1][i]));
}

/* What is looked for: magnitudes from `low` to `high`, by their bits. And what was looked at: a
 * chunk of operands, or of keys. */
struct look {
    uint64_t low, high;
    float own[CHUNK], other[CHUNK];
    uint64_t keys[CHUNK];
    uint8_t inside[CHUNK];
};

/* Say which elements are inside, and return how many are above. */
INLINE uint64_t look64(struct operand base, struct operand x, size_t start, size_t size,
                       struct look *look)
{
    uint64_t above = 0, low = look->low, high = look->high;
    surgeon_magnitude_keys(base, x, start, size, look->keys);
    for (size_t i = 0; i < size; i++)
        above += look->keys[i] > high;
    for (size_t i = 0; i < size; i++)
        look->inside[i] = look->keys[i] - low <= high - low;
    return above;
}

/* The same in float32. A difference of two float32 that is rounded to float32 is the one in float64
 * rounded once more, and rounding keeps the order: what is above or below the rounded edges is so
 * in float64, too. What may be inside is looked at again. */
INLINE uint64_t look32(struct operand base, struct operand x, size_t start, size_t size,
                       struct look *look)
{
    uint32_t low = bits_of((float)double_of(look->low)), above = 0;
    uint32_t high = bits_of((float)double_of(look->high));
    float *restrict own = look->own, *restrict other = look->other;
    uint8_t *restrict inside = look->inside;
    surgeon_upcast32(x.dtype, x.data, start, size, own);
    if (base.data)
        surgeon_upcast32(base.dtype, base.data, start, size, other);
    else
        memset(other, 0, sizeof look->other);
    for (size_t i = 0; i < size; i++) {
        uint32_t key = bits_of(own[i] - other[i]) & 0x7fffffff;
        above += key > high;
        inside[i] = key - low <= high - low;
    }
    return above;
}

/* Eight bytes that are 0 or 1, each as a bit. */
INLINE uint64_t gathered(const uint8_t *flags)
{
    uint64_t bytes = 0;
    for (int k = 0; k < 8; k++)
        bytes |= (uint64_t)flags[k] << (8 * k);
    return (bytes * 0x0102040810204080) >> 56;
}

INLINE size_t lowest_bit(uint64_t bits)
{
#if defined(__GNUC__)
    return (size_t)__builtin_ctzll(bits);
#else
    size_t place = 0;
    while (!(bits >> place & 1))
        place++;
    return place;
#endif
}

/* Count magnitudes above `high`, and note those from `low` to there: their places, after `first`,
 * and themselves. Returns how many were noted. */
CLONES EXPORT size_t surgeon_within(size_t count, struct operand base, struct operand x,
                                    uint64_t low, uint64_t high, int64_t first, int64_t *places,
                                    double *values, uint64_t *above_inside)
{
    struct look look;
    look.low = low;
    look.high = high;
    /* Float32 has other NaNs. */
    int narrow = x.dtype != F64 && base.dtype != F64 && low <= 0x7ff0000000000000 &&
                 (high <= 0x7ff0000000000000 || high == 0x7fffffffffffffff);
    uint64_t above = 0;
    size_t noted = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        above += narrow ? look32(base, x, start, size, &look) : look64(base, x, start, size, &look);
        memset(look.inside + size, 0, CHUNK - size);
        for (size_t from = 0; from < size; from += 64) {
            uint64_t bits = 0;
            for (size_t k = 0; k < 64; k += 8)
                bits |= gathered(look.inside + from + k) << k;
            for (; bits; bits &= bits - 1) {
                size_t i = from + lowest_bit(bits);
                double change = narrow ? (double)look.own[i] - (double)look.other[i] : 0;
                uint64_t key = narrow ? long_bits_of(fabs(change)) : look.keys[i];
                places[noted] = first + (int64_t)(start + i);
                values[noted] = double_of(key);
                above += key > high;
                noted += key - low <= high - low;
            }
        }
    }
    above_inside[0] += above;
    above_inside[1] += noted;
    return noted;
}

/* Write the `wanted`-th largest of magnitudes, NaN being the largest; returns how many of those
 * equal to it are among the `wanted` largest. `keys` has room for all. */
CLONES EXPORT size_t surgeon_nth(size_t count, const double *values, size_t wanted,
                                 uint64_t *restrict keys, double *to)
{
    enum { DIGIT = 11 };
    memcpy(keys, values, count * sizeof *keys);
    for (;;) {
        uint64_t least = keys[0], most = keys[0];
        for (size_t i = 0; i < count; i++) {
            least = keys[i] < least ? keys[i] : least;
            most = keys[i] > most ? keys[i] : most;
        }
        if (least == most) {
            *to = double_of(least);
            return wanted;
        }
        size_t bins[1 << DIGIT] = {0}, kept = 0;
        int shift = 0;
        while ((most - least) >> shift >> DIGIT)
            shift++;
        for (size_t i = 0; i < count; i++)
            bins[(keys[i] - least) >> shift]++;
        uint64_t bin = (most - least) >> shift;
        for (; bins[bin] < wanted; bin--)
            wanted -= bins[bin];
        for (size_t i = 0; i < count; i++) {
            uint64_t key = keys[i];
            keys[kept] = key;
            kept += (key - least) >> shift == bin;
        }
        count = kept;
    }
}

/* Count magnitudes from `low` to `high` by what is left of their distance from `low`, shifted. */
CLONES EXPORT void surgeon_bins(size_t count, struct operand base, struct operand x, uint64_t low,
                                uint64_t high, int shift, int64_t *bins, uint64_t *above_inside)
{
    uint64_t keys[CHUNK], above = 0, inside = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = least_of(CHUNK, count - start);
        surgeon_magnitude_keys(base, x, start, size, keys);
        for (size_t i = 0; i < size; i++) {
            above += keys[i] > high;
            keys[i] -= low;
        }
        for (size_t i = 0; i < size; i++)
            if (keys[i] <= high - low) {
                bins[keys[i] >> shift]++;
                inside++;
            }
    }
    above_inside[0] += above;
    above_inside[1] += inside;
}

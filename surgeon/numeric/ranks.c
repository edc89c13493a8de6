/* Ranks of magnitudes in their rows: by sorting into buckets, or digit after digit. */
#include "kernels.h"

/* Sort numbers by their upper 32 bits, leaving equal ones in their order; returns where they are:
 * in `items` or in `spare`. */
static uint64_t *sorted(size_t count, uint64_t *items, uint64_t *spare)
{
    enum { MOST = 11 };
    uint64_t varying = 0;
    uint32_t bins[1 << MOST];
    int low = 32, high = 64;
    for (size_t i = 0; i < count; i++)
        varying |= items[i] ^ items[0];
    /* Only bits that are not the same in all: differences of bfloat16 have few. */
    while (low < 64 && !(varying >> low & 1))
        low++;
    while (high > low && !(varying >> (high - 1) & 1))
        high--;
    /* Longer digits take fewer passes, but as many steps for each row as a digit has values. */
    int most = count < 1024 ? 8 : MOST, passes = (high - low + most - 1) / most;
    for (int left = passes; left > 0; left--) {
        int digit = (high - low + left - 1) / left;
        uint32_t mask = (1u << digit) - 1;
        memset(bins, 0, (size_t)(mask + 1) * sizeof *bins);
        for (size_t i = 0; i < count; i++)
            bins[items[i] >> low & mask]++;
        for (uint32_t bin = 0, sum = 0, here; bin <= mask; bin++, sum += here) {
            here = bins[bin];
            bins[bin] = sum;
        }
        for (size_t i = 0; i < count; i++)
            spare[bins[items[i] >> low & mask]++] = items[i];
        uint64_t *other = items;
        items = spare;
        spare = other;
        low += digit;
    }
    return items;
}

enum { BUCKETS = 1 << 13, CROWDED = 24 };

/* Sort numbers by their upper 32 bits, which are a float32 that is no negative number, and by the
 * lower ones; returns whether that is done, in `to`. Values of about one size go into buckets of one
 * width, a few into each; where many go into one, they are to be sorted otherwise. */
CLONES static int sorted_by_width(size_t count, const uint64_t *restrict items,
                                  uint64_t *restrict to)
{
    uint32_t starts[BUCKETS + 1], places[BUCKETS], most = 0, crowd = 0;
    size_t buckets = BUCKETS;
    if (count > BUCKETS)
        return 0;
    while (buckets / 4 >= count && buckets > 64)
        buckets /= 2;
    for (size_t i = 0; i < count; i++) {
        uint32_t key = (uint32_t)(items[i] >> 32);
        most = key > most ? key : most;
    }
    float scale = (float)(buckets - 1) / float_of(most);
    if (!(scale > 0 && scale <= 0x1.fffffep127f))
        return 0;
    memset(starts, 0, (buckets + 1) * sizeof *starts);
    /* A product that is rounded is in the order of what it is made of. It may end one too far. */
    for (size_t i = 0; i < count; i++)
        places[i] = (uint32_t)(int32_t)(float_of((uint32_t)(items[i] >> 32)) * scale);
    for (size_t i = 0; i < count; i++)
        starts[places[i]]++;
    for (size_t bucket = 0; bucket <= buckets; bucket++)
        crowd = starts[bucket] > crowd ? starts[bucket] : crowd;
    if (crowd > CROWDED)
        return 0;
    uint32_t sum = 0;
    for (size_t bucket = 0; bucket <= buckets; bucket++) {
        uint32_t here = starts[bucket];
        starts[bucket] = sum;
        sum += here;
    }
    for (size_t i = 0; i < count; i++)
        to[starts[places[i]]++] = items[i];
    for (size_t i = 1; i < count; i++) {
        uint64_t item = to[i];
        size_t at = i;
        for (; at && to[at - 1] > item; at--)
            to[at] = to[at - 1];
        to[at] = item;
    }
    return 1;
}

/* For each row of magnitudes |x - base| the number that `table` has for the rank of each, from 0,
 * ascending, of equal ones the first being the lowest. `keys` has CHUNK more than a row, `items` two
 * rows. Rows have less than 2^32 elements. */
CLONES EXPORT void surgeon_by_rank(size_t rows, size_t row, struct operand base, struct operand x,
                                   const double *table, uint64_t *keys, uint64_t *items, double *to)
{
    for (size_t r = 0; r < rows; r++, to += row) {
        uint64_t inexact = 0;
        for (size_t start = 0; start < row; start += CHUNK)
            surgeon_magnitude_keys(base, x, r * row + start, least_of(CHUNK, row - start), keys + start);
        for (size_t i = 0; i < row; i++) {
            float narrow = (float)double_of(keys[i]);
            inexact |= long_bits_of(narrow) ^ keys[i];
            items[i] = (uint64_t)bits_of(narrow) << 32 | i;
        }
        uint64_t *found = items;
        if (!inexact && sorted_by_width(row, items, items + row)) {
            for (size_t rank = 0; rank < row; rank++)
                to[(uint32_t)items[row + rank]] = table[rank];
            continue;
        }
        if (inexact) {
            for (size_t i = 0; i < row; i++)
                items[i] = keys[i] << 32 | i;
            found = sorted(row, items, items + row);
            for (size_t i = 0; i < row; i++)
                found[i] = (keys[(uint32_t)found[i]] & 0xffffffff00000000) | (uint32_t)found[i];
        }
        found = sorted(row, found, found == items ? items + row : items);
        for (size_t rank = 0; rank < row; rank++)
            to[(uint32_t)found[rank]] = table[rank];
    }
}

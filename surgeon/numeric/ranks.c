/* Ranks of magnitudes in their rows; of equal ones the first has the lowest.
 *
 * Magnitudes go into buckets by the multiples of a power of two: into one bucket where they are such
 * a multiple, into the next one where they are between two. Those in a bucket of the first kind are
 * all equal, so the order of the row is theirs; nearly all differences of bfloat16 are there. Only
 * those that are crowded in a bucket of the other kind are compared. */
#include "kernels.h"

/* A mark leaves 15 bits for ranks, so that longer rows are sorted. Counts of neighbouring buckets
 * are `WIDTH` apart, those of a share of all buckets side by side, so that as many are summed at
 * once; and buckets of the second kind are those with this bit. */
enum { WIDTH = 32, MARK = 1 << 15, MOST_BITS = 15, FEW = 24 };

struct row {
    size_t size;
    int most_bits;
    const double *table;
    double *to;
    uint64_t *keys;
    uint32_t *items, *spare, *crowded;
    uint16_t *places, *columns;
    uint16_t bins[1 << MOST_BITS];
};

/* Rank elements, whose columns are `items`, by sorting: from a rank on. */
static void rank_sorted(const struct row *row, size_t first, size_t count)
{
    uint32_t *items = row->items, *spare = row->spare, bins[1 << 11];
    const uint64_t *keys = row->keys;
    uint64_t varying = 0, mask = count < 1024 ? 0x7f : 0x7ff;
    for (size_t i = 0; i < count; i++)
        varying |= keys[items[i]] ^ keys[items[0]];
    /* Only by bits that are not the same in all: differences of bfloat16 have few. */
    for (int low = 0; varying; varying &= ~(mask << low)) {
        while (!(varying >> low & 1))
            low++;
        memset(bins, 0, (mask + 1) * sizeof *bins);
        for (size_t i = 0; i < count; i++)
            bins[keys[items[i]] >> low & mask]++;
        for (uint32_t bin = 0, sum = 0, here; bin <= mask; bin++, sum += here) {
            here = bins[bin];
            bins[bin] = sum;
        }
        for (size_t i = 0; i < count; i++)
            spare[bins[keys[items[i]] >> low & mask]++] = items[i];
        uint32_t *other = items;
        items = spare;
        spare = other;
    }
    for (size_t i = 0; i < count; i++)
        row->to[items[i]] = row->table[first + i];
}

/* Rank the elements from one rank to another, whose columns are known, in ascending order. */
static void rank_crowd(const struct row *row, size_t first, size_t end)
{
    const uint16_t *columns = row->columns;
    if (end - first > FEW) {
        for (size_t i = first; i < end; i++)
            row->items[i - first] = columns[i];
        rank_sorted(row, first, end - first);
        return;
    }
    for (size_t i = first; i < end; i++) {
        uint64_t key = row->keys[columns[i]];
        size_t rank = first;
        for (size_t j = first; j < end; j++)
            rank += row->keys[columns[j]] < key + (j < i);
        row->to[columns[i]] = row->table[rank];
    }
}

/* Rank elements that share their buckets with others: numbers are ranks so far, and columns. */
static void rank_crowds(struct row *row, size_t count)
{
    for (size_t i = 0; i < count; i++)
        row->columns[row->crowded[i] >> 16] = (uint16_t)row->crowded[i];
    for (size_t i = 0; i < count; i++) {
        uint16_t *end = row->bins + row->places[row->crowded[i] & 0xffff];
        if (*end) /* the first of them; it sees to all */
            rank_crowd(row, row->crowded[i] >> 16, *end & (MARK - 1));
        *end = 0;
    }
}

/* Write what the table has for ranks, and return how many are marked; these are noted. Where there
 * are `many`, looking takes longer than noting all. */
INLINE size_t rank_some(struct row *row, int many)
{
    const uint16_t *restrict places = row->places;
    const double *restrict table = row->table;
    uint16_t *restrict bins = row->bins;
    uint32_t *restrict crowded = row->crowded;
    double *restrict to = row->to;
    size_t i = 0, noted = 0;
    /* Two at once, since equal ones that follow one another would wait for what was written. */
    for (; i + 2 <= row->size; i += 2) {
        uint32_t one = places[i], two = places[i + 1];
        uint32_t first = bins[one], second = bins[two] + (one == two);
        bins[one] = (uint16_t)(first + 1);
        bins[two] = (uint16_t)(second + 1);
        to[i] = table[first & (MARK - 1)];
        to[i + 1] = table[second & (MARK - 1)];
        if (many || ((first | second) & MARK)) {
            crowded[noted] = (first & (MARK - 1)) << 16 | (uint32_t)i;
            noted += first >> 15;
            crowded[noted] = (second & (MARK - 1)) << 16 | (uint32_t)(i + 1);
            noted += second >> 15;
        }
    }
    if (i < row->size) {
        uint32_t last = bins[places[i]]++;
        to[i] = table[last & (MARK - 1)];
        crowded[noted] = (last & (MARK - 1)) << 16 | (uint32_t)i;
        noted += last >> 15;
    }
    return noted;
}

/* Make counts into ranks: each bucket's lowest, marked where it is crowded. Returns how many
 * elements are in these, or somewhat less. */
CLONES static size_t begin(size_t buckets, uint16_t *restrict bins)
{
    uint16_t sums[WIDTH] = {0}, pairs[WIDTH] = {0}, sum = 0;
    size_t crowd = 0;
    for (size_t i = 0; i < buckets; i += 2 * WIDTH)
        for (size_t k = 0; k < WIDTH; k++) {
            sums[k] += bins[i + k] + bins[i + WIDTH + k];
            pairs[k] += bins[i + WIDTH + k] >> 1;
        }
    for (size_t k = 0; k < WIDTH; k++) {
        uint16_t here = sums[k];
        sums[k] = sum;
        sum += here;
        crowd += 2 * pairs[k];
    }
    for (size_t i = 0; i < buckets; i += 2 * WIDTH)
        for (size_t k = 0; k < WIDTH; k++) {
            uint16_t equal = bins[i + k], other = bins[i + WIDTH + k];
            bins[i + k] = sums[k];
            sums[k] += equal;
            bins[i + WIDTH + k] = sums[k] | (uint16_t)((other > 1) << 15);
            sums[k] += other;
        }
    return crowd;
}

/* Note where the count of each element's bucket is, by multiples of 2 to the power `-shift`. */
CLONES static void place(size_t size, const uint64_t *restrict keys, int bits, int shift,
                         uint16_t *restrict places)
{
    double scale = double_of((uint64_t)(1023 + shift) << 52);
    double width = double_of((uint64_t)(1023 - shift) << 52);
    double most = (double)((1 << (bits - 1)) - 1);
    for (size_t i = 0; i < size; i++) {
        double value = double_of(keys[i]), scaled = value * scale;
        int32_t whole = (int32_t)(scaled < most ? scaled : most); /* the last one for NaN */
        uint32_t bucket = 2 * (uint32_t)whole + ((double)whole * width != value);
        places[i] = (uint16_t)((bucket * WIDTH & ((1u << bits) - 1)) | bucket * WIDTH >> bits);
    }
}

/* The binary exponent of a mean of some magnitudes; 0 where all are zero, and so are all others. */
CLONES static int exponent_of(size_t size, const uint64_t *restrict keys)
{
    double lanes[LANES] = {0};
    uint64_t all = 0;
    size_t count = 0;
    for (size_t i = 0; i < size; i += CHUNK, count += LANES)
        for (size_t k = 0; k < least_of(LANES, size - i); k++)
            lanes[k] += double_of(keys[i + k]);
    double sum = folded(lanes);
    for (size_t i = 0; i < size && sum == 0; i++)
        all |= keys[i];
    return sum == 0 && !all ? 0 :
        1 + (int)(long_bits_of(sum / (double)least_of(count, size)) >> 52 & 2047);
}

static void rank_row(struct row *row)
{
    int bits = 7, exponent = exponent_of(row->size, row->keys);
    if (!exponent) {
        memcpy(row->to, row->table, row->size * sizeof *row->to);
        return;
    }
    while (bits < row->most_bits && (size_t)1 << bits < 8 * row->size)
        bits++;
    /* There are multiples up to 4 to 8 times the mean. */
    int shift = bits - 4 - (exponent - 1024);
    shift = shift < -1000 ? -1000 : shift > 1000 ? 1000 : shift;
    place(row->size, row->keys, bits, shift, row->places);
    uint16_t *bins = row->bins;
    memset(bins, 0, sizeof *bins << bits);
    for (size_t i = 0; i < row->size; i++)
        bins[row->places[i]]++;
    size_t crowd = begin((size_t)1 << bits, bins);
    if (crowd * 4 > row->size) /* so are the next rows, it seems */
        row->most_bits = MOST_BITS;
    rank_crowds(row, crowd * 16 < row->size ? rank_some(row, 0) : rank_some(row, 1));
}

/* Note where random words are below a probability. */
CLONES static void keep(size_t count, const double *restrict chances, const uint32_t *restrict words,
                        uint8_t *restrict mask)
{
    for (size_t i = 0; i < count; i++)
        mask[i] = (double)(int32_t)(words[i] >> 8) < chances[i] * 16777216.0;
}

/* For each row of magnitudes |x - base| the number that `table` has for the rank of each, from 0.
 * With `words`, these are noted in `mask` instead where they are below it, and `to` has one row.
 * `spare` has CHUNK more than three rows. Rows have less than 2^32 elements. */
EXPORT void surgeon_by_rank(size_t rows, size_t size, struct operand base, struct operand x,
                            const double *table, uint64_t *spare, double *to,
                            const uint32_t *words, uint8_t *mask)
{
    struct row row;
    row.size = size;
    row.most_bits = MOST_BITS - 1; /* what the fastest cache has room for */
    row.table = table;
    row.keys = spare;
    row.items = (uint32_t *)(spare + size + CHUNK);
    row.spare = row.items + size;
    row.crowded = row.spare + size;
    row.places = (uint16_t *)(row.crowded + size);
    row.columns = row.places + size;
    for (size_t r = 0; r < rows; r++) {
        row.to = words ? to : to + r * size;
        for (size_t start = 0; start < size; start += CHUNK)
            surgeon_magnitude_keys(base, x, r * size + start, least_of(CHUNK, size - start),
                                   row.keys + start);
        if (size < MARK) {
            rank_row(&row);
        } else {
            for (size_t i = 0; i < size; i++)
                row.items[i] = (uint32_t)i;
            rank_sorted(&row, 0, size);
        }
        if (words)
            keep(size, to, words + r * size, mask + r * size);
    }
}

/* Philox 4x64 of ten rounds (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3), as
 * NumPy's bit generator of that name gives it. */
#include "kernels.h"

static uint64_t product(uint64_t a, uint64_t b, uint64_t *low)
{
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 wide;
    wide found = (wide)a * b;
    *low = (uint64_t)found;
    return (uint64_t)(found >> 64);
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    *low = a * b;
    return a1 * b1 + (middle >> 32) + (other >> 32);
#endif
}

INLINE void four(const uint64_t *key, uint64_t chunk, uint64_t counter, uint64_t *to)
{
    uint64_t a = counter, b = 0, c = chunk, d = 0, key0 = key[0], key1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t low0, low1;
        uint64_t high0 = product(0xd2e7470ee14c6c93, a, &low0);
        uint64_t high1 = product(0xca5a826395121157, c, &low1);
        a = high1 ^ b ^ key0;
        c = high0 ^ d ^ key1;
        b = low1;
        d = low0;
        key0 += 0x9e3779b97f4a7c15;
        key1 += 0xbb67ae8584caa73b;
    }
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
}

/* Fill `steps` runs of four numbers from a counter of (first + 1, 0, chunk, 0) on. */
EXPORT void surgeon_philox(const uint64_t *key, uint64_t chunk, uint64_t first, size_t steps,
                           uint64_t *to)
{
    for (size_t step = 0; step < steps; step++)
        four(key, chunk, first + step + 1, to + 4 * step);
}

/* Write 1 with a probability of `level` + `rest` of 256, else 0: by eight bits each, the lowest of
 * a number first, and where they are `level`, by a number of those that follow. */
CLONES EXPORT void surgeon_bernoulli(size_t count, const uint64_t *key, uint64_t chunk,
                                     unsigned level, double rest, uint8_t *restrict to)
{
    enum { FOUR = 32 };
    uint64_t drawn[4], more[4], next = (count + 7) / 8, have = UINT64_MAX;
    for (size_t start = 0; start < count; start += FOUR) {
        size_t size = least_of(FOUR, count - start);
        uint8_t bytes[FOUR], equal = 0;
        four(key, chunk, start / FOUR + 1, drawn);
        for (size_t i = 0; i < FOUR; i++)
            bytes[i] = (uint8_t)(drawn[i / 8] >> (8 * (i % 8)));
        for (size_t i = 0; i < size; i++) {
            to[start + i] = bytes[i] < level;
            equal |= bytes[i] == level;
        }
        for (size_t i = 0; i < size && equal && rest > 0; i++)
            if (bytes[i] == level) {
                if (next / 4 != have)
                    four(key, chunk, (have = next / 4) + 1, more);
                to[start + i] = (double)(int64_t)(more[next++ % 4] >> 11) * 0x1p-53 < rest;
            }
    }
}

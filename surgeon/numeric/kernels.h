/* What the files of loops share. */
#ifndef SURGEON_KERNELS_H
#define SURGEON_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* One clone of a loop for each generation of processors, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(SURGEON_PLAIN)
#if __GNUC__ >= 12
#define HAS_CLONES
#endif
#endif
#ifdef HAS_CLONES
#define CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CLONES
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum { BF16, F16, E4M3, E5M2, F32, F64 };
enum { CHUNK = 512, LANES = 128 };

struct operand {
    const void *data;
    int64_t dtype;
};

INLINE size_t least_of(size_t a, size_t b) { return a < b ? a : b; }

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint64_t long_bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Raise `count` elements from `start` on; round values into those of a dtype. See kernels.c. */
EXPORT void surgeon_upcast32(int64_t dtype, const void *from, size_t start, size_t count,
                             float *restrict to);
EXPORT void surgeon_upcast64(int64_t dtype, const void *from, size_t start, size_t count,
                             double *restrict to);
EXPORT int surgeon_downcast64(int64_t dtype, const double *restrict from, size_t start,
                              size_t count, void *restrict to, int always);

INLINE void load(struct operand from, size_t start, size_t count, double *restrict to)
{
    surgeon_upcast64(from.dtype, from.data, start, count, to);
}

/* Add `LANES` partial sums up, halves by halves. */
INLINE double folded(double *lanes)
{
    for (size_t width = LANES / 2; width; width /= 2)
        for (size_t i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    return lanes[0];
}

/* Where the result is the base model's zero, it keeps its sign. */
INLINE double keep_zero(double value, double base)
{
    return ((value == 0) & (base == 0)) ? base : value;
}

/* |x - base|, or |x| where there is no base; as bits, which are in the same order. */
void surgeon_magnitude_keys(struct operand base, struct operand x, size_t start, size_t count,
                            uint64_t *restrict keys);

#endif

/* Loops over blocks of stored elements: plain functions over pointers and counts.
 *
 * Every loop reads its operands in chunks that stay in the fastest cache, raised to float64 (or to
 * float32), calculates there, and rounds once, into the dtype that is stored. compiled.py has the
 * NumPy form of each; both give the same bits. So nothing here is reordered or contracted: compile
 * with -ffp-contract=off and without -ffast-math.
 */
#include "kernels.h"

/* To be changed with any function's arguments; compiled.py knows the same number. */
EXPORT int surgeon_interface(void) { return 7; }

EXPORT const char *surgeon_processor(void)
{
#if defined(HAS_CLONES)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4"))
        return "x86-64-v4";
    return __builtin_cpu_supports("x86-64-v3") ? "x86-64-v3" : "x86-64";
#elif defined(__aarch64__) || defined(_M_ARM64)
    return "neon";
#elif defined(__x86_64__) || defined(_M_X64)
    return "x86-64";
#else
    return "plain";
#endif
}

/* ---- Upcasts ---- */

/* The value of a code of a small format; `special` is the least code that is not finite. */
INLINE float upcast_small(uint32_t code, int bits, int mantissa, int bias, uint32_t special)
{
    int drop = 23 - mantissa;
    uint32_t sign = (code >> (bits - 1)) << 31, magnitude = code & ((1u << (bits - 1)) - 1);
    uint32_t normal = (magnitude << drop) + ((uint32_t)(127 - bias) << 23);
    uint32_t below = bits_of((float)(int32_t)magnitude *
                             float_of((uint32_t)(127 + 1 - bias - mantissa) << 23));
    uint32_t found = magnitude < (1u << mantissa) ? below : normal;
    /* Of float16 NaNs keep their bits, made quiet; in eight bits there is one NaN. */
    uint32_t other = bits == 16 ? 0x7fc00000u | (magnitude << drop) : 0x7fc00000u;
    if (mantissa + 1 < bits - 1 && special != 0x7fu && magnitude == special)
        other = 0x7f800000u; /* an infinity */
    return float_of(sign | (magnitude >= special ? other : found));
}

INLINE float upcast_one(int64_t dtype, const void *from, size_t i)
{
    switch (dtype) {
    case BF16:
        return float_of((uint32_t)((const uint16_t *)from)[i] << 16);
    case F16:
        return upcast_small(((const uint16_t *)from)[i], 16, 10, 15, 0x7c00);
    case E4M3:
        return upcast_small(((const uint8_t *)from)[i], 8, 3, 7, 0x7f);
    }
    return upcast_small(((const uint8_t *)from)[i], 8, 2, 15, 0x7c);
}

#define UPCAST(DTYPE, VALUE)                                                                       \
    case DTYPE:                                                                                  \
        for (size_t i = 0; i < count; i++)                                                       \
            to[i] = VALUE;                                                                       \
        break;
#define UPCASTS(REAL)                                                                            \
    switch (dtype) {                                                                             \
        UPCAST(BF16, upcast_one(BF16, from, start + i))                                          \
        UPCAST(F16, upcast_one(F16, from, start + i))                                            \
        UPCAST(E4M3, upcast_one(E4M3, from, start + i))                                          \
        UPCAST(E5M2, upcast_one(E5M2, from, start + i))                                          \
        UPCAST(F32, ((const float *)from)[start + i])                                            \
        UPCAST(F64, (REAL)((const double *)from)[start + i])                                     \
    }

CLONES EXPORT void surgeon_upcast32(int64_t dtype, const void *from, size_t start, size_t count,
                                    float *restrict to)
{
    UPCASTS(float)
}

CLONES EXPORT void surgeon_upcast64(int64_t dtype, const void *from, size_t start, size_t count,
                                    double *restrict to)
{
    UPCASTS(double)
}

/* ---- Downcasts: to nearest, ties to even ---- */

INLINE double largest_of(int64_t dtype)
{
    static const double largest[] = {0x1.fep127, 65504, 448, 57344, 0x1.fffffep127,
                                     0x1.fffffffffffffp1023};
    return largest[dtype];
}

/* A float32 from which rounding to fewer than 13 bits gives what rounding the float64 gives: cut
 * off, with the last bit set where anything was (Boldo and Melquiond 2008, rounding to odd). So few
 * bits are kept that the conversion is exact wherever a result may be more than 0. */
INLINE float to_odd(double value)
{
    const uint64_t cut = (1ull << 39) - 1;
    uint64_t bits = long_bits_of(value);
    return (float)double_of((((bits & cut) + cut) | bits) & ~cut);
}

/* `always` is for NaNs that arithmetic made: they have one form. Others keep sign and first bits. */
INLINE uint32_t bfloat16_code(float value, int always)
{
    uint32_t bits = bits_of(value);
    uint32_t nan = always ? 0x7fc0 : (bits >> 16) | 0x40;
    uint32_t found = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? nan : found;
}

/* What is beyond the largest value becomes `special`, which is infinity, or else NaN. */
INLINE uint32_t small_code(float value, int bits, int mantissa, int bias, uint32_t special,
                           uint32_t nan, int always)
{
    int drop = 23 - mantissa;
    uint32_t own = bits_of(value), magnitude = own & 0x7fffffff;
    uint32_t sign = (own >> 31) << (bits - 1);
    uint32_t least = (uint32_t)(128 - bias) << 23, magic = (uint32_t)(128 - bias + drop) << 23;
    uint32_t below = bits_of(float_of(magnitude < least ? magnitude : least) + float_of(magic)) - magic;
    uint32_t normal = (magnitude + ((magnitude >> drop) & 1) + (1u << (drop - 1)) - 1 -
                       ((uint32_t)(127 - bias) << 23)) >> drop;
    uint32_t found = magnitude < least ? below : normal;
    found = (found < special ? found : special) | sign;
    if (bits == 16)
        nan |= always ? 0 : (magnitude >> drop) & ((1u << mantissa) - 1);
    return magnitude > 0x7f800000 ? (always ? nan : nan | sign) : found;
}

INLINE float one_nan32(float value) { return value != value ? float_of(0x7fc00000) : value; }

INLINE double one_nan64(double value)
{
    return value != value ? double_of(0x7ff8000000000000) : value;
}

#define DOWNCAST(DTYPE, TYPE, VALUE)                                                             \
    case DTYPE:                                                                                  \
        for (size_t i = 0; i < count; i++)                                                       \
            ((TYPE *)to)[start + i] = (TYPE)VALUE;                                               \
        break;
#define DOWNCASTS(NARROW)                                                                        \
    switch (dtype + 8 * !!always) {                                                              \
        DOWNCAST(BF16, uint16_t, bfloat16_code(NARROW(from[i]), 0))                              \
        DOWNCAST(F16, uint16_t, small_code(NARROW(from[i]), 16, 10, 15, 0x7c00, 0x7e00, 0))      \
        DOWNCAST(F32, float, from[i])                                                            \
        DOWNCAST(F64, double, from[i])                                                           \
        DOWNCAST(BF16 + 8, uint16_t, bfloat16_code(NARROW(from[i]), 1))                          \
        DOWNCAST(F16 + 8, uint16_t, small_code(NARROW(from[i]), 16, 10, 15, 0x7c00, 0x7e00, 1))  \
        DOWNCAST(F32 + 8, float, one_nan32((float)from[i]))                                      \
        DOWNCAST(F64 + 8, double, one_nan64(from[i]))                                            \
        DOWNCAST(E4M3, uint8_t, small_code(NARROW(from[i]), 8, 3, 7, 0x7f, 0x7f, 0))             \
        DOWNCAST(E5M2, uint8_t, small_code(NARROW(from[i]), 8, 2, 15, 0x7c, 0x7e, 0))            \
        DOWNCAST(E4M3 + 8, uint8_t, small_code(NARROW(from[i]), 8, 3, 7, 0x7f, 0x7f, 1))         \
        DOWNCAST(E5M2 + 8, uint8_t, small_code(NARROW(from[i]), 8, 2, 15, 0x7c, 0x7e, 1))        \
    }

/* Return whether a value is not finite, or beyond the largest of the dtype. */
CLONES EXPORT int surgeon_downcast32(int64_t dtype, const float *restrict from, size_t start,
                                     size_t count, void *restrict to, int always)
{
    float largest = dtype == F64 ? (float)largest_of(F32) : (float)largest_of(dtype);
    uint32_t beyond = 0;
    for (size_t i = 0; i < count; i++)
        beyond |= !(fabsf(from[i]) <= largest);
    DOWNCASTS()
    return (int)beyond;
}

CLONES EXPORT int surgeon_downcast64(int64_t dtype, const double *restrict from, size_t start,
                                     size_t count, void *restrict to, int always)
{
    double largest = largest_of(dtype);
    uint64_t beyond = 0;
    for (size_t i = 0; i < count; i++)
        beyond |= !(fabs(from[i]) <= largest);
    DOWNCASTS(to_odd)
    return (int)beyond;
}

/* ---- Linear combinations ---- */

/* Σ factor · operand, in the order of the operands; then times `multiply`, then by `divide`. With
 * `keep_zeros` a zero that is the first operand's keeps that one's sign. */
#define LINEAR(REAL, UPCAST, DOWNCAST)                                                           \
    REAL sum[CHUNK], term[CHUNK], own[CHUNK];                                                    \
    int beyond = 0;                                                                              \
    for (size_t start = 0; start < count; start += CHUNK) {                                      \
        size_t size = least_of(CHUNK, count - start);                                            \
        for (size_t k = 0; k < operands; k++) {                                                  \
            REAL factor = (REAL)factors[k], *into = k ? term : sum;                              \
            UPCAST(from[k].dtype, from[k].data, start, size, into);                              \
            if (keep_zeros && !k)                                                                \
                memcpy(own, sum, size * sizeof *own);                                            \
            if (factor != 1)                                                                     \
                for (size_t i = 0; i < size; i++)                                                \
                    into[i] *= factor;                                                           \
            if (k)                                                                               \
                for (size_t i = 0; i < size; i++)                                                \
                    sum[i] += term[i];                                                           \
        }                                                                                        \
        if (multiply != 1)                                                                       \
            for (size_t i = 0; i < size; i++)                                                    \
                sum[i] *= (REAL)multiply;                                                        \
        if (divide != 1)                                                                         \
            for (size_t i = 0; i < size; i++)                                                    \
                sum[i] /= (REAL)divide;                                                          \
        for (size_t i = 0; i < size && keep_zeros; i++)                                          \
            sum[i] = sum[i] == 0 && own[i] == 0 ? own[i] : sum[i];                               \
        beyond |= DOWNCAST(dtype, sum, start, size, to, always);                                 \
    }                                                                                            \
    return beyond;

CLONES EXPORT int surgeon_linear32(size_t count, const struct operand *from, size_t operands,
                                   const double *factors, double multiply, double divide,
                                   int64_t dtype, void *to, int always, int keep_zeros)
{
    LINEAR(float, surgeon_upcast32, surgeon_downcast32)
}

CLONES EXPORT int surgeon_linear64(size_t count, const struct operand *from, size_t operands,
                                   const double *factors, double multiply, double divide,
                                   int64_t dtype, void *to, int always, int keep_zeros)
{
    LINEAR(double, surgeon_upcast64, surgeon_downcast64)
}

/* ---- Inner products ---- */

CLONES static void add_products(size_t count, const double *restrict a, const double *restrict b,
                                double *restrict lanes)
{
    size_t start = 0;
    for (; start + LANES <= count; start += LANES)
        for (size_t i = 0; i < LANES; i++)
            lanes[i] += a[start + i] * b[start + i];
    for (size_t i = 0; start + i < count; i++)
        lanes[i] += a[start + i] * b[start + i];
}

/* For each vector of `length` elements: the products of all points with one another, as the lower
 * triangle of a matrix. Element i of a vector is added to lane i % LANES. With `relative`, points
 * are what operands add to the first, times what `mask` says where there is one. `spare` has CHUNK
 * for each operand, `lanes` LANES for each product. */
CLONES EXPORT void surgeon_products(size_t vectors, size_t length, const struct operand *from,
                                    size_t operands, int relative, const uint8_t *mask,
                                    double *spare, double *lanes, double *to)
{
    size_t first = relative ? 1 : 0, points = operands - first;
    size_t products = points * (points + 1) / 2;
    for (size_t v = 0; v < vectors; v++) {
        memset(lanes, 0, products * LANES * sizeof *lanes);
        for (size_t start = 0; start < length; start += CHUNK) {
            size_t size = least_of(CHUNK, length - start);
            for (size_t k = 0; k < operands; k++)
                load(from[k], v * length + start, size, spare + k * CHUNK);
            for (size_t k = first; k < operands && relative; k++)
                for (size_t i = 0; i < size; i++)
                    spare[k * CHUNK + i] -= spare[i];
            for (size_t k = first; k < operands && mask; k++)
                for (size_t i = 0; i < size; i++)
                    spare[k * CHUNK + i] *= mask[v * length + start + i] ? 1.0 : 0.0;
            double *lane = lanes;
            for (size_t j = first; j < operands; j++)
                for (size_t k = first; k <= j; k++, lane += LANES)
                    add_products(size, spare + j * CHUNK, spare + k * CHUNK, lane);
        }
        for (size_t p = 0; p < products; p++)
            to[v * products + p] = folded(lanes + p * LANES);
    }
}

/* ---- Looking at values ---- */

/* Widen `to`, the least and the greatest, to all values but NaN; returns whether all are finite. */
CLONES EXPORT int surgeon_extremes(size_t count, struct operand from, double *to)
{
    double values[CHUNK], least[LANES], most[LANES];
    uint64_t other = 0;
    for (size_t lane = 0; lane < LANES; lane++) {
        least[lane] = to[0];
        most[lane] = to[1];
    }
    for (size_t start = 0; start < count; start += LANES) {
        size_t size = least_of(LANES, count - start);
        load(from, start, size, values);
        for (size_t i = 0; i < size; i++) {
            least[i] = values[i] < least[i] ? values[i] : least[i];
            most[i] = values[i] > most[i] ? values[i] : most[i];
            other |= !(fabs(values[i]) <= 0x1.fffffffffffffp1023);
        }
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        to[0] = least[lane] < to[0] ? least[lane] : to[0];
        to[1] = most[lane] > to[1] ? most[lane] : to[1];
    }
    return !other;
}

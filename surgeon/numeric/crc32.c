/* CRC-32, as zlib's: by tables, and where the processor can, by carry-less multiplication. */
#include "kernels.h"
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

static uint32_t crc_tables[8][256];

/* To be called once, before any other of these. */
EXPORT void surgeon_crc32_begin(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320 : 0);
        crc_tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_tables[k][i] =
                (crc_tables[k - 1][i] >> 8) ^ crc_tables[0][crc_tables[k - 1][i] & 255];
}

static uint32_t crc_by_tables(uint32_t crc, const uint8_t *data, size_t count)
{
    for (; count >= 8; data += 8, count -= 8) {
        crc ^= data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        crc = crc_tables[7][crc & 255] ^ crc_tables[6][crc >> 8 & 255] ^
              crc_tables[5][crc >> 16 & 255] ^ crc_tables[4][crc >> 24] ^
              crc_tables[3][data[4]] ^ crc_tables[2][data[5]] ^ crc_tables[1][data[6]] ^
              crc_tables[0][data[7]];
    }
    while (count--)
        crc = (crc >> 8) ^ crc_tables[0][(crc ^ *data++) & 255];
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Folding by carry-less multiplication (Gopal et al. 2009, Fast CRC Computation for Generic
 * Polynomials Using PCLMULQDQ). The numbers are x^(d + 32) and x^(d - 32) modulo the polynomial,
 * bit-reversed, times x, for a distance of d bits. What is left is finished by the tables. */
#define FOLD_BY_2048 0x1322d1430LL, 0x11542778aLL
#define FOLD_BY_512 0x1c6e41596LL, 0x154442bd4LL
#define FOLD_BY_128 0x0ccaa009eLL, 0x1751997d0LL

__attribute__((target("pclmul,sse4.1"))) static __m128i fold128(__m128i x, __m128i by, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

__attribute__((target("pclmul,sse4.1"))) static uint32_t crc_by_128(uint32_t crc,
                                                                   const uint8_t *data,
                                                                   size_t count)
{
    __m128i x[4], by = _mm_set_epi64x(FOLD_BY_512);
    uint8_t left[16];
    for (int k = 0; k < 4; k++)
        x[k] = _mm_loadu_si128((const __m128i *)data + k);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)crc));
    for (size_t at = 64; at < count; at += 64)
        for (int k = 0; k < 4; k++)
            x[k] = fold128(x[k], by, _mm_loadu_si128((const __m128i *)(data + at) + k));
    by = _mm_set_epi64x(FOLD_BY_128);
    for (int k = 1; k < 4; k++)
        x[k] = fold128(x[k - 1], by, x[k]);
    _mm_storeu_si128((__m128i *)left, x[3]);
    return crc_by_tables(0, left, sizeof left);
}

#define WIDE __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.1"))) static
WIDE __m512i fold512(__m512i x, __m512i by, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(x, by, 0x00);
    return _mm512_ternarylogic_epi64(low, _mm512_clmulepi64_epi128(x, by, 0x11), next, 0x96);
}

WIDE uint32_t crc_by_512(uint32_t crc, const uint8_t *data, size_t count)
{
    __m512i x[4], by = _mm512_broadcast_i32x4(_mm_set_epi64x(FOLD_BY_2048));
    uint8_t left[64];
    for (int k = 0; k < 4; k++)
        x[k] = _mm512_loadu_si512(data + 64 * k);
    x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (size_t at = 256; at < count; at += 256)
        for (int k = 0; k < 4; k++)
            x[k] = fold512(x[k], by, _mm512_loadu_si512(data + at + 64 * k));
    by = _mm512_broadcast_i32x4(_mm_set_epi64x(FOLD_BY_512));
    for (int k = 1; k < 4; k++)
        x[k] = fold512(x[k - 1], by, x[k]);
    _mm512_storeu_si512(left, x[3]);
    return crc_by_tables(0, left, sizeof left);
}
#endif

EXPORT uint32_t surgeon_crc32(uint32_t crc, const uint8_t *data, size_t count)
{
    size_t folded_bytes = 0;
    crc = ~crc;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (count >= 256 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq")) {
        folded_bytes = count / 256 * 256;
        crc = crc_by_512(crc, data, folded_bytes);
    } else if (count >= 64 && __builtin_cpu_supports("pclmul")) {
        folded_bytes = count / 64 * 64;
        crc = crc_by_128(crc, data, folded_bytes);
    }
#elif defined(__ARM_FEATURE_CRC32)
    for (; folded_bytes + 8 <= count; folded_bytes += 8) {
        uint64_t word;
        memcpy(&word, data + folded_bytes, 8);
        crc = __crc32d(crc, word);
    }
#endif
    return ~crc_by_tables(crc, data + folded_bytes, count - folded_bytes);
}

static uint32_t crc_product(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1, b = (b >> 1) ^ (b & 1 ? 0xedb88320 : 0))
        product ^= a & bit ? b : 0;
    return product;
}

/* The CRC-32 of two runs of bytes, one after the other, from that of each. */
EXPORT uint32_t surgeon_crc32_joined(uint32_t first, uint32_t second, uint64_t second_bytes)
{
    uint32_t power = 1u << 23; /* x^8 */
    for (; second_bytes; second_bytes >>= 1, power = crc_product(power, power))
        if (second_bytes & 1)
            first = crc_product(power, first);
    return first ^ second;
}

// The products of attention, made of 32-bit words.
//
// A word is one fp32 number, or two neighbours in bf16 whose products are added in fp32: the level
// and the type of the cache decide. A result is a sum over words in an order of their own, for every
// row and column alike; words that are zero change nothing.
#pragma once

#include <type_traits>

#include "simd.h"

namespace rose {
namespace {

// Rows that share a load of the other operand: as many sums as there are registers for.
constexpr int SIDE_BY_SIDE = LANES == 4 ? 4 : 6;
// Rows whose softmax is one: those of a product, or those that the matrix unit takes.
#if defined(ROSE_AMX)
constexpr int TOGETHER = 16;
#else
constexpr int TOGETHER = SIDE_BY_SIDE;
#endif
static_assert(TOGETHER <= LANES);
constexpr int MAX_DIM = 256;  // of a head

template <class T>
ROSE_INLINE F load_up_to(const T* from, int64_t count) {
    return count >= LANES ? load(from) : count > 0 ? load_part(from, count) : zero();
}

template <class T, class V>
ROSE_INLINE void store_up_to(T* to, V a, int64_t count) {
    if (count >= LANES)
        store(to, a);
    else if (count > 0)
        store_part(to, a, count);
}

// What stands in lanes [begin, end), and `other` elsewhere.
ROSE_INLINE F within(F a, int64_t begin, int64_t end, F other) {
    alignas(64) static const float NUMBERS[] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                8, 9, 10, 11, 12, 13, 14, 15};
    const F lane = load(NUMBERS);
    return select(less(lane, splat(float(begin))), other,
                  select(less(lane, splat(float(end))), a, other));
}

// -- Turning a square of words -----------------------------------------------------------------

#if defined(ROSE_AVX512)

ROSE_INLINE void transpose(F (&a)[LANES]) {
    F b[LANES];
    ROSE_UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    ROSE_UNROLL
    for (int i = 0; i < 16; i += 4) {  // a[i + j]: column j of each quarter, rows i to i + 3
        a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    ROSE_UNROLL
    for (int i = 0; i < 4; i++) {
        F even = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        F odd = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        F even_below = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        F odd_below = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
        b[i] = _mm512_shuffle_f32x4(even, even_below, 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(odd, odd_below, 0x88);
        b[i + 8] = _mm512_shuffle_f32x4(even, even_below, 0xdd);
        b[i + 12] = _mm512_shuffle_f32x4(odd, odd_below, 0xdd);
    }
    ROSE_UNROLL
    for (int i = 0; i < 16; i++) a[i] = b[i];
}

// Two vectors' even and odd numbers; and back.
ROSE_INLINE void part(F& a, F& b) {
    const I even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const F evens = _mm512_permutex2var_ps(a, even, b);
    b = _mm512_permutex2var_ps(a, add(even, splat(int32_t(1))), b), a = evens;
}
ROSE_INLINE void join(F& a, F& b) {
    const I first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const F low = _mm512_permutex2var_ps(a, first, b);
    b = _mm512_permutex2var_ps(a, add(first, splat(int32_t(8))), b), a = low;
}

ROSE_INLINE void interleave_bytes(F a, F b, F& low, F& high) {
    low = as_floats(_mm512_unpacklo_epi8(as_ints(a), as_ints(b)));
    high = as_floats(_mm512_unpackhi_epi8(as_ints(a), as_ints(b)));
}

#elif defined(ROSE_AVX2)

ROSE_INLINE void transpose(F (&a)[LANES]) {
    F b[LANES];
    ROSE_UNROLL
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    ROSE_UNROLL
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    ROSE_UNROLL
    for (int i = 0; i < 4; i++) {
        F low = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        a[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
        a[i] = low;
    }
}

ROSE_INLINE void part(F& a, F& b) {
    const F evens = _mm256_shuffle_ps(a, b, 0x88), odds = _mm256_shuffle_ps(a, b, 0xdd);
    a = (F)_mm256_permute4x64_pd((__m256d)evens, 0xd8);
    b = (F)_mm256_permute4x64_pd((__m256d)odds, 0xd8);
}
ROSE_INLINE void join(F& a, F& b) {
    const F low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    a = _mm256_permute2f128_ps(low, high, 0x20), b = _mm256_permute2f128_ps(low, high, 0x31);
}

ROSE_INLINE void interleave_bytes(F a, F b, F& low, F& high) {
    low = as_floats(_mm256_unpacklo_epi8(as_ints(a), as_ints(b)));
    high = as_floats(_mm256_unpackhi_epi8(as_ints(a), as_ints(b)));
}

#else

ROSE_INLINE void transpose(F (&a)[LANES]) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            float other = a[i][j];
            a[i][j] = a[j][i];
            a[j][i] = other;
        }
}

#endif

#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
// LANES rows of bytes become columns, sixteen bytes at a time: vector i then has, of each sixteen,
// byte i of all rows, or where rows are eight bytes 2 i and 2 i + 1. Each step deals them out anew.
ROSE_INLINE void transpose_bytes(F (&a)[LANES]) {
    ROSE_UNROLL
    for (int step = LANES; step > 1; step /= 2) {
        F b[LANES];
        ROSE_UNROLL
        for (int i = 0; i < LANES / 2; i++)
            interleave_bytes(a[i], a[i + LANES / 2], b[2 * i], b[2 * i + 1]);
        ROSE_UNROLL
        for (int i = 0; i < LANES; i++) a[i] = b[i];
    }
}
#endif

// -- Kinds of words ----------------------------------------------------------------------------

struct Fp32Words {
    static constexpr int DEPTH = 1;  // numbers in a word
    static constexpr int WHOLE = 1;  // words that are multiplied as one
    using Alone = Fp32Words;         // as a few rows take them; see few_rows.inl

    static F dot(F sum, F a, F b) { return fma(a, b, sum); }

    // LANES words of so many numbers.
    static F pack(const F (&from)[DEPTH]) { return from[0]; }

    // LANES words of an array that ends after `left` numbers, and zeros.
    template <class T>
    static F load_words(const T* from, int64_t left) {
        return load_up_to(from, left);
    }

    // Words over rows: of each column, what DEPTH rows have there. Writes `padded` words.
    template <class T>
    static void pack_columns(const T* const* rows, int64_t dim, int64_t padded, float* to) {
        for (int64_t i = 0; i < padded; i += LANES) store(to + i, load_up_to(rows[0] + i, dim - i));
    }
};

#if defined(ROSE_BF16)

struct Bf16Words {
    static constexpr int DEPTH = 2, WHOLE = 1;
    using Alone = Bf16Words;

    static F dot(F sum, F a, F b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }

    static F pack(const F (&from)[DEPTH]) { return (F)_mm512_cvtne2ps_pbh(from[1], from[0]); }

    static F load_words(const bf16* from, int64_t left) {
        if (left >= 2 * LANES) return load(reinterpret_cast<const float*>(from));
        __mmask32 inside = left > 0 ? (1u << left) - 1 : 0;
        return (F)_mm512_maskz_loadu_epi16(inside, from);
    }

    static F load_words(const int8_t* from, int64_t left) {
        F low = load_up_to(from, left), high = load_up_to(from + LANES, left - LANES);
        return (F)_mm512_cvtne2ps_pbh(high, low);  // exact
    }

    template <class T>
    static void pack_columns(const T* const* rows, int64_t dim, int64_t padded, float* to) {
        for (int64_t i = 0; i < padded; i += 2 * LANES) {
            F even = load_words(rows[0] + i, dim - i), odd = load_words(rows[1] + i, dim - i);
            store(to + i, interleaved(even, odd, 0));
            store(to + i + LANES, interleaved(even, odd, 16));
        }
    }

   private:
    // Pairs of what stands at `begin`, begin + 1, ... of both.
    static F interleaved(F even, F odd, int16_t begin) {
        alignas(64) int16_t order[32];
        for (int16_t i = 0; i < 16; i++) {
            order[2 * i] = begin + i;
            order[2 * i + 1] = begin + i + 32;
        }
        return (F)_mm512_permutex2var_epi16((__m512i)even, _mm512_load_si512(order), (__m512i)odd);
    }
};

#endif

// -- The product -------------------------------------------------------------------------------

// Of rows of words [rows, words] and columns [words, columns]: sums [rows, columns].
struct Product {
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;
    float* out;
    int64_t out_stride;
    int64_t words;
};

// ROWS rows, WIDTH vectors of columns. Sums begin at zero, or at what is there times decay.
template <class Words, int ROWS, int WIDTH>
ROSE_INLINE void product_tile(const Product& p, const float* decay) {
    F sums[ROWS][WIDTH];
    ROSE_UNROLL
    for (int r = 0; r < ROWS; r++) {
        ROSE_UNROLL
        for (int c = 0; c < WIDTH; c++)
            sums[r][c] = decay ? load(p.out + r * p.out_stride + c * LANES) * splat(decay[r])
                               : zero();
    }
    for (int64_t w = 0; w < p.words; w++) {
        F b[WIDTH];
        ROSE_UNROLL
        for (int c = 0; c < WIDTH; c++) b[c] = load(p.b + w * p.b_stride + c * LANES);
        ROSE_UNROLL
        for (int r = 0; r < ROWS; r++) {
            F a = splat(p.a[r * p.a_stride + w]);
            ROSE_UNROLL
            for (int c = 0; c < WIDTH; c++) sums[r][c] = Words::dot(sums[r][c], a, b[c]);
        }
    }
    ROSE_UNROLL
    for (int r = 0; r < ROWS; r++) {
        ROSE_UNROLL
        for (int c = 0; c < WIDTH; c++) store(p.out + r * p.out_stride + c * LANES, sums[r][c]);
    }
}

template <class Words, int ROWS>
void product_rows(Product p, int64_t columns, const float* decay) {
    // sums for which there are registers, and more than one so that they do not wait for each other
    constexpr int WIDE = ROWS == 1 ? 8 : ROWS == 2 || LANES == 16 ? 4 : 2;
    auto take = [&](auto count) {
        constexpr int WIDTH = decltype(count)::value;
        for (; columns >= WIDTH * LANES; columns -= WIDTH * LANES) {
            product_tile<Words, ROWS, WIDTH>(p, decay);
            p.b += WIDTH * LANES, p.out += WIDTH * LANES;
        }
    };
    take(std::integral_constant<int, WIDE>());
    if (WIDE > 4) take(std::integral_constant<int, 4>());
    if (WIDE > 2) take(std::integral_constant<int, 2>());
    take(std::integral_constant<int, 1>());
}

// Columns are a multiple of LANES, words one of WHOLE; `decay` has one number a row, or is null.
template <class Words>
void product(Words, Product p, int64_t rows, int64_t columns, const float* decay) {
    auto take = [&](auto count) {
        constexpr int ROWS = decltype(count)::value;
        while (rows >= ROWS) {
            product_rows<Words, ROWS>(p, columns, decay);
            p.a += ROWS * p.a_stride, p.out += ROWS * p.out_stride, rows -= ROWS;
            if (decay) decay += ROWS;
        }
    };
    take(std::integral_constant<int, SIDE_BY_SIDE>());
    take(std::integral_constant<int, 4>());
    take(std::integral_constant<int, 2>());
    take(std::integral_constant<int, 1>());
}

}  // namespace
}  // namespace rose

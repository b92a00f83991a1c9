// Random numbers as a function, the same words as kernels/noise.py: Philox4x32-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and Gumbel noise made of them.
#pragma once

#include "simd.h"

namespace rose {
namespace {

// -- What differs between levels ---------------------------------------------------------------

// Of 64-bit lanes: products of lower halves, upper halves, lower halves of two put together, and
// the even or the odd lanes of two in turns.
#if defined(ROSE_AVX512)

ROSE_INLINE I product(I a, I b) { return _mm512_mul_epu32(a, b); }
ROSE_INLINE I upper(I a) { return _mm512_srli_epi64(a, 32); }
ROSE_INLINE I beside(I low, I high) {
    return _mm512_mask_shuffle_epi32(low, 0xaaaa, high, _MM_PERM_CCAA);
}
ROSE_INLINE I even_lanes(I a, I b) { return _mm512_unpacklo_epi64(a, b); }
ROSE_INLINE I odd_lanes(I a, I b) { return _mm512_unpackhi_epi64(a, b); }

#elif defined(ROSE_AVX2)

ROSE_INLINE I product(I a, I b) { return _mm256_mul_epu32(a, b); }
ROSE_INLINE I upper(I a) { return _mm256_srli_epi64(a, 32); }
ROSE_INLINE I beside(I low, I high) {
    return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
}
ROSE_INLINE I even_lanes(I a, I b) { return _mm256_unpacklo_epi64(a, b); }
ROSE_INLINE I odd_lanes(I a, I b) { return _mm256_unpackhi_epi64(a, b); }

#else

typedef uint64_t W __attribute__((vector_size(16)));
constexpr uint64_t LOWER = 0xffffffff;

ROSE_INLINE I product(I a, I b) { return (I)(((W)a & LOWER) * ((W)b & LOWER)); }
ROSE_INLINE I upper(I a) { return (I)((W)a >> 32); }
ROSE_INLINE I beside(I low, I high) { return (I)(((W)low & LOWER) | (W)high << 32); }
ROSE_INLINE I even_lanes(I a, I b) { return I{a[0], a[1], b[0], b[1]}; }
ROSE_INLINE I odd_lanes(I a, I b) { return I{a[2], a[3], b[2], b[3]}; }

#endif

// -- Words -------------------------------------------------------------------------------------

// Words are made for so many neighbouring tokens at a time.
constexpr int GROUP = 4 * LANES;
constexpr int ROUNDS = 10;

// What a row's words are keyed by.
class Stream {
   public:
    Stream(int64_t seed, int64_t choice, int64_t position)
        : choice_(splat(int32_t(choice))), position_(splat(int32_t(position))) {
        uint32_t low = uint32_t(seed), high = uint32_t(uint64_t(seed) >> 32);
        for (int round = 0; round < ROUNDS; round++, low += 0x9e3779b9, high += 0xbb67ae85)
            keys_[2 * round] = splat(int32_t(low)), keys_[2 * round + 1] = splat(int32_t(high));
        // one in each 64-bit lane, such that the words come out in the order of tokens
        alignas(64) int32_t counters[LANES];
        for (int lane = 0; lane < LANES; lane++)
            counters[lane] = lane / 2 % 2 * (LANES / 4) + lane / 4;
        counters_ = load_ints(counters);
    }

    // Words of tokens [first, first + GROUP), in order; first is a multiple of GROUP.
    ROSE_INLINE void words(int64_t first, I (&out)[4]) const {
        const I counters = add(counters_, splat(int32_t(first / 4)));
        half_of_words(counters, out[0], out[1]);
        half_of_words(add(counters, splat(LANES / 2)), out[2], out[3]);
    }

   private:
    // What stands in the upper halves of lanes meanwhile is never looked at.
    ROSE_INLINE void half_of_words(I counters, I& low, I& high) const {
        const I a = splat(int32_t(0xd2511f53)), b = splat(int32_t(0xcd9e8d57));
        I x[4] = {counters, position_, choice_, splat(0)};
        ROSE_UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            const I first = product(x[0], a), second = product(x[2], b);
            x[0] = upper(second) ^ x[1] ^ keys_[2 * round], x[1] = second;
            x[2] = upper(first) ^ x[3] ^ keys_[2 * round + 1], x[3] = first;
        }
        const I front = beside(x[0], x[1]), back = beside(x[2], x[3]);
        low = even_lanes(front, back), high = odd_lanes(front, back);
    }

    I keys_[2 * ROUNDS], counters_, choice_, position_;
};

// -- Numbers -----------------------------------------------------------------------------------

// Of normal numbers above 0, within 1 ulp or so.
ROSE_INLINE F log(F x) {
    constexpr float P[] = {0.333333313f, -0.250008225f, 0.200012267f, -0.166233569f,
                           0.142017618f, -0.131601945f, 0.127615497f, -0.0763442963f};
    const I root_half = splat(0x3f3504f3);
    const I exponent = shift_right<23>(sub(as_ints(x), root_half));
    const F n = floats(exponent);
    const F f = as_floats(sub(as_ints(x), shift_left<23>(exponent))) - splat(1.0f);
    const F square = f * f;
    F value = fma(square * f, polynomial(f, P), n * splat(1.42860677e-6f));
    value = fma(square, splat(-0.5f), value) + f;
    return fma(n, splat(0.693145752f), value);  // ln 2 in two parts, the first exact times n
}

// The 23 bits of a word that count, as a number.
ROSE_INLINE F whole(I word) { return floats(both(shift_right<9>(word), splat(0x7fffff))); }

// Standard Gumbel noise of whole(word): -ln(-ln(u)), u = (n + 1/2) / 2^23 exactly.
ROSE_INLINE F gumbel(F n) {
    const F uniform = (n + splat(0.5f)) * splat(0x1p-23f);
    return zero() - log(zero() - log(uniform));
}

// Above any noise: that of the largest u is 16.64.
constexpr float MOST_NOISE = 16.7f;

// At least noise / ln 2, and up to 0.09 more for much noise: noise is -ln(-ln(u)) < -ln(1 - u), and
// the bits of a float, read as a number, are its logarithm to base 2 but for the bend of the curve
// between powers of two, above the chord.
ROSE_INLINE F rarity(F n) {
    const F rest = fma(n, splat(-0x1p-23f), splat(1.0f - 0x1p-24f));  // 1 - u, exact
    return fma(floats(as_ints(rest)), splat(-0x1p-23f), splat(127.0f));
}

}  // namespace
}  // namespace rose

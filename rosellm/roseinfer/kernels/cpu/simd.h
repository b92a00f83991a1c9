// Vectors of the level that is being compiled: F holds LANES floats, I as many int32.
//
// Arithmetic is written with operators. A lane's result depends on that lane alone, so that a value
// has the same bits wherever in a vector it stands; `sum` and `most` reduce in one fixed order.
// `swapped<n>` changes the places of lanes i and i ^ n.
// `mul16` multiplies the 16-bit halves of lanes, `mul16_high` gives the upper half of each product (not
// at the portable level); `spread_byte` puts one byte of a lane in all four, `two_bytes` its first or
// last two in its halves, as numbers of 16 bits (not with AVX2).
// `fma` rounds once where the level has such an instruction, else twice; `min` and `max` give their
// second argument where one is NaN.
//
// Everything is in an anonymous namespace: the same names mean other code at every level, and the
// linker must not take one for another.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
// gcc's own headers leave undefined what is undefined
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(ROSE_AVX2) && !defined(ROSE_VNNI)
#define ROSE_WIDENING  // bytes are multiplied as numbers of 16 bits
#endif

#if defined(__clang__)
#define ROSE_UNROLL _Pragma("unroll")
#else
#define ROSE_UNROLL _Pragma("GCC unroll 64")
#endif
#define ROSE_INLINED __attribute__((always_inline))  // for lambdas
#define ROSE_INLINE inline ROSE_INLINED

namespace rose {
namespace {

constexpr int64_t LINE = 64;  // bytes of the processor's cache that come at once

struct bf16 {
    uint16_t bits;
};

struct fp16 {
    uint16_t bits;
};

// While it lives, numbers too small for a normal one are 0 to this thread: they may take a processor
// a hundred times as long. (Not at the portable level, which widens fp16 by way of such.)
#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
class NormalNumbers {
   public:
    NormalNumbers() : before_(_mm_getcsr()) { set(before_ | 0x8040); }
    ~NormalNumbers() { set(before_); }
    NormalNumbers(const NormalNumbers&) = delete;
    NormalNumbers& operator=(const NormalNumbers&) = delete;

   private:
    // not the intrinsic, which arithmetic may be moved past
    static void set(unsigned word) { asm volatile("ldmxcsr %0" : : "m"(word) : "memory"); }

    unsigned before_;
};
#else
struct NormalNumbers {
    ~NormalNumbers() {}  // not unused
};
#endif

// -- What differs between levels ---------------------------------------------------------------

#if defined(ROSE_AVX512)

constexpr int LANES = 16;
using F = __m512;
using I = __m512i;
using Mask = __mmask16;

ROSE_INLINE F load(const float* from) { return _mm512_loadu_ps(from); }
ROSE_INLINE void store(float* to, F a) { _mm512_storeu_ps(to, a); }
ROSE_INLINE F splat(float a) { return _mm512_set1_ps(a); }
ROSE_INLINE I splat(int32_t a) { return _mm512_set1_epi32(a); }
ROSE_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
ROSE_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
ROSE_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
ROSE_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
ROSE_INLINE Mask less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
ROSE_INLINE F select(Mask which, F yes, F no) { return _mm512_mask_blend_ps(which, no, yes); }
ROSE_INLINE F floats(I a) { return _mm512_cvtepi32_ps(a); }
ROSE_INLINE I rounded(F a) { return _mm512_cvtps_epi32(a); }
ROSE_INLINE F as_floats(I a) { return _mm512_castsi512_ps(a); }
ROSE_INLINE I as_ints(F a) { return _mm512_castps_si512(a); }
ROSE_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
ROSE_INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
ROSE_INLINE I max(I a, I b) { return _mm512_max_epi32(a, b); }
ROSE_INLINE float first(F a) { return _mm512_cvtss_f32(a); }
template <int APART>
ROSE_INLINE F swapped(F a) {
    if constexpr (APART == 8) return _mm512_shuffle_f32x4(a, a, 0x4e);
    if constexpr (APART == 4) return _mm512_shuffle_f32x4(a, a, 0xb1);
    return _mm512_permute_ps(a, APART == 2 ? 0x4e : 0xb1);
}
ROSE_INLINE I both(I a, I b) { return _mm512_and_si512(a, b); }
ROSE_INLINE I either(I a, I b) { return _mm512_or_si512(a, b); }
ROSE_INLINE I mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
ROSE_INLINE I mul16(I a, I b) { return _mm512_mullo_epi16(a, b); }
ROSE_INLINE I mul16_high(I a, I b) { return _mm512_mulhi_epu16(a, b); }
ROSE_INLINE I load_ints(const void* from) { return _mm512_loadu_si512(from); }
ROSE_INLINE void store_ints(void* to, I a) { _mm512_storeu_si512(to, a); }
ROSE_INLINE I load(const uint16_t* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
ROSE_INLINE I spread_byte(I a, int which) {
    const __m128i first = _mm_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    const __m128i bytes = _mm_add_epi8(first, _mm_set1_epi8(char(which)));
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(bytes));
}
ROSE_INLINE I two_bytes(I a, int which) {
    const __m128i first = _mm_set_epi32(int32_t(0x800d800c), int32_t(0x80098008),
                                        int32_t(0x80058004), int32_t(0x80018000));
    const __m128i bytes = _mm_add_epi32(first, _mm_set1_epi32(which * 0x00020002));
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(bytes));
}
ROSE_INLINE I shift_right(I a, int bits) { return _mm512_sra_epi32(a, _mm_cvtsi32_si128(bits)); }
template <int BITS>
ROSE_INLINE I shift_left(I a) { return _mm512_slli_epi32(a, BITS); }
template <int BITS>
ROSE_INLINE I shift_right(I a) { return _mm512_srai_epi32(a, BITS); }

ROSE_INLINE F load(const bf16* from) {
    __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return as_floats(shift_left<16>(_mm512_cvtepu16_epi32(bits)));
}
ROSE_INLINE F load(const fp16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
ROSE_INLINE F load(const int8_t* from) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return floats(_mm512_cvtepi8_epi32(bytes));
}
#if defined(ROSE_BF16)
// What is too small for a normal bf16 becomes 0.
ROSE_INLINE void store(bf16* to, F a) {
    __m256i bits = (__m256i)_mm512_cvtneps_pbh(a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}
#else
ROSE_INLINE void store_upper(bf16* to, I a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(shift_right<16>(a)));
}
#endif
ROSE_INLINE void store(fp16* to, F a) {
    __m256i bits = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}
// Whole numbers of at most 127.
ROSE_INLINE void store(int8_t* to, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a));
}

#elif defined(ROSE_AVX2)

constexpr int LANES = 8;
using F = __m256;
using I = __m256i;
using Mask = __m256;

ROSE_INLINE F load(const float* from) { return _mm256_loadu_ps(from); }
ROSE_INLINE void store(float* to, F a) { _mm256_storeu_ps(to, a); }
ROSE_INLINE F splat(float a) { return _mm256_set1_ps(a); }
ROSE_INLINE I splat(int32_t a) { return _mm256_set1_epi32(a); }
ROSE_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
ROSE_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
ROSE_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
ROSE_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
ROSE_INLINE Mask less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
ROSE_INLINE F select(Mask which, F yes, F no) { return _mm256_blendv_ps(no, yes, which); }
ROSE_INLINE F floats(I a) { return _mm256_cvtepi32_ps(a); }
ROSE_INLINE I rounded(F a) { return _mm256_cvtps_epi32(a); }
ROSE_INLINE F as_floats(I a) { return _mm256_castsi256_ps(a); }
ROSE_INLINE I as_ints(F a) { return _mm256_castps_si256(a); }
ROSE_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
ROSE_INLINE I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
ROSE_INLINE I max(I a, I b) { return _mm256_max_epi32(a, b); }
ROSE_INLINE float first(F a) { return _mm256_cvtss_f32(a); }
template <int APART>
ROSE_INLINE F swapped(F a) {
    if constexpr (APART == 4) return _mm256_permute2f128_ps(a, a, 1);
    return _mm256_permute_ps(a, APART == 2 ? 0x4e : 0xb1);
}
ROSE_INLINE I both(I a, I b) { return _mm256_and_si256(a, b); }
ROSE_INLINE I either(I a, I b) { return _mm256_or_si256(a, b); }
ROSE_INLINE I mul16(I a, I b) { return _mm256_mullo_epi16(a, b); }
ROSE_INLINE I mul16_high(I a, I b) { return _mm256_mulhi_epu16(a, b); }
ROSE_INLINE I load_ints(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
ROSE_INLINE void store_ints(void* to, I a) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), a);
}
ROSE_INLINE I load(const uint16_t* from) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
ROSE_INLINE I spread_byte(I a, int which) {
    const __m128i first = _mm_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    const __m128i bytes = _mm_add_epi8(first, _mm_set1_epi8(char(which)));
    return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(bytes));
}
ROSE_INLINE I shift_right(I a, int bits) { return _mm256_sra_epi32(a, _mm_cvtsi32_si128(bits)); }
template <int BITS>
ROSE_INLINE I shift_left(I a) { return _mm256_slli_epi32(a, BITS); }
template <int BITS>
ROSE_INLINE I shift_right(I a) { return _mm256_srai_epi32(a, BITS); }

ROSE_INLINE F load(const bf16* from) {
    __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return as_floats(shift_left<16>(_mm256_cvtepu16_epi32(bits)));
}
ROSE_INLINE F load(const fp16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
ROSE_INLINE F load(const int8_t* from) {
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return floats(_mm256_cvtepi8_epi32(bytes));
}
ROSE_INLINE void store(fp16* to, F a) {
    __m128i bits = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bits);
}
ROSE_INLINE __m128i narrowed(I a) {  // to 16 bits
    return _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}
ROSE_INLINE void store_upper(bf16* to, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrowed(shift_right<16>(a)));
}
ROSE_INLINE void store(int8_t* to, I a) {
    const __m128i halves = narrowed(a);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}

#else

constexpr int LANES = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));
using Mask = I;

ROSE_INLINE F load(const float* from) {
    F a;
    std::memcpy(&a, from, sizeof a);
    return a;
}
ROSE_INLINE void store(float* to, F a) { std::memcpy(to, &a, sizeof a); }
ROSE_INLINE F splat(float a) { return F{a, a, a, a}; }
ROSE_INLINE I splat(int32_t a) { return I{a, a, a, a}; }
#if defined(__aarch64__)
ROSE_INLINE F fma(F a, F b, F c) {
    return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
ROSE_INLINE F fma(F a, F b, F c) { return a * b + c; }
#endif
ROSE_INLINE F sqrt(F a) {
    return F{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
             __builtin_sqrtf(a[3])};
}
ROSE_INLINE F min(F a, F b) { return a < b ? a : b; }
ROSE_INLINE F max(F a, F b) { return a > b ? a : b; }
ROSE_INLINE Mask less(F a, F b) { return a < b; }
ROSE_INLINE F select(Mask which, F yes, F no) { return which ? yes : no; }
ROSE_INLINE F floats(I a) { return __builtin_convertvector(a, F); }
ROSE_INLINE F as_floats(I a) { return (F)a; }
ROSE_INLINE I as_ints(F a) { return (I)a; }
ROSE_INLINE I add(I a, I b) { return (I)((U)a + (U)b); }
ROSE_INLINE I sub(I a, I b) { return (I)((U)a - (U)b); }
ROSE_INLINE I max(I a, I b) { return a > b ? a : b; }
ROSE_INLINE float first(F a) { return a[0]; }
template <int APART>
ROSE_INLINE F swapped(F a) {
    return F{a[0 ^ APART], a[1 ^ APART], a[2 ^ APART], a[3 ^ APART]};
}
ROSE_INLINE I both(I a, I b) { return a & b; }
ROSE_INLINE I either(I a, I b) { return a | b; }
ROSE_INLINE I mul16(I a, I b) { return (I)((Halves)a * (Halves)b); }
ROSE_INLINE I load_ints(const void* from) {
    I a;
    std::memcpy(&a, from, sizeof a);
    return a;
}
ROSE_INLINE void store_ints(void* to, I a) { std::memcpy(to, &a, sizeof a); }
ROSE_INLINE I load(const uint16_t* from) { return I{from[0], from[1], from[2], from[3]}; }
ROSE_INLINE I shift_right(I a, int bits) { return a >> bits; }
ROSE_INLINE I spread_byte(I a, int which) {
    const U byte = (U)a >> 8 * which & 255, two = byte | byte << 8;
    return (I)(two | two << 16);
}
ROSE_INLINE I two_bytes(I a, int which) {
    const U two = (U)a >> 16 * which;
    return (I)((two & 255) | (two << 8 & 255 << 16));
}
template <int BITS>
ROSE_INLINE I shift_left(I a) { return (I)((U)a << BITS); }
template <int BITS>
ROSE_INLINE I shift_right(I a) { return a >> BITS; }
// Half to even, of at most 2^22: a sum with 1.5 * 2^23 has no room for a fraction.
ROSE_INLINE I rounded(F a) {
    const F shift = splat(12582912.0f);
    return sub(as_ints(a + shift), as_ints(shift));
}

#endif

// Calls body(0), body(1), ... body(COUNT - 1) with constants: what is indexed by them stays in
// registers, which loops are not sure of.
template <class Body, int... INDEX>
ROSE_INLINE void repeat(const Body& body, std::integer_sequence<int, INDEX...>) {
    (body(std::integral_constant<int, INDEX>{}), ...);
}
template <int COUNT, class Body>
ROSE_INLINE void repeat(const Body& body) {
    repeat(body, std::make_integer_sequence<int, COUNT>{});
}

// -- Numbers alone -----------------------------------------------------------------------------

ROSE_INLINE uint32_t bits_of(float a) {
    uint32_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    return bits;
}

ROSE_INLINE float float_of(uint32_t bits) {
    float a;
    std::memcpy(&a, &bits, sizeof a);
    return a;
}

ROSE_INLINE float widen(float a) { return a; }
ROSE_INLINE float widen(bf16 a) { return float_of(uint32_t(a.bits) << 16); }
inline float widen(fp16 a) {
    const uint32_t sign = uint32_t(a.bits & 0x8000) << 16, magnitude = a.bits & 0x7fff;
    if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // as a float its exponent is off by 112; the product is exact, subnormals included
    return float_of(sign | bits_of(float_of(magnitude << 13) * float_of(0x77800000)));
}

// To nearest, half to even; NaN stays NaN.
inline void narrow(float a, bf16& to) {
    const uint32_t bits = bits_of(a);
    const uint32_t up = a == a ? 0x7fff + (bits >> 16 & 1) : 0x400000;
    to.bits = uint16_t((a == a ? bits + up : bits | up) >> 16);
}
inline void narrow(float a, fp16& to) {
    const uint32_t bits = bits_of(a), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x477ff000) {  // 65520 and more, and what is no number
        to.bits = uint16_t(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    } else if (magnitude < 0x38800000) {  // subnormal: the sum has 2^-24 as its last place
        to.bits = uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    } else {
        to.bits = uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
    }
}
ROSE_INLINE void narrow(float a, float& to) { to = a; }

// -- Parts of vectors, and conversions that a level lacks --------------------------------------

ROSE_INLINE F zero() { return splat(0.0f); }
ROSE_INLINE F abs(F a) { return as_floats(both(as_ints(a), splat(int32_t(0x7fffffff)))); }

#if !defined(ROSE_AVX512) && !defined(ROSE_AVX2)
template <class T>
ROSE_INLINE F load_each(const T* from) {
    return F{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])};
}
ROSE_INLINE F load(const bf16* from) { return load_each(from); }
ROSE_INLINE F load(const fp16* from) { return load_each(from); }
ROSE_INLINE F load(const int8_t* from) {
    return F{float(from[0]), float(from[1]), float(from[2]), float(from[3])};
}
ROSE_INLINE void store(fp16* to, F a) {
    for (int lane = 0; lane < LANES; lane++) narrow(a[lane], to[lane]);
}
ROSE_INLINE void store_upper(bf16* to, I a) {
    for (int lane = 0; lane < LANES; lane++) to[lane].bits = uint16_t(uint32_t(a[lane]) >> 16);
}
ROSE_INLINE void store(int8_t* to, I a) {
    for (int lane = 0; lane < LANES; lane++) to[lane] = int8_t(a[lane]);
}
#endif

#if !defined(ROSE_BF16)
// As narrow does it.
ROSE_INLINE void store(bf16* to, F a) {
    const I bits = as_ints(a), size = both(bits, splat(int32_t(0x7fffffff)));
    const I nan = shift_right<31>(sub(splat(int32_t(0x7f800000)), size));  // all bits, or none
    const I even = add(both(shift_right<16>(bits), splat(int32_t(1))), splat(int32_t(0x7fff)));
    const I up = both(even, sub(splat(int32_t(-1)), nan));
    store_upper(to, either(add(bits, up), both(nan, splat(int32_t(0x400000)))));
}
#endif

// The first `count` <= LANES; lanes past them are 0.
template <class T>
inline F load_part(const T* from, int64_t count) {
    T lanes[LANES] = {};
    std::memcpy(lanes, from, size_t(count) * sizeof(T));
    return load(lanes);
}

template <class T, class V>  // V: F, or I for int8
inline void store_part(T* to, V a, int64_t count) {
    T lanes[LANES];
    store(lanes, a);
    std::memcpy(to, lanes, size_t(count) * sizeof(T));
}

#if defined(ROSE_VNNI)
// Adds to each lane the products of its four bytes, without signs, and four with signs.
ROSE_INLINE I dot_bytes(I all, I without, I with) {
    // not the intrinsic: gcc would copy the sum from register to register, and to memory
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(all) : "v"(without), "v"(with));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(all) : "x"(without), "x"(with));
#endif
    return all;
}
#endif

// -- Over the lanes of one vector: halves are folded until one lane is left --------------------

template <class V, class With>
ROSE_INLINE V folded(V a, const With& with) {
    const auto swap = [&](auto apart) {
        if constexpr (apart < LANES) a = with(a, (V)swapped<apart>((F)a));
    };
    swap(std::integral_constant<int, 8>{});
    swap(std::integral_constant<int, 4>{});
    swap(std::integral_constant<int, 2>{});
    swap(std::integral_constant<int, 1>{});
    return a;
}

ROSE_INLINE float sum(F a) {
    return first(folded(a, [](F x, F y) { return x + y; }));
}
ROSE_INLINE float most(F a) {
    return first(folded(a, [](F x, F y) { return max(x, y); }));
}
ROSE_INLINE int32_t first(I a) {
    const float lane = first(as_floats(a));
    int32_t bits;
    std::memcpy(&bits, &lane, sizeof bits);
    return bits;
}
ROSE_INLINE int32_t sum(I a) {
    return first(folded(a, [](I x, I y) { return add(x, y); }));
}
ROSE_INLINE int32_t most(I a) {
    return first(folded(a, [](I x, I y) { return max(x, y); }));
}

// -- Functions ---------------------------------------------------------------------------------
// Coefficients are our own minimax fits. Errors were measured over their whole range.

// a0 + a1 x + a2 x^2 + ...
template <int COUNT>
ROSE_INLINE F polynomial(F x, const float (&a)[COUNT]) {
    F value = splat(a[COUNT - 1]);
    for (int i = COUNT - 2; i >= 0; i--) value = fma(value, x, splat(a[i]));
    return value;
}

// a * 2^exponent
#if defined(ROSE_AVX512)
ROSE_INLINE F scaled(F a, I exponent) { return _mm512_scalef_ps(a, floats(exponent)); }
#else
ROSE_INLINE F power_of_two(I exponent) {
    return as_floats(shift_left<23>(add(exponent, splat(127))));
}
// In two steps, since what comes of it may be too small for a normal number.
ROSE_INLINE F scaled(F a, I exponent) {
    const I half = shift_right<1>(exponent);
    return a * power_of_two(half) * power_of_two(sub(exponent, half));
}
#endif

// Within 1 ulp or so. Over- and underflow are gradual; NaN stays NaN.
ROSE_INLINE F exp(F x) {
    constexpr float P[] = {0.50000001f, 0.166665189f, 0.041666206f, 0.00836888243f, 0.00139504768f};
    x = min(splat(90.0f), max(splat(-105.0f), x));
    const I whole = rounded(x * splat(1.44269504f));
    const F n = floats(whole);
    F r = fma(n, splat(-0.693145752f), x);  // ln 2 in two parts, the first exact times n
    r = fma(n, splat(-1.42860677e-6f), r);
    return scaled(fma(r * r, polynomial(r, P), r) + splat(1.0f), whole);
}

// Within 2 ulp or so.
ROSE_INLINE F tanh(F x) {
    constexpr float P[] = {-0.333333309f,  0.133332098f,   -0.0539472048f,
                           0.0217029697f, -0.00818267967f, 0.00214754176f};
    const F size = abs(x), square = x * x;
    const F small = fma(x * square, polynomial(square, P), x);
    const F large = splat(1.0f) - splat(2.0f) / (exp(size + size) + splat(1.0f));
    const F value = select(less(x, zero()), zero() - large, large);
    return select(less(size, splat(0.625f)), small, value);
}

// Within 2^-23 of the true value.
ROSE_INLINE F erf(F x) {
    constexpr float P[] = {1.12837917f,    -0.376126271f,   0.112836003f,  -0.0268544481f,
                           0.00518954129f, -0.000802088924f, 7.88926794e-05f};
    constexpr float Q[] = {0.000188040224f, -1.12957842f,    -0.633219893f,   -0.108418577f,
                           0.0252082567f,   -0.00420456187f, 0.000441336376f, -2.16868499e-05f};
    const F size = abs(x);
    const F small = x * polynomial(x * x, P);
    const F large = splat(1.0f) - exp(polynomial(min(splat(4.0f), size), Q));
    const F value = select(less(x, zero()), zero() - large, large);
    return select(less(size, splat(1.0f)), small, value);
}

ROSE_INLINE F gelu_tanh(F x) {
    // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)
    const F twice = x * fma(x * x, splat(-0.0713548163f), splat(-1.59576912f));
    return x / (splat(1.0f) + exp(twice));
}

ROSE_INLINE F gelu_erf(F x) {
    return x * splat(0.5f) * (splat(1.0f) + erf(x * splat(0.707106781f)));
}

ROSE_INLINE F silu(F x) { return x / (splat(1.0f) + exp(zero() - x)); }

}  // namespace
}  // namespace rose

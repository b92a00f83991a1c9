// Single lanes of vectors: which of them a mask has, as bits, and those alone.
#pragma once

#include "simd.h"

namespace rose {
namespace {

constexpr uint32_t ALL_LANES = (1u << LANES) - 1;

#if defined(ROSE_AVX512)

ROSE_INLINE uint32_t lanes(Mask which) { return which; }
ROSE_INLINE Mask mask_of(uint32_t which) { return Mask(which); }

#elif defined(ROSE_AVX2)

ROSE_INLINE uint32_t lanes(Mask which) { return uint32_t(_mm256_movemask_ps(which)); }
ROSE_INLINE Mask mask_of(uint32_t which) {
    const I own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return as_floats(_mm256_cmpeq_epi32(both(splat(int32_t(which)), own), own));
}

#else

ROSE_INLINE uint32_t lanes(Mask which) {
    return uint32_t((which[0] & 1) | (which[1] & 2) | (which[2] & 4) | (which[3] & 8));
}
ROSE_INLINE Mask mask_of(uint32_t which) { return (splat(int32_t(which)) & I{1, 2, 4, 8}) != 0; }

#endif

// Stores the lanes whose bits are set one after the other, and what does not count up to LANES.
// Returns how many.
#if defined(ROSE_AVX512)

ROSE_INLINE int pack_lanes(float* to, F a, uint32_t which) {
    store(to, _mm512_maskz_compress_ps(mask_of(which), a));
    return __builtin_popcount(which);
}

#elif defined(ROSE_AVX2)

// Of each set of lanes, their numbers in order, a byte each.
struct Orders {
    uint64_t of[256] = {};

    constexpr Orders() {
        for (uint32_t which = 0; which < 256; which++)
            for (int lane = 0, place = 0; lane < 8; lane++)
                if (which >> lane & 1) of[which] |= uint64_t(lane) << 8 * place++;
    }
};

ROSE_INLINE int pack_lanes(float* to, F a, uint32_t which) {
    static constexpr Orders ORDERS;
    const __m128i order = _mm_cvtsi64_si128(int64_t(ORDERS.of[which]));
    store(to, _mm256_permutevar8x32_ps(a, _mm256_cvtepu8_epi32(order)));
    return __builtin_popcount(which);
}

#else

ROSE_INLINE int pack_lanes(float* to, F a, uint32_t which) {
    int count = 0;
    for (int lane = 0; lane < LANES; lane++) {
        to[count] = a[lane];
        count += which >> lane & 1;
    }
    return count;
}

#endif

}  // namespace
}  // namespace rose

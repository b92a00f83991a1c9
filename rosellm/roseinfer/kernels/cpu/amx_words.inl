// The products of attention with a processor's matrix unit.
//
// Words lie as it wants them. Few rows are multiplied by vectors, from numbers that are rounded as the
// unit's are and in its order: see few_rows.inl.
#pragma once

#include "amx_unit.inl"
#include "words.inl"

namespace rose {
namespace {

// Numbers of bf16, each in 32 bits.
struct RoundedNumbers {
    static constexpr int DEPTH = 1;

    static F pack(const F (&from)[DEPTH]) {
        return as_floats(shift_left<16>(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(from[0]))));
    }
};

struct AmxWords : Bf16Words {
    static constexpr int WHOLE = AMX_PAIRS;
    using Alone = RoundedNumbers;
};

// COUNT tiles of columns: sums in 0 to 3, rows in 4, columns in 6 and 7 by turns.
template <int COUNT>
void amx_columns(const Product& p, bool adding) {
    const int64_t a_bytes = 4 * p.a_stride, b_bytes = 4 * p.b_stride, bytes = 4 * p.out_stride;
#define ROSE_COLUMNS(DO)                       \
    DO(0, 6, 0)                                \
    if constexpr (COUNT > 1) { DO(1, 7, 1) }   \
    if constexpr (COUNT > 2) { DO(2, 6, 2) }   \
    if constexpr (COUNT > 3) { DO(3, 7, 3) }
#define ROSE_BEGIN(SUM, COLUMNS, c)                   \
    if (adding)                                       \
        _tile_loadd(SUM, p.out + c * LANES, bytes);   \
    else                                              \
        _tile_zero(SUM);
#define ROSE_MULTIPLY(SUM, COLUMNS, c)                \
    _tile_loadd(COLUMNS, b + c * LANES, b_bytes);     \
    _tile_dpbf16ps(SUM, 4, COLUMNS);
#define ROSE_END(SUM, COLUMNS, c) _tile_stored(SUM, p.out + c * LANES, bytes);
    ROSE_COLUMNS(ROSE_BEGIN)
    for (int64_t w = 0; w < p.words; w += AMX_PAIRS) {
        const float* b = p.b + w * p.b_stride;
        _tile_loadd(4, p.a + w, a_bytes);
        ROSE_COLUMNS(ROSE_MULTIPLY)
    }
    ROSE_COLUMNS(ROSE_END)
#undef ROSE_COLUMNS
#undef ROSE_BEGIN
#undef ROSE_MULTIPLY
#undef ROSE_END
}

// At most TOGETHER rows.
void product(AmxWords, Product p, int64_t rows, int64_t columns, const float* decay) {
    for (int64_t r = 0; decay && r < rows; r++)
        for (int64_t c = 0; c < columns; c += LANES) {
            float* out = p.out + r * p.out_stride + c;
            store(out, load(out) * splat(decay[r]));
        }
    const AmxShapes shapes(rows, AMX_BYTES);
    for (; columns >= 4 * LANES; columns -= 4 * LANES, p.b += 4 * LANES, p.out += 4 * LANES)
        amx_columns<4>(p, decay);
    if (columns == 3 * LANES) amx_columns<3>(p, decay);
    if (columns == 2 * LANES) amx_columns<2>(p, decay);
    if (columns == LANES) amx_columns<1>(p, decay);
}

}  // namespace
}  // namespace rose

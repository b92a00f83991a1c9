// The innermost loops with a processor's matrix unit (AMX), which multiplies 16 rows by 16 outputs at
// once: 64 inputs of int8, or 32 of bf16. Packed weights lie as it wants them.
//
// Whole numbers are the same however they are added, so points are multiplied here for many rows only.
// A few rows of bf16 are multiplied in the unit's own order; see amx_unit.inl.
#pragma once

#include "amx_unit.inl"
#include "prepare.inl"
#include "tiles.inl"

namespace rose {
namespace {
namespace matmul {

// Whether the unit takes a weight's inputs without a rest. (Else it would read past the end.)
inline bool amx_takes(const Matrix& w) {
    if (quantised(w)) return padded_k(w) % amx_step(w) == 0;
    return w.format == BF16 && padded_k(w) % (2 * AMX_PAIRS) == 0;
}

// Of a row, in a step.
inline int64_t amx_bytes(const Matrix& w) { return quantised(w) ? amx_step(w) : AMX_BYTES; }

// Calls what follows for each of the unit's sums, 16 of R rows times one of C tiles of outputs: its
// number, those of its rows and outputs, the first of these rows, and the tile.
#define ROSE_FOR_SUMS(DO)                     \
    DO(0, 4, 6, 0, 0);                        \
    if constexpr (C == 2) DO(1, 4, 7, 0, 1);  \
    if constexpr (R == 32) DO(2, 5, 6, 16, 0); \
    if constexpr (R == 32 && C == 2) DO(3, 5, 7, 16, 1)

ROSE_INLINE void amx_clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Rows [R][bytes] and a step of each of C tiles of outputs.
template <int R, int C>
ROSE_INLINE void amx_load(const char* rows, int64_t bytes, const void* one, const void* other) {
    _tile_loadd(6, one, LINE);
    _tile_loadd(4, rows, bytes);
    if constexpr (C == 2) _tile_loadd(7, other, LINE);
    if constexpr (R == 32) _tile_loadd(5, rows + 16 * bytes, bytes);
}

// To sums [C][R][16].
template <int R, int C>
ROSE_INLINE void amx_store(void* sums) {
    char* to = static_cast<char*>(sums);
#define ROSE_STORE(SUM, ROWS, OUTPUTS, r, c) _tile_stored(SUM, to + (c * R + r) * LINE, LINE)
    ROSE_FOR_SUMS(ROSE_STORE);
#undef ROSE_STORE
}

// -- Points ------------------------------------------------------------------------------------

// A tile of rows as it is prepared; see prepare.inl.
template <int R>
struct AmxRows {
    const float* scales;
    const int32_t* corrections;
    const char* codes;

    AmxRows(const char* prepared, int64_t groups)
        : scales(reinterpret_cast<const float*>(prepared)),
          corrections(reinterpret_cast<const int32_t*>(scales + groups * R)),
          codes(reinterpret_cast<const char*>(corrections + groups * R)) {}
};

// The same as point_tiles.
template <int R, int C>
void amx_points(const Panel& panel, int c, const char* prepared, float* sums) {
    const Matrix& w = panel.w;
    const Offsets scales = scales_in(w), points = panel.groups();
    const int64_t k = padded_k(w), groups = groups_of(w), step = amx_step(w);
    const AmxRows<R> x(prepared, groups);
    const uint8_t *one = panel.points(c), *other = panel.points(c + C - 1);
    alignas(64) int32_t totals[2][C * R * TILE];
    const auto multiply = [&](int64_t group) {
        const int64_t first = group * w.group, last = smaller(k, first + w.group);
        const int64_t at = points(group) - first * TILE;
        amx_clear();
        for (int64_t i = first; i < last; i += step) {
            amx_load<R, C>(x.codes + i * R, step, one + at + i * TILE, other + at + i * TILE);
#define ROSE_MULTIPLY(SUM, ROWS, OUTPUTS, r, c) _tile_dpbsud(SUM, ROWS, OUTPUTS)
            ROSE_FOR_SUMS(ROSE_MULTIPLY);
#undef ROSE_MULTIPLY
        }
    };
    const auto add_to_sums = [&](int64_t group) {
        const int64_t at = scales(group);
        const float* x_scales = x.scales + group * R;
        const int32_t* corrections = x.corrections + group * R;
        const int32_t* from = totals[group % 2];
        float* to = sums;
        for (int i = 0; i < C; i++, from += R * TILE, to += R * TILE) {
            const F scale = load(panel.scales(c + i, at));
            repeat<R>([&](auto r) {
                const I total = add(load_ints(from + r * TILE), splat(corrections[r]));
                const F whole = fma(floats(total), scale * splat(x_scales[r]), load(to + r * TILE));
                store(to + r * TILE, whole);
            });
        }
    };
    std::memset(sums, 0, sizeof(float) * R * C * TILE);
    multiply(0);
    for (int64_t group = 0; group < groups; group++) {
        amx_store<R, C>(totals[group % 2]);
        if (group + 1 < groups) multiply(group + 1);  // goes on while the last one is added
        add_to_sums(group);
    }
}

// -- Pairs -------------------------------------------------------------------------------------

template <int R, int C>
void amx_pairs(const Panel& panel, int c, const char* prepared, float* sums) {
    const int64_t pairs = padded_k(panel.w) / 2;
    const char *one = panel.tile(c), *other = panel.tile(c + C - 1);
    amx_clear();
    for (int64_t pair = 0; pair < pairs; pair += AMX_PAIRS) {
        amx_load<R, C>(prepared + pair * 4 * R, AMX_BYTES, one + pair * LINE, other + pair * LINE);
#define ROSE_MULTIPLY(SUM, ROWS, OUTPUTS, r, c) _tile_dpbf16ps(SUM, ROWS, OUTPUTS)
        ROSE_FOR_SUMS(ROSE_MULTIPLY);
#undef ROSE_MULTIPLY
    }
    amx_store<R, C>(sums);
}
#undef ROSE_FOR_SUMS

// A few rows, in the unit's order.
template <int R, int C>
void ordered_pairs(const Panel& panel, int c, const char* prepared, float* sums) {
    const NormalNumbers normal;
    const int64_t pairs = padded_k(panel.w) / 2, apart = panel.apart;
    const char* tile = panel.tile(c);
    const auto* x = reinterpret_cast<const float*>(prepared);
    F all[R][C];
    repeat<R>([&](auto r) { repeat<C>([&](auto i) { all[r][i] = zero(); }); });
    for (int64_t step = 0; step < pairs; step += AMX_PAIRS) {
        F even[R][C], odd[R][C];
        repeat<R>([&](auto r) {
            repeat<C>([&](auto i) { even[r][i] = odd[r][i] = zero(); });
        });
        for (int64_t pair = 0; pair < AMX_PAIRS; pair++, x += 2 * R, tile += LINE) {
            repeat<C>([&](auto i) {
                const F first = weights_of<bf16, 0>(tile + i * apart, 0, 0);
                const F second = weights_of<bf16, 1>(tile + i * apart, 0, 0);
                repeat<R>([&](auto r) {
                    even[r][i] = fma(first, splat(x[r]), even[r][i]);
                    odd[r][i] = fma(second, splat(x[R + r]), odd[r][i]);
                });
            });
        }
        repeat<R>([&](auto r) {
            repeat<C>([&](auto i) { all[r][i] = all[r][i] + (even[r][i] + odd[r][i]); });
        });
    }
    repeat<R>([&](auto r) {
        repeat<C>([&](auto i) { store(sums + (i * R + r) * TILE, all[r][i]); });
    });
}

}  // namespace matmul
}  // namespace
}  // namespace rose

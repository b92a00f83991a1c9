// Weights of fewer bits as the innermost loops take them.
//
// The loops multiply floats, or points: codes of 8 bits, weights + 128. A format of fewer bits is
// unfolded in registers where few rows share what comes of it, and where they are many, a panel at a
// time into memory that stays in the second-level cache: beforehand, or on the way by the first rows.
// All come to the same numbers.
#pragma once

#include "matmul.h"
#include "simd.h"
#include "workspace.h"

namespace rose {
namespace {
namespace matmul {

constexpr int V = int(TILE) / LANES;  // vectors of a tile's outputs

// -- Floats ------------------------------------------------------------------------------------

// LANES outputs of input 2 * pair + ODD of a tile.
template <class T, int ODD>
ROSE_INLINE F weights_of(const char* tile, int64_t pair, int64_t output) {
    if constexpr (std::is_same<T, bf16>::value) {
        const I two = load_ints(tile + pair * LINE + output * 4);
        return as_floats(ODD ? both(two, splat(int32_t(0xffff0000))) : shift_left<16>(two));
    } else {
        return load(reinterpret_cast<const T*>(tile) + (2 * pair + ODD) * TILE + output);
    }
}

// All of a tile: [k][16].
template <class T>
void unfold_floats(const char* tile, int64_t k, float* to) {
    for (int64_t pair = 0; pair < k / 2; pair++)
        for (int64_t output = 0; output < TILE; output += LANES) {
            store(to + 2 * pair * TILE + output, weights_of<T, 0>(tile, pair, output));
            store(to + (2 * pair + 1) * TILE + output, weights_of<T, 1>(tile, pair, output));
        }
}

// -- Points ------------------------------------------------------------------------------------

// What the codes of a part mean, for LANES outputs.
struct Grid {
    I step;    // in both halves of a lane
    I offset;  // in all of its bytes

    // Of the first four inputs of a line of codes, or the next four: steps times codes, with offsets or
    // without. Products of bytes stay under 256: two neighbours are multiplied as one.
    template <int HIGH>
    ROSE_INLINE I points(I two) const {
        return add(products<HIGH>(two), offset);
    }
    template <int HIGH>
    ROSE_INLINE I products(I two) const {
#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
        // Where they stand codes are 16 times as large, and their products with steps 2^12 times as
        // large have all that counts in the upper half.
        if constexpr (HIGH) {
            const I high_step = shift_left<12>(step);  // once a part
            return mul16_high(both(two, splat(int32_t(0xf0f0f0f0))), high_step);
        }
#endif
        const I codes = both(HIGH ? shift_right<4>(two) : two, splat(int32_t(0x0f0f0f0f)));
        return mul16(codes, step);
    }
};

ROSE_INLINE Grid grid_of(const char* tile, const Part& part, int64_t output) {
    const auto* steps = reinterpret_cast<const uint16_t*>(tile + part.steps()) + output;
    const I step = both(shift_right(load(steps), 4 * part.number), splat(int32_t(15)));
    const I offsets = load_ints(tile + part.offsets() + output * PARTS);
    return {either(step, shift_left<16>(step)), spread_byte(offsets, part.number)};
}

// A part of a tile: [PART / 4][16][4].
ROSE_INLINE void unfold_part(const char* tile, const Part& part, char* to) {
    for (int64_t output = 0; output < TILE; output += LANES) {
        const Grid grid = grid_of(tile, part, output);
        const char* codes = tile + part.codes() + output * 4;
        char* at = to + output * 4;
        repeat<PART / 8>([&](auto line) {
            const I two = load_ints(codes + line * LINE);
            store_ints(at + 2 * line * LINE, grid.points<0>(two));
            store_ints(at + (2 * line + 1) * LINE, grid.points<1>(two));
        });
    }
}

// All of a tile. A block at a time: which part it is decides how bits are shifted, at no cost where it
// is known beforehand.
inline void unfold_points(const char* tile, const Matrix& w, char* to) {
    const Block4 in(w);
    const uint64_t parts = padded_k(w) / PART;
    for (uint64_t block = 0; block < parts; block += PARTS)
        repeat<PARTS>([&](auto number) ROSE_INLINED {
            const uint64_t part = block / PARTS * PARTS + number;
            if (part < parts) unfold_part(tile, Part(in, part), to + part * PART * TILE);
        });
}

// -- Panels ------------------------------------------------------------------------------------

inline bool in_pairs(const Matrix& w) {  // read as they are
#if defined(ROSE_BF16)
    return w.format == BF16;
#else
    return w.format == BF16 && false;
#endif
}

inline bool in_codes(const Matrix& w) {  // multiplied as they are, whatever the number of rows
#if defined(ROSE_WIDENING)
    return w.format == INT4;
#else
    return w.format == INT4 && false;
#endif
}

inline bool folded(const Matrix& w) {
    return (w.format == INT4 && !in_codes(w)) || w.format == FP16 || (w.format == BF16 && !in_pairs(w));
}

// Tiles of outputs side by side.
struct Panel {
    const Matrix& w;
    const char* tiles;     // the first one
    int64_t apart;         // bytes from tile to tile
    char* unfolded;        // room for all tiles, one after another, or null
    const char* coming;    // what is read next, see Coming
    int64_t pace;          // bytes of it for each input

    const char* tile(int64_t c) const { return tiles + c * apart; }

    // Where a tile of a folded format is unfolded to.
    char* room(int64_t c) const { return unfolded + c * unfolded_bytes(); }

    // [k][16] of floats, as they are or unfolded.
    const char* floats(int64_t c) const { return unfolded ? room(c) : tile(c); }

    // [k / 4][16][4] of points, the same.
    const uint8_t* points(int64_t c) const { return reinterpret_cast<const uint8_t*>(floats(c)); }

    // Where a group's points [k / 4][16][4] are from points(c) on.
    Offsets groups() const {
        return unfolded ? Offsets{0, w.group * TILE, 0, 0} : codes_in(w);
    }

    const fp16* scales(int64_t c, int64_t at) const {
        return reinterpret_cast<const fp16*>(tile(c) + at);
    }

    void make_room(int64_t count, Workspace& kept) {
        unfolded = kept.room<char>(count * unfolded_bytes());
    }

    void unfold(int64_t count) const {
        for (int64_t c = 0; c < count; c++) {
            float* floats = reinterpret_cast<float*>(room(c));
            if (w.format == INT4) unfold_points(tile(c), w, room(c));
            if (w.format == FP16) unfold_floats<fp16>(tile(c), padded_k(w), floats);
            if (w.format == BF16) unfold_floats<bf16>(tile(c), padded_k(w), floats);
        }
    }

   private:
    int64_t unfolded_bytes() const {
        return padded_k(w) * TILE * (w.format == INT4 ? 1 : int64_t(sizeof(float)));
    }
};

}  // namespace matmul
}  // namespace
}  // namespace rose

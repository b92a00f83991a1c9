// How a packed weight lies in memory: the same bytes for every dispatch level.
//
// Sixteen outputs make a tile, whose numbers lie in the order in which they are needed: inputs
// outside, outputs inside. Tiles follow each other, each a multiple of 64 bytes; inputs and outputs
// that fill up are 0.
//
//   fp32, fp16  [k][16]
//   bf16        [k / 2][16][2]
//   int8        for every two groups: scales fp16 [2][16], then codes + 128, uint8 [k / 4][16][4]
//   int4        for every block of 128 inputs: scales fp16 [groups][16]; steps [16], a nibble for
//               each part of 32; from a line's start, offsets [16], a byte for each part; codes
//               [k / 8][16][4], the first four inputs in the low halves of the bytes, the next four
//               in the high ones. The blocks of a larger group have the same scales
#pragma once

#include "kernels.h"
#include "simd.h"

namespace rose {
namespace {
namespace matmul {

constexpr int64_t TILE = 16;         // outputs of a tile
constexpr int64_t PART = 32;         // inputs of an int4 block that share a step and an offset
constexpr int64_t PARTS = 4;         // of a block
constexpr int64_t LARGEST_GROUP = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline bool quantised(const Matrix& w) { return w.format == INT8 || w.format == INT4; }

inline bool valid(const Matrix& w) {
    if (w.n < 1 || w.k < 1 || (w.gated && w.n % 2)) return false;
    if (quantised(w))  // a power of two: whole parts, and whole groups in a block or the reverse
        return w.group >= PART && w.group <= LARGEST_GROUP && (w.group & (w.group - 1)) == 0;
    return w.format == FP32 || w.format == FP16 || w.format == BF16;
}

// The inputs of a packed row.
inline int64_t padded_k(const Matrix& w) {
    return quantised(w) ? round_up(w.k, PART) : round_up(w.k, 2);
}

// How many groups so many inputs make, rounded down. It is asked in loops over groups, where
// divisions are felt.
inline int64_t in_groups(const Matrix& w, int64_t inputs) {
    return inputs >> __builtin_ctz(unsigned(w.group));
}

inline int64_t groups_of(const Matrix& w) { return in_groups(w, w.k + w.group - 1); }

// Where what belongs to a block of int4 is in it.
struct Block4 {
    int64_t steps, offsets, codes, bytes;

    explicit Block4(const Matrix& w)
        : steps(larger(1, in_groups(w, PARTS * PART)) * LINE / 2),
          offsets(round_up(steps + LINE / 2, LINE)),
          codes(offsets + LINE),
          bytes(codes + PARTS * PART * TILE / 2) {}
};

inline int64_t tiles_of(const Matrix& w) {
    return w.gated ? 2 * ceil_div(w.n / 2, TILE) : ceil_div(w.n, TILE);
}

inline int64_t bytes_of_tile(const Matrix& w) {
    const int64_t cells = padded_k(w) * TILE;
    switch (w.format) {
        case FP32: return cells * 4;
        case INT8: return cells + ceil_div(groups_of(w), 2) * LINE;
        case INT4: return cells / 2 + ceil_div(w.k, PART * PARTS) * Block4(w).codes;
        default: return cells * 2;
    }
}

inline int64_t bytes_of(const Matrix& w) { return tiles_of(w) * bytes_of_tile(w); }

inline char* tile_at(const Matrix& w, int64_t tile) {
    return static_cast<char*>(w.data) + tile * bytes_of_tile(w);
}

// Where in a tile a group's are that lie so many bytes apart, and a gap after every 2^run.
struct Offsets {
    int64_t first, each, gap;
    int run;

    int64_t operator()(int64_t group) const {
        return first + group * each + (group >> run) * gap;
    }
};

inline Offsets scales_in(const Matrix& w) {
    constexpr int64_t SCALES = LINE / 2;
    if (w.format == INT8) return {0, SCALES, 2 * w.group * TILE, 1};
    const int64_t block = Block4(w).bytes, groups = in_groups(w, PARTS * PART);
    if (groups <= 1) return {0, w.group / (PARTS * PART) * block, 0, 0};
    return {0, SCALES, block - groups * SCALES, groups == 2 ? 1 : 2};
}

// Of int8.
inline Offsets codes_in(const Matrix& w) { return {LINE, w.group * TILE, LINE, 1}; }

// An int4 part's place: its block in the tile, and its number there.
struct Part {
    const Block4& in;
    int64_t block;
    int number;

    Part(const Block4& in, uint64_t part)  // unsigned, for which division by 4 is a shift
        : in(in), block(int64_t(part / PARTS) * in.bytes), number(int(part % PARTS)) {}

    int64_t steps() const { return block + in.steps; }
    int64_t offsets() const { return block + in.offsets; }
    int64_t codes() const { return block + in.codes + number * (PART / 8) * LINE; }
};

// Where an output row lies: its tile, and its column there.
struct Place {
    int64_t tile, column;
};

inline Place place_of(const Matrix& w, int64_t row) {
    if (!w.gated) return {row / TILE, row % TILE};
    const int64_t half = w.n / 2, in_half = row % half;
    return {in_half / TILE * 2 + row / half, in_half % TILE};
}

}  // namespace matmul
}  // namespace
}  // namespace rose

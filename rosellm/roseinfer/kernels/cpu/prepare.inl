// Rows of x in the form in which the kernels of a format read them, made once a product.
//
// Rows are taken in tiles of `tile_rows`, the last one with fewer. In a tile the numbers of its
// rows for one step over the inputs stand side by side:
//
//   floats      float [k][rows]
//   rounded     the same, rounded to bf16
//   pairs       bf16 [k / 2][rows][2]
//   points      scales float [groups][rows], corrections int32 [groups][rows],
//               codes [k / 4][rows][4]
//   codes       scales and corrections, sums of parts int16 [parts / 2][rows][2], codes [k / 4][rows][4]
//   amx pairs   bf16 [k / 32][rows][32]
//   amx points  scales and corrections, codes [k / step][rows][step]
//
// A group's correction is -128 times the sum of its codes: weights are kept with 128 added.
#pragma once

#include <cfloat>

#include "matmul.h"
#include "pool.h"
#include "simd.h"
#include "unfold.inl"
#include "workspace.h"

namespace rose {
namespace {
namespace matmul {

#if defined(ROSE_WIDENING)
using Code = int16_t;  // of points: there are only products of 16 bits that cannot overflow
// Each four in the order 0, 2, 1, 3, see Quad.
ROSE_INLINE void put(Code* to, I codes) {
    constexpr int ORDER = _MM_SHUFFLE(3, 1, 2, 0);
    const __m128i low = _mm_shufflelo_epi16(narrowed(codes), ORDER);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shufflehi_epi16(low, ORDER));
}
#else
using Code = int8_t;
#endif
ROSE_INLINE void put(int8_t* to, I codes) { store(to, codes); }

enum class Form { FLOATS, ROUNDED, PAIRS, POINTS, CODES, AMX_PAIRS, AMX_POINTS };

// Sums of a row's codes in two parts that follow each other, at most 127 * PART.
struct Pair {
    int16_t of[2];
};

inline int64_t pairs_of(const Matrix& w) { return ceil_div(padded_k(w), 2 * PART); }

// The inputs of a row that AMX takes at once: 64 bytes of int8, or a whole smaller group.
inline int64_t amx_step(const Matrix& w) { return smaller(w.group, LINE); }

// Bytes that a prepared row takes.
inline int64_t prepared_bytes(const Matrix& w, Form form) {
    const int64_t k = padded_k(w), scales = quantised(w) ? groups_of(w) * 8 : 0;
    switch (form) {
        case Form::POINTS: return scales + k * int64_t(sizeof(Code));
        case Form::CODES: return scales + pairs_of(w) * int64_t(sizeof(Pair)) + k;
        case Form::AMX_POINTS: return scales + k;
        case Form::PAIRS:
        case Form::AMX_PAIRS: return k * 2;
        default: return k * 4;
    }
}

// -- One row's group in int8 -------------------------------------------------------------------

// Largest magnitude; more than any number if one of them is not finite. As bits of positive floats
// are in the order of their values, none gets lost: NaN is above infinity.
ROSE_INLINE float magnitude_of(const float* x, int64_t count) {
    const I magnitude = splat(int32_t(0x7fffffff));
    I largest = splat(int32_t(0));
    for (int64_t i = 0; i < count; i += LANES)
        largest = max(largest, both(as_ints(load(x + i)), magnitude));
    return float_of(uint32_t(most(largest)));
}

// `count` is a multiple of LANES.
template <class Code>
ROSE_INLINE void quantise_group(const float* x, int64_t count, float& scale, int32_t& correction,
                                Code* codes) {
    const float largest = magnitude_of(x, count);
    if (!(largest <= FLT_MAX)) {  // all that is made of it shall be NaN
        scale = __builtin_nanf(""), correction = 0;
        std::memset(codes, 0, size_t(count) * sizeof(Code));
        return;
    }
    const F inverse = splat(largest > 1e-30f ? 127.0f / largest : 0.0f);
    I all = splat(int32_t(0));
    for (int64_t i = 0; i < count; i += LANES) {
        const I code = rounded(load(x + i) * inverse);
        all = add(all, code);
        put(codes + i, code);
    }
    scale = largest / 127.0f;
    correction = -128 * sum(all);
}

// -- Some inputs of a tile of rows --------------------------------------------------------------

// A row, or one that only fills a tile up and is 0.
struct Row {
    const float* x;
    int64_t k;

    // How many of `count` inputs from `first` on are there.
    int64_t there(int64_t first, int64_t count) const {
        return larger(0, smaller(count, k - first));
    }
};

// Inputs [first, last) of all rows; last is at most the padded k.
struct Slice {
    const Row* rows;
    int64_t count, first, last;

    int64_t width() const { return last - first; }
};

inline void floats_of(const Row& row, int64_t first, int64_t count, float* to) {
    const int64_t there = row.there(first, count);
    if (there) std::memcpy(to, row.x + first, size_t(there) * sizeof(float));
    for (int64_t i = there; i < count; i++) to[i] = 0.0f;
}

inline void pairs_of(const Row& row, int64_t first, int64_t count, bf16* to) {
    const int64_t there = row.there(first, count), full = there / LANES * LANES;
    for (int64_t i = 0; i < full; i += LANES) store(to + i, load(row.x + first + i));
    if (full < there)
        store_part(to + full, load_part(row.x + first + full, there - full), there - full);
    for (int64_t i = there; i < count; i++) to[i].bits = 0;
}

// One group; count is a multiple of PART.
template <class Code>
void codes_of(const Row& row, int64_t first, int64_t count, float& scale,
                     int32_t& correction, Code* to) {
    float filled[LARGEST_GROUP];
    const bool whole = row.there(first, count) == count;
    if (!whole) floats_of(row, first, count, filled);
    quantise_group(whole ? row.x + first : filled, count, scale, correction, to);
}

// What a kernel reads at once for a row.
template <class T, int COUNT>
struct Cell {
    T of[COUNT];
};

#if defined(__SSE2__)
inline void interleave_four(const float* from, int64_t rows, int64_t steps, float* to) {
    int64_t step = 0;
    for (; step + 4 <= steps; step += 4) {
        __m128 a = _mm_loadu_ps(from + step), b = _mm_loadu_ps(from + steps + step);
        __m128 c = _mm_loadu_ps(from + 2 * steps + step), d = _mm_loadu_ps(from + 3 * steps + step);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(to + step * rows, a);
        _mm_storeu_ps(to + (step + 1) * rows, b);
        _mm_storeu_ps(to + (step + 2) * rows, c);
        _mm_storeu_ps(to + (step + 3) * rows, d);
    }
    for (; step < steps; step++)
        for (int64_t row = 0; row < 4; row++) to[step * rows + row] = from[row * steps + step];
}
#endif

// Cells [steps][rows] from [rows][steps]: four rows and four steps at a time.
template <class Cell>
void interleave(const Cell* from, int64_t rows, int64_t steps, Cell* to) {
    int64_t row = 0;
#if defined(__SSE2__)
    if constexpr (sizeof(Cell) == sizeof(float))
        for (; row + 4 <= rows; row += 4)
            interleave_four(reinterpret_cast<const float*>(from + row * steps), rows, steps,
                            reinterpret_cast<float*>(to + row));
#endif
    for (; row < rows; row++)
        for (int64_t step = 0; step < steps; step++) to[step * rows + row] = from[row * steps + step];
}

// Rows are made one after another, then interleaved; a row alone lies right at once.
inline void round_to_bf16(float* x, int64_t count) {
    bf16 lanes[LANES];
    for (int64_t i = 0; i < count; i += LANES) {
        store(lanes, load(x + i));
        store(x + i, load(lanes));
    }
}

inline void prepare_floats(const Slice& slice, bool round, char* tile, Workspace& kept) {
    const int64_t rows = slice.count, width = slice.width();
    float* to = reinterpret_cast<float*>(tile) + slice.first * rows;
    float* flat = rows == 1 ? to : kept.room<float>(rows * width);
    for (int64_t row = 0; row < rows; row++)
        floats_of(slice.rows[row], slice.first, width, flat + row * width);
    if (round) round_to_bf16(flat, rows * width);  // whole vectors
    if (rows > 1) interleave(flat, rows, width, to);
}

template <int TOGETHER>  // inputs of a row that stand side by side
void prepare_pairs(const Slice& slice, char* tile, Workspace& kept) {
    using Pairs = Cell<bf16, TOGETHER>;
    const int64_t rows = slice.count, width = slice.width();
    Pairs* to = reinterpret_cast<Pairs*>(tile) + slice.first / TOGETHER * rows;
    Pairs* flat = rows == 1 ? to : kept.room<Pairs>(rows * width / TOGETHER);
    for (int64_t row = 0; row < rows; row++)
        pairs_of(slice.rows[row], slice.first, width, flat[row * width / TOGETHER].of);
    if (rows > 1) interleave(flat, rows, width / TOGETHER, to);
}

// Sums of the parts of a slice's rows, each of which has its codes in one piece. What a last pair
// lacks is 0.
inline void add_up_parts(const Slice& slice, const int8_t* flat, Pair* sums) {
    const int64_t width = slice.width(), parts = width / PART;
    for (int64_t row = 0; row < slice.count; row++)
        for (int64_t part = 0; part < round_up(parts, 2); part++) {
            int32_t sum = 0;
            if (part < parts)
                for (int64_t i = 0; i < PART; i++) sum += flat[row * width + part * PART + i];
            const int64_t pair = (slice.first / PART + part) / 2;
            sums[pair * slice.count + row].of[part % 2] = int16_t(sum);
        }
}

template <class Code, int TOGETHER>
void prepare_codes(const Matrix& w, const Slice& slice, bool add_up, char* tile, Workspace& kept) {
    using Codes = Cell<Code, TOGETHER>;
    const int64_t rows = slice.count, width = slice.width(), groups = groups_of(w);
    auto* scales = reinterpret_cast<float*>(tile);
    auto* corrections = reinterpret_cast<int32_t*>(scales + groups * rows);
    auto* parts = reinterpret_cast<Pair*>(corrections + groups * rows);
    auto* all = reinterpret_cast<Codes*>(parts + (add_up ? pairs_of(w) * rows : 0));
    auto* to = all + slice.first / TOGETHER * rows;
    auto* flat = rows == 1 ? to : kept.room<Codes>(rows * width / TOGETHER);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = slice.first; first < slice.last; first += w.group) {
            const int64_t at = first / w.group * rows + row;
            codes_of(slice.rows[row], first, smaller(w.group, slice.last - first), scales[at],
                     corrections[at], flat[(row * width + first - slice.first) / TOGETHER].of);
        }
    if constexpr (sizeof(Code) == 1)
        if (add_up) add_up_parts(slice, flat->of, parts);
    if (rows > 1) interleave(flat, rows, width / TOGETHER, to);
}

inline void prepare_slice(const Matrix& w, Form form, const Slice& slice, char* tile) {
    thread_local Workspace kept;
    switch (form) {
        case Form::FLOATS: return prepare_floats(slice, false, tile, kept);
        case Form::ROUNDED: return prepare_floats(slice, true, tile, kept);
        case Form::PAIRS: return prepare_pairs<2>(slice, tile, kept);
        case Form::POINTS: return prepare_codes<Code, 4>(w, slice, false, tile, kept);
        case Form::CODES: return prepare_codes<int8_t, 4>(w, slice, true, tile, kept);
        case Form::AMX_PAIRS: return prepare_pairs<32>(slice, tile, kept);
        case Form::AMX_POINTS:
            if (amx_step(w) == 32) return prepare_codes<int8_t, 32>(w, slice, false, tile, kept);
            return prepare_codes<int8_t, 64>(w, slice, false, tile, kept);
    }
}

#if defined(ROSE_AMX)
constexpr int MOST_ROWS = 32;        // of a tile
#else
constexpr int MOST_ROWS = 12;
#endif
constexpr int64_t SLICE = 512;       // inputs that are prepared at a time: some whole groups
constexpr int64_t WORTH_SHARING = 8192;  // numbers; less is done before a thread has woken

// Rows [first, first + count) of x in tiles of `tile_rows`, the last one of `last_rows`.
inline void prepare(const Matrix& w, Form form, const Rows& x, int64_t first, int64_t count,
                    int64_t tile_rows, int64_t last_rows, char* to) {
    const int64_t tiles = ceil_div(count, tile_rows), slices = ceil_div(padded_k(w), SLICE);
    const auto one = [&](int64_t unit, int) {
        const int64_t tile = unit / slices, begin = unit % slices * SLICE;
        const int64_t rows = tile + 1 < tiles ? tile_rows : last_rows;
        Row taken[MOST_ROWS] = {};
        for (int64_t i = 0; i < smaller(rows, count - tile * tile_rows); i++) {
            const int64_t row = first + tile * tile_rows + i;
            taken[i] = {x.data + (x.index ? x.index[row] : row) * x.stride, w.k};
        }
        const Slice slice{taken, rows, begin, smaller(begin + SLICE, padded_k(w))};
        prepare_slice(w, form, slice, to + tile * tile_rows * prepared_bytes(w, form));
    };
    if (count * w.k >= WORTH_SHARING) return parallel_for(tiles * slices, one);
    for (int64_t unit = 0; unit < tiles * slices; unit++) one(unit, 0);
}

}  // namespace matmul
}  // namespace
}  // namespace rose

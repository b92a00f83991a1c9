// Attention over a cache in 8 bits in whole numbers, where there are 8-bit dot products.
//
// Queries, and what positions weigh, become whole numbers of two digits, 128 * high + low, times a
// scale of their row: at most 2^-15 of a row's largest is lost. Keys and values are multiplied as they
// lie, four of a position or of four positions at a time, with nothing to be converted. All sums are
// exact, so that their order is free, but for the one in fp32 of what blocks of positions come to.
#pragma once

#include <cfloat>

#include "few_rows.inl"

#if defined(ROSE_AVX512) && !defined(ROSE_AMX)
#define ROSE_BYTES
#endif

namespace rose {
namespace {

// Levels that have no such products, or a better unit for many rows, do without.
template <class Element>
constexpr bool in_bytes() {
#if defined(ROSE_BYTES)
    return std::is_same<Element, int8_t>::value;
#else
    return false;
#endif
}

// Rows that take keys and values as they lie, at most.
template <class Element>
constexpr int64_t few_rows() {
    return in_bytes<Element>() ? 4 : FEW_ROWS;
}

// What a row of whole numbers is worth.
struct Worth {
    float scale;
    int32_t start;  // -128 times their sum: what they are multiplied with is taken for 128 more
};

constexpr int64_t CELL = 4;  // numbers that are multiplied as one

#if defined(ROSE_BYTES)

// Digits of `count` numbers, whole vectors of them.
inline Worth to_digits(const float* from, int64_t count, int32_t* high, int32_t* low) {
    F largest = zero(), odd = zero();
    for (int64_t i = 0; i < count; i += LANES) {
        const F a = load(from + i);
        largest = max(abs(a), largest), odd = odd + (a - a);
    }
    const float scale = most(largest) / (127 * 128);
    const F inverse = splat(scale >= FLT_MIN ? 1.0f / scale : 0.0f);
    I all = splat(int32_t(0));
    for (int64_t i = 0; i < count; i += LANES) {
        const I number = rounded(load(from + i) * inverse);
        const I upper = shift_right<7>(add(number, splat(int32_t(64))));
        store(reinterpret_cast<int8_t*>(high) + i, upper);
        store(reinterpret_cast<int8_t*>(low) + i, sub(number, shift_left<7>(upper)));
        all = add(all, number);
    }
    return {scale + sum(odd), int32_t(-128u * uint32_t(sum(all)))};  // which of no numbers overflows
}

ROSE_INLINE F worth(I high, I low, const Worth& row) {
    return floats(add(add(shift_left<7>(high), low), splat(row.start))) * splat(row.scale);
}

// Bytes of the cache without their signs: 128 more.
ROSE_INLINE I unsigned_bytes(I a) { return _mm512_xor_si512(a, splat(int32_t(0x80808080))); }

// A line's, or as many as there are, and zeros.
ROSE_INLINE I load_bytes(const int8_t* from, int64_t count) {
    const __mmask64 there = count >= LINE ? ~__mmask64(0) : (__mmask64(1) << count) - 1;
    return _mm512_maskz_loadu_epi8(there, from);
}

// Quarters as if they were numbers of a square that is turned.
ROSE_INLINE void turn_quarters(I (&a)[4]) {
    const I low = _mm512_shuffle_i32x4(a[0], a[1], 0x44);
    const I high = _mm512_shuffle_i32x4(a[0], a[1], 0xee);
    const I low2 = _mm512_shuffle_i32x4(a[2], a[3], 0x44);
    const I high2 = _mm512_shuffle_i32x4(a[2], a[3], 0xee);
    a[0] = _mm512_shuffle_i32x4(low, low2, 0x88), a[1] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    a[2] = _mm512_shuffle_i32x4(high, high2, 0x88), a[3] = _mm512_shuffle_i32x4(high, high2, 0xdd);
}

// Cells of LANES keys, of a line of each from `at` on: what a row of the square has becomes a column.
ROSE_INLINE void turn_keys(const int8_t* const* rows, int64_t at, int64_t left, int32_t* to,
                           int64_t stride) {
    F square[LANES];
    repeat<LANES>([&](auto i) ROSE_INLINED {
        square[i] = as_floats(load_bytes(rows[i] + at, left));
    });
    transpose(square);
    repeat<LANES>([&](auto i) ROSE_INLINED {
        store_ints(to + i * stride, unsigned_bytes(as_ints(square[i])));
    });
}

// Cells of four positions: of a line of each, what their columns 16 * q + 4 * j + (0 to 3) have stands
// in quarter q of vector j.
ROSE_INLINE void cells_of(const I (&lines)[CELL], I (&cells)[CELL]) {
    const I low = _mm512_unpacklo_epi8(lines[0], lines[1]);
    const I high = _mm512_unpackhi_epi8(lines[0], lines[1]);
    const I low2 = _mm512_unpacklo_epi8(lines[2], lines[3]);
    const I high2 = _mm512_unpackhi_epi8(lines[2], lines[3]);
    cells[0] = unsigned_bytes(_mm512_unpacklo_epi16(low, low2));
    cells[1] = unsigned_bytes(_mm512_unpackhi_epi16(low, low2));
    cells[2] = unsigned_bytes(_mm512_unpacklo_epi16(high, high2));
    cells[3] = unsigned_bytes(_mm512_unpackhi_epi16(high, high2));
}

// The same of some columns of four rows from `at` on, in the order of the columns.
ROSE_INLINE void turn_values(const int8_t* const* rows, int64_t at, int64_t left, int32_t* to) {
    I lines[CELL], cells[CELL];
    repeat<CELL>([&](auto i) { lines[i] = load_bytes(rows[i] + at, left); });
    cells_of(lines, cells);
    turn_quarters(cells);
    repeat<CELL>([&](auto i) { store_ints(to + i * LANES, cells[i]); });
}

// -- Few rows: of LANES keys at a time, and of four positions ------------------------------------

// Scores [ROWS, TAKEN] of TAKEN keys.
template <int ROWS>
void score_bytes(const Lying<int8_t>& keys, const int32_t* queries, int64_t stride, const Worth* worths,
                 float* scores, int64_t scores_stride, Coming<int8_t>& coming) {
    const int64_t cells = keys.dim / CELL;
    alignas(64) int32_t turned[KEY_GROUPS][LANES * LANES];
    Coming<int8_t> ahead = coming;  // in registers
    I high[KEY_GROUPS][ROWS], low[KEY_GROUPS][ROWS];
    repeat<KEY_GROUPS>([&](auto g) {
        repeat<ROWS>([&](auto r) { high[g][r] = low[g][r] = splat(int32_t(0)); });
    });
    for (int64_t at = 0; at < keys.dim; at += LINE) {
        repeat<KEY_GROUPS>([&](auto g) ROSE_INLINED {
            ahead.template ask<LANES>();
            turn_keys(keys.positions + g * LANES, keys.offset + at, LINE, turned[g], LANES);
        });
        for (int64_t cell = 0; cell < LANES; cell++) {
            I key[KEY_GROUPS];
            repeat<KEY_GROUPS>([&](auto g) { key[g] = load_ints(turned[g] + cell * LANES); });
            const int32_t* query = queries + at / CELL + cell;
            repeat<ROWS>([&](auto r) ROSE_INLINED {
                const I upper = splat(query[r * stride]), lower = splat(query[r * stride + cells]);
                repeat<KEY_GROUPS>([&](auto g) ROSE_INLINED {
                    high[g][r] = dot_bytes(high[g][r], key[g], upper);
                    low[g][r] = dot_bytes(low[g][r], key[g], lower);
                });
            });
        }
    }
    repeat<KEY_GROUPS>([&](auto g) {
        repeat<ROWS>([&](auto r) {
            store(scores + r * scores_stride + g * LANES, worth(high[g][r], low[g][r], worths[r]));
        });
    });
    coming = ahead;
}

// Weights of a head's rows as digits: those of positions [0, BLOCK) of each row, high and then low ones.
struct ByteWeights {
    const int32_t* digits;
    int64_t stride, low;  // from row to row; from high digits to low ones
};

// Adds to sums [ROWS, columns of the head, in the order of cells_of] values [from, to) of a block times
// weights; from and to are multiples of four. Two digits: 128 * high + low.
template <int ROWS>
void add_bytes(const Lying<int8_t>& values, int64_t from, int64_t to, const ByteWeights& weights,
               int32_t* sums, int64_t stride, Coming<int8_t>& coming) {
    Coming<int8_t> ahead = coming;
    for (int64_t column = 0; column < values.dim; column += LINE, sums += LINE) {
        I high[ROWS][CELL], low[ROWS][CELL];
        repeat<ROWS>([&](auto r) {
            repeat<CELL>([&](auto j) { high[r][j] = low[r][j] = splat(int32_t(0)); });
        });
        for (int64_t i = from; i < to; i += CELL) {
            I lines[CELL], cells[CELL];
            repeat<CELL>([&](auto j) { lines[j] = load_ints(values.at(i + j) + column); });
            ahead.template ask<CELL>();
            cells_of(lines, cells);
            repeat<ROWS>([&](auto r) ROSE_INLINED {
                const int32_t* digits = weights.digits + r * weights.stride + i / CELL;
                const I upper = splat(digits[0]), lower = splat(digits[weights.low]);
                repeat<CELL>([&](auto j) ROSE_INLINED {
                    high[r][j] = dot_bytes(high[r][j], cells[j], upper);
                    low[r][j] = dot_bytes(low[r][j], cells[j], lower);
                });
            });
        }
        repeat<ROWS>([&](auto r) {
            repeat<CELL>([&](auto j) {
                int32_t* all = sums + r * stride + j * LANES;
                store_ints(all, add(load_ints(all), add(shift_left<7>(high[r][j]), low[r][j])));
            });
        });
    }
    coming = ahead;
}

// Out of a block's sums of a row, in the order of cells_of: adds to what is there times decay.
inline void finish_bytes(const int32_t* sums, int64_t columns, const Worth& row, float decay,
                         float* out) {
    for (int64_t column = 0; column < columns; column += LINE) {
        I cells[CELL];
        repeat<CELL>([&](auto j) { cells[j] = load_ints(sums + column + j * LANES); });
        turn_quarters(cells);
        repeat<CELL>([&](auto j) {
            float* to = out + column + j * LANES;
            const F sum = worth(splat(int32_t(0)), cells[j], row);
            store(to, load(to) * splat(decay) + sum);
        });
    }
}

// -- Many rows: with cells that are laid out before ----------------------------------------------

// Rows of digits [rows][2][...] by cells [cells, columns].
struct ByteProduct {
    const int32_t* a;
    int64_t a_stride, low;  // from row to row; from high digits to low ones
    const Worth* worths;
    const int32_t* b;
    int64_t b_stride, cells;
};

constexpr int WIDE = 2;  // vectors of columns side by side

template <int ROWS, class Put>
ROSE_INLINE void byte_tile(const ByteProduct& p, int64_t column, const Put& put) {
    I high[ROWS][WIDE], low[ROWS][WIDE];
    repeat<ROWS>([&](auto r) {
        repeat<WIDE>([&](auto c) { high[r][c] = low[r][c] = splat(int32_t(0)); });
    });
    for (int64_t cell = 0; cell < p.cells; cell++) {
        I b[WIDE];
        repeat<WIDE>([&](auto c) { b[c] = load_ints(p.b + cell * p.b_stride + column + c * LANES); });
        repeat<ROWS>([&](auto r) ROSE_INLINED {
            const int32_t* a = p.a + r * p.a_stride + cell;
            const I upper = splat(a[0]), lower = splat(a[p.low]);
            repeat<WIDE>([&](auto c) ROSE_INLINED {
                high[r][c] = dot_bytes(high[r][c], b[c], upper);
                low[r][c] = dot_bytes(low[r][c], b[c], lower);
            });
        });
    }
    repeat<ROWS>([&](auto r) {
        repeat<WIDE>([&](auto c) {
            put(int64_t(r), column + c * LANES, worth(high[r][c], low[r][c], p.worths[r]));
        });
    });
}

// Calls put(row, column, LANES results) for columns [begin, end), multiples of 2 * LANES.
template <int MOST, class Put>
void byte_product(const ByteProduct& p, int64_t rows, int64_t begin, int64_t end, const Put& put) {
    if constexpr (MOST > 1)
        if (rows < MOST) return byte_product<MOST - 1>(p, rows, begin, end, put);
    for (int64_t column = begin; column < end; column += WIDE * LANES) byte_tile<MOST>(p, column, put);
}

#endif

}  // namespace
}  // namespace rose

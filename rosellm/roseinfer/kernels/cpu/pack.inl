// Packing of weights, and looking up their rows.
#pragma once

#include <initializer_list>

#include "matmul.h"
#include "pool.h"
#include "simd.h"
#include "workspace.h"

namespace rose {
namespace {
namespace matmul {

// -- One group of a row in few bits ------------------------------------------------------------

ROSE_INLINE float held(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

inline int whole(float x) { return int(__builtin_rintf(x)); }

inline float as_fp16(float x, fp16& stored) {
    narrow(x, stored);
    return widen(stored);
}

inline void range_of(const float* x, int64_t count, float& low, float& high) {
    low = high = count ? x[0] : 0.0f;
    for (int64_t i = 1; i < count; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
}

// int8 to nearest: the largest number gets 127.
inline void quantise8(const float* x, int64_t count, fp16& scale, uint8_t* codes) {
    float low, high;
    range_of(x, count, low, high);
    const float step = as_fp16((-low > high ? -low : high) / 127.0f, scale);
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (int64_t i = 0; i < count; i++)
        codes[i] = uint8_t(128 + whole(held(x[i] * inverse, -127.0f, 127.0f)));
}

constexpr int64_t MOST_PARTS = LARGEST_GROUP / PART;

struct Group4 {
    fp16 scale;
    uint8_t steps[MOST_PARTS], offsets[MOST_PARTS], codes[LARGEST_GROUP];
};

// One part of 32 to nearest, on a grid that is given.
inline void quantise_part(const float* x, int64_t count, float scale, float low, float high,
                          uint8_t& step, uint8_t& offset, uint8_t* codes) {
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    step = uint8_t(held(__builtin_rintf((high - low) * inverse / 15.0f), 1.0f, 15.0f));
    // what is rounded away from the range is taken from both of its ends
    const float middle = (low + high) * 0.5f * inverse + 128.0f;
    offset = uint8_t(held(__builtin_rintf(middle - 7.5f * step), 0.0f, 255.0f - 15.0f * step));
    const float base = 128.0f - offset, over_step = 1.0f / step;
    for (int64_t i = 0; i < count; i++)
        codes[i] = uint8_t(whole(held((x[i] * inverse + base) * over_step, 0.0f, 15.0f)));
}

// int4 to nearest: the grid is the finest on which every part finds room.
inline void quantise4(const float* x, int64_t count, Group4& to) {
    float low[MOST_PARTS], high[MOST_PARTS], scale = 0.0f;
    const int64_t parts = ceil_div(count, PART);
    for (int64_t part = 0; part < parts; part++) {
        range_of(x + part * PART, smaller(PART, count - part * PART), low[part], high[part]);
        for (float needed : {(high[part] - low[part]) / 225.0f, low[part] / -128.0f,
                             high[part] / 127.0f})
            scale = needed > scale ? needed : scale;
    }
    scale = as_fp16(scale, to.scale);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = part * PART;
        quantise_part(x + first, smaller(PART, count - first), scale, low[part], high[part],
                      to.steps[part], to.offsets[part], to.codes + first);
    }
}

// -- One row into its column -------------------------------------------------------------------

template <class T>
void put_row(char* tile, int64_t column, const float* row, int64_t k) {
    T* cells = reinterpret_cast<T*>(tile) + column;
    for (int64_t i = 0; i < k; i++) narrow(row[i], cells[i * TILE]);
}

inline void put_pairs(char* tile, int64_t column, const float* row, int64_t k) {
    bf16* cells = reinterpret_cast<bf16*>(tile) + 2 * column;
    for (int64_t i = 0; i < k; i++) narrow(row[i], cells[i / 2 * 2 * TILE + i % 2]);
}

inline void put_codes8(const Matrix& w, char* tile, int64_t column, int64_t group, fp16 scale,
                       const uint8_t* codes, int64_t count) {
    reinterpret_cast<fp16*>(tile + scales_in(w)(group))[column] = scale;
    char* cells = tile + codes_in(w)(group) + column * 4;
    for (int64_t i = 0; i < count; i++) cells[i / 4 * LINE + i % 4] = char(codes[i]);
}

inline void put_codes4(const Matrix& w, char* tile, int64_t column, int64_t group,
                       const Group4& from, int64_t count) {
    const Block4 block(w);
    for (int64_t part = 0; part * PART < count; part++) {
        const Part at(block, group * w.group / PART + part);
        const int64_t scales = at.block + at.number * PART / w.group * (LINE / 2);
        reinterpret_cast<fp16*>(tile + scales)[column] = from.scale;
        char& two_steps = tile[at.steps() + column * 2 + at.number / 2];
        two_steps = char(two_steps | from.steps[part] << at.number % 2 * 4);
        tile[at.offsets() + column * PARTS + at.number] = char(from.offsets[part]);
        for (int64_t i = 0; i < smaller(PART, count - part * PART); i++) {
            char& two_codes = tile[at.codes() + i / 8 * LINE + column * 4 + i % 4];
            two_codes = char(two_codes | from.codes[part * PART + i] << i % 8 / 4 * 4);
        }
    }
}

inline void put_quantised(const Matrix& w, char* tile, int64_t column, const float* row) {
    for (int64_t group = 0; group < groups_of(w); group++) {
        const int64_t first = group * w.group, count = smaller(w.group, w.k - first);
        if (w.format == INT8) {
            fp16 scale;
            uint8_t codes[LARGEST_GROUP];
            quantise8(row + first, count, scale, codes);
            put_codes8(w, tile, column, group, scale, codes, count);
        } else {
            Group4 found;
            quantise4(row + first, count, found);
            put_codes4(w, tile, column, group, found, count);
        }
    }
}

inline void put_plain(const Matrix& w, char* tile, int64_t column, const float* row) {
    switch (w.format) {
        case FP32: return put_row<float>(tile, column, row, w.k);
        case FP16: return put_row<fp16>(tile, column, row, w.k);
        case BF16: return put_pairs(tile, column, row, w.k);
        default: return put_quantised(w, tile, column, row);
    }
}

inline void put_given(const Matrix& w, char* tile, int64_t column, const Codes& rows, int64_t row) {
    const int64_t groups = groups_of(w), parts = ceil_div(w.k, PART);
    const uint8_t* codes = static_cast<const uint8_t*>(rows.codes) + row * w.k;
    for (int64_t group = 0; group < groups; group++) {
        const int64_t first = group * w.group, count = smaller(w.group, w.k - first);
        Group4 made = {};
        narrow(rows.scales[row * groups + group], made.scale);
        if (w.format == INT8) {
            uint8_t shifted[LARGEST_GROUP];
            for (int64_t i = 0; i < count; i++) shifted[i] = uint8_t(codes[first + i] + 128);
            put_codes8(w, tile, column, group, made.scale, shifted, count);
        } else {
            const int64_t part = first / PART, there = ceil_div(count, PART);
            std::memcpy(made.steps, rows.steps + row * parts + part, size_t(there));
            std::memcpy(made.offsets, rows.offsets + row * parts + part, size_t(there));
            std::memcpy(made.codes, codes + first, size_t(count));
            put_codes4(w, tile, column, group, made, count);
        }
    }
}

// -- Many rows ---------------------------------------------------------------------------------

// Calls put(tile, column, i) for every row first + i; one thread has all of a tile's.
template <class Put>
void for_packed_rows(const Matrix& w, int64_t first, int64_t count, const Put& put) {
    // rows of a tile are neighbours but in a gated matrix, where each half has its own
    const int64_t half = w.gated ? w.n / 2 : w.n, per_half = ceil_div(half, TILE);
    parallel_for(w.n / half * per_half, [&](int64_t run, int) {
        const int64_t begin = run / per_half * half + run % per_half * TILE;
        const int64_t end = smaller(begin + TILE, (run / per_half + 1) * half);
        for (int64_t row = larger(begin, first); row < smaller(end, first + count); row++) {
            const Place place = place_of(w, row);
            put(tile_at(w, place.tile), place.column, row - first);
        }
    });
}

template <class T>
void widen_row(const Plain& rows, int64_t row, int64_t k, float* to) {
    const T* from = static_cast<const T*>(rows.data) + row * rows.stride;
    for (int64_t i = 0; i < k; i++) to[i] = widen(from[i]);
}

void pack(const Matrix& w, int64_t first, int64_t count, const Plain& rows) {
    for_packed_rows(w, first, count, [&](char* tile, int64_t column, int64_t row) {
        thread_local Workspace kept;
        float* wide = kept.room<float>(w.k);
        if (rows.format == FP32) widen_row<float>(rows, row, w.k, wide);
        if (rows.format == FP16) widen_row<fp16>(rows, row, w.k, wide);
        if (rows.format == BF16) widen_row<bf16>(rows, row, w.k, wide);
        put_plain(w, tile, column, wide);
    });
}

void pack_codes(const Matrix& w, int64_t first, int64_t count, const Codes& rows) {
    for_packed_rows(w, first, count, [&](char* tile, int64_t column, int64_t row) {
        put_given(w, tile, column, rows, row);
    });
}

// -- Rows of a packed table --------------------------------------------------------------------

template <class T>
void get_row(const char* tile, int64_t column, int64_t k, float* row) {
    const T* cells = reinterpret_cast<const T*>(tile) + column;
    for (int64_t i = 0; i < k; i++) row[i] = widen(cells[i * TILE]);
}

inline void get_pairs(const char* tile, int64_t column, int64_t k, float* row) {
    const bf16* cells = reinterpret_cast<const bf16*>(tile) + 2 * column;
    for (int64_t i = 0; i < k; i++) row[i] = widen(cells[i / 2 * 2 * TILE + i % 2]);
}

// A group's codes of int8 in one column, up to three more than are there.
inline void get_codes8(const Matrix& w, const char* tile, int64_t column, int64_t group,
                       int64_t count, uint8_t* points) {
    const char* cells = tile + codes_in(w)(group) + column * 4;
    for (int64_t i = 0; i < ceil_div(count, 4); i++) std::memcpy(points + i * 4, cells + i * LINE, 4);
}

// The points of a part of int4, on its group's grid of 256, in one column.
inline void get_part4(const Block4& block, const char* tile, int64_t column, int64_t part,
                      uint8_t* points) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(tile);
    const Part at(block, uint64_t(part));
    const int step = bytes[at.steps() + column * 2 + at.number / 2] >> at.number % 2 * 4 & 15;
    const int offset = bytes[at.offsets() + column * PARTS + at.number];
    for (int64_t line = 0; line < PART / 8; line++) {
        uint32_t two_codes;
        std::memcpy(&two_codes, bytes + at.codes() + line * LINE + column * 4, 4);
        const uint32_t halves[] = {two_codes & 0x0f0f0f0f, two_codes >> 4 & 0x0f0f0f0f};
        std::memcpy(points + line * 8, halves, 8);
    }
    for (int64_t i = 0; i < PART; i++) points[i] = uint8_t(step * points[i] + offset);
}

inline void get_quantised(const Matrix& w, const char* tile, int64_t column, float* row) {
    const Block4 block(w);
    for (int64_t group = 0; group < groups_of(w); group++) {
        const int64_t first = group * w.group, count = smaller(w.group, w.k - first);
        uint8_t points[LARGEST_GROUP];
        if (w.format == INT8) get_codes8(w, tile, column, group, count, points);
        for (int64_t i = 0; w.format == INT4 && i < count; i += PART)
            get_part4(block, tile, column, (first + i) / PART, points + i);
        const float scale = widen(reinterpret_cast<const fp16*>(tile + scales_in(w)(group))[column]);
        for (int64_t i = 0; i < count; i++) row[first + i] = scale * float(points[i] - 128);
    }
}

inline void get_any(const Matrix& w, int64_t row, float* to) {
    const Place place = place_of(w, row);
    const char* tile = tile_at(w, place.tile);
    switch (w.format) {
        case FP32: return get_row<float>(tile, place.column, w.k, to);
        case FP16: return get_row<fp16>(tile, place.column, w.k, to);
        case BF16: return get_pairs(tile, place.column, w.k, to);
        default: return get_quantised(w, tile, place.column, to);
    }
}

void lookup(const Matrix& table, const int64_t* ids, int64_t count, float* y, int64_t y_stride) {
    parallel_for(count, [&](int64_t i, int) { get_any(table, ids[i], y + i * y_stride); });
}

}  // namespace matmul
}  // namespace
}  // namespace rose

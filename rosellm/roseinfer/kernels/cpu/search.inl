// The search for scales, steps and offsets of weights in 4 bits: what quant/scales.py does in torch,
// which says why. A lane is a row: nothing is summed over lanes, so a row's result is its own.
#pragma once

#include "kernels.h"
#include "pool.h"
#include "simd.h"

namespace rose {
namespace {
namespace search {

constexpr int64_t PART = 32, MOST_PARTS = 8;
constexpr float ZERO = 128, MOST_POINT = 255, MOST_CODE = 15, MOST_STEP = 15;
constexpr float LEAST_SCALE = 0x1p-24f, MOST_SCALE = 65504;

// In how many steps a part's range is tried to be divided, and how scales are tried for a group
// relative to the one at which its numbers just fit.
constexpr float SPANS[] = {13, 13.5f, 14, 14.5f, 15, 15.5f, 16, 16.5f, 17, 17.5f};
constexpr float GRIDS[] = {0.92f, 0.96f, 1, 1.02f, 1.04f, 1.06f, 1.08f, 1.1f, 1.12f, 1.14f};

// 32 columns, and how much their squared errors count: 0 for those that only fill up.
struct Part {
    F x[PART];
    float h[PART];
    float total;  // of h
    F least, greatest;
};

struct Group {
    Part parts[MOST_PARTS];
    int64_t count;
};

// Of a part, beside the group's scale: whole numbers.
struct Choice {
    F step, offset;
};

// The same without a grid.
struct Line {
    F step, start;
};

ROSE_INLINE F over(F a, F b) { return select(less(zero(), abs(b)), a / b, zero()); }
ROSE_INLINE F inverse_of(F a) { return over(splat(1.0f), a); }
ROSE_INLINE F held(F a, float low, float high) { return min(max(a, splat(low)), splat(high)); }
ROSE_INLINE F nearest(F a) { return floats(rounded(a)); }
ROSE_INLINE F floor(F a) { return nearest(a) - select(less(a, nearest(a)), splat(1.0f), zero()); }
ROSE_INLINE F ceil(F a) { return zero() - floor(zero() - a); }
ROSE_INLINE F code_at(F points) { return nearest(held(points, 0, MOST_CODE)); }

// Rounded to fp16, but not to 0.
ROSE_INLINE F storable(F scale) {
    fp16 halves[LANES];
    store(halves, min(scale, splat(MOST_SCALE)));
    return select(less(zero(), scale), max(load(halves), splat(LEAST_SCALE)), zero());
}

// The whole offset next to a point, such that all codes stay on the grid.
ROSE_INLINE F offset_at(F point, F step) {
    return min(nearest(held(point, 0, MOST_POINT)), splat(MOST_POINT) - splat(MOST_CODE) * step);
}

// Codes of a part's columns, by index.
struct Coder {
    const Part& part;
    F factor, shift;

    Coder(const Part& from, F scale, const Choice& choice) : part(from) {
        const F slope = inverse_of(choice.step);
        factor = inverse_of(scale) * slope;
        shift = (splat(ZERO) - choice.offset) * slope;
    }
    ROSE_INLINE F operator()(int64_t i) const { return code_at(fma(part.x[i], factor, shift)); }
};

// Squared error of a part.
F error_of(const Part& part, F scale, const Choice& choice) {
    const Coder code(part, scale, choice);
    const F slope = choice.step * scale, base = (choice.offset - splat(ZERO)) * scale;
    F total = zero();
    for (int64_t i = 0; i < PART; i++) {
        const F off = fma(code(i), slope, base) - part.x[i];
        total = fma(off * off, splat(part.h[i]), total);
    }
    return total;
}

// The best line for the codes of another, and how much of the squares it explains. Numbers are
// taken from their weighted mean, which loses no digits where that is far from 0.
F least_squares(const Part& part, F mean, Line& line) {
    const F factor = inverse_of(line.step), shift = zero() - (line.start + mean) * factor;
    F product = zero(), codes = zero(), squares = zero();
    for (int64_t i = 0; i < PART; i++) {
        const F code = code_at(fma(part.x[i], factor, shift)), counted = code * splat(part.h[i]);
        product = fma(part.x[i] - mean, counted, product);
        codes = codes + counted;
        squares = fma(code, counted, squares);
    }
    const F middle = over(codes, splat(part.total));
    line.step = over(product, squares - middle * codes);
    line.start = zero() - line.step * middle;
    return line.step * product;
}

// The best line, as if it had not to be on a grid.
Line real_line(const Part& part) {
    F mean = zero();
    for (int64_t i = 0; i < PART; i++) mean = fma(part.x[i], splat(part.h[i]), mean);
    mean = over(mean, splat(part.total));
    const F span = part.greatest - part.least, start = part.least - mean;
    Line best{span * splat(1 / MOST_CODE), start};
    F explained = splat(-1.0f);
    for (float count : SPANS) {
        Line line{span * splat(1 / count), start};
        const F found = least_squares(part, mean, line);
        const Mask better = less(explained, found);
        best = {select(better, line.step, best.step), select(better, line.start, best.start)};
        explained = max(explained, found);
    }
    least_squares(part, mean, best);
    return {best.step, best.start + mean};
}

// At a step, with the offset that is best for the codes.
Choice renewed(const Part& part, F scale, F step, F start) {
    step = held(step, 1, MOST_STEP);
    const F inverse = inverse_of(scale), slope = step * scale;
    const Coder code(part, scale, {step, offset_at(fma(start, inverse, splat(ZERO)), step)});
    F rest = zero();
    for (int64_t i = 0; i < PART; i++)
        rest = fma(part.x[i] - code(i) * slope, splat(part.h[i]), rest);
    const F mean = over(rest, splat(part.total));
    return {step, offset_at(fma(mean, inverse, splat(ZERO)), step)};
}

// The least scale at which the grid reaches all numbers, and steps are in range.
F fitting(const Group& group, const F* steps) {
    F reach = zero(), step = zero();
    for (int64_t p = 0; p < group.count; p++) {
        reach = max(reach, max(abs(group.parts[p].least), abs(group.parts[p].greatest)));
        step = max(step, steps[p]);
    }
    return max(reach * splat(1 / (MOST_POINT - ZERO + 0.5f)), step * splat(1 / MOST_STEP));
}

// Rounding to nearest: each part's range is divided into 15 steps, or fewer as its step is whole.
F to_nearest(const Group& group, Choice* choices) {
    F steps[MOST_PARTS];
    for (int64_t p = 0; p < group.count; p++)
        steps[p] = (group.parts[p].greatest - group.parts[p].least) * splat(1 / MOST_CODE);
    const F scale = storable(fitting(group, steps)), inverse = inverse_of(scale);
    for (int64_t p = 0; p < group.count; p++) {
        const F step = held(ceil(held(steps[p] * inverse, 0, MOST_STEP)), 1, MOST_STEP);
        choices[p] = {step, offset_at(fma(group.parts[p].least, inverse, splat(ZERO)), step)};
    }
    return scale;
}

// The best choices at a scale, and the group's error with them.
F choose(const Group& group, F scale, const Line* lines, Choice* choices) {
    F total = zero();
    for (int64_t p = 0; p < group.count; p++) {
        const Part& part = group.parts[p];
        const F ratio = held(lines[p].step * inverse_of(scale), 0, 2 * MOST_STEP);
        const Choice below = renewed(part, scale, floor(ratio), lines[p].start);
        const Choice above = renewed(part, scale, ceil(ratio), lines[p].start);
        const F low = error_of(part, scale, below), high = error_of(part, scale, above);
        const Mask more = less(high, low);
        choices[p] = {select(more, above.step, below.step),
                      select(more, above.offset, below.offset)};
        total = total + min(low, high);
    }
    return total;
}

F best_scale(const Group& group, Choice* choices) {
    F scale = to_nearest(group, choices), least = zero(), steps[MOST_PARTS];
    Line lines[MOST_PARTS];
    for (int64_t p = 0; p < group.count; p++) {
        least = least + error_of(group.parts[p], scale, choices[p]);
        lines[p] = real_line(group.parts[p]);
        steps[p] = lines[p].step;
    }
    const F fit = fitting(group, steps);
    for (float factor : GRIDS) {
        Choice tried[MOST_PARTS];
        const F candidate = storable(fit * splat(factor));
        const F error = choose(group, candidate, lines, tried);
        const Mask better = less(error, least);
        scale = select(better, candidate, scale);
        least = min(error, least);
        for (int64_t p = 0; p < group.count; p++)
            choices[p] = {select(better, tried[p].step, choices[p].step),
                          select(better, tried[p].offset, choices[p].offset)};
    }
    return scale;
}

// -- Rows in, rows out -------------------------------------------------------------------------

// Columns x [count] of a group; what fills up repeats the last one.
void fill(Group& group, const F* x, const float* h, int64_t count) {
    group.count = (count + PART - 1) / PART;
    for (int64_t p = 0; p < group.count; p++) {
        Part& part = group.parts[p];
        part.total = 0;
        for (int64_t i = 0; i < PART; i++) {
            const int64_t at = p * PART + i;
            part.x[i] = x[at < count ? at : count - 1];
            part.h[i] = at >= count ? 0 : h ? h[at] : 1;
            part.total += part.h[i];
            part.least = i ? min(part.least, part.x[i]) : part.x[i];
            part.greatest = i ? max(part.greatest, part.x[i]) : part.x[i];
        }
    }
}

// One lane of a result into its row.
ROSE_INLINE float lane_of(F a, int64_t lane) {
    float lanes[LANES];
    store(lanes, a);
    return lanes[lane];
}

// Two columns in a byte, the even one in the low half; what is written to was zero.
void write_codes(const Part& part, F scale, const Choice& choice, int64_t count, int64_t rows,
                 uint8_t* out, int64_t stride) {
    const Coder code(part, scale, choice);
    for (int64_t i = 0; i < count; i++) {
        float lanes[LANES];
        store(lanes, code(i));
        for (int64_t row = 0; row < rows; row++) {
            uint8_t& pair = out[row * stride + i / 2];
            pair = uint8_t(pair | int(lanes[row]) << (i % 2 * 4));
        }
    }
}

template <class T>
void transpose(const T* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
    for (int64_t row = 0; row < LANES; row++) {
        const T* source = from + (row < rows ? row : rows - 1) * stride;
        for (int64_t i = 0; i < columns; i++) to[i * LANES + row] = widen(source[i]);
    }
}

// Columns [first, first + count) of so many rows, each column a vector.
void read(const Plain& weight, int64_t row, int64_t rows, int64_t first, int64_t count, F* x) {
    float* to = reinterpret_cast<float*>(x);
    const int64_t at = row * weight.stride + first;
    if (weight.format == BF16)
        transpose(static_cast<const bf16*>(weight.data) + at, weight.stride, rows, count, to);
    else if (weight.format == FP16)
        transpose(static_cast<const fp16*>(weight.data) + at, weight.stride, rows, count, to);
    else
        transpose(static_cast<const float*>(weight.data) + at, weight.stride, rows, count, to);
}

// One group of rows [row, row + rows), which begins at a column.
void search_group(const Plain& weight, const float* importance, const Searched& out, int64_t row,
                  int64_t rows, int64_t column) {
    const int64_t left = out.k - column, count = left < out.group ? left : out.group;
    const int64_t groups = (out.k + out.group - 1) / out.group, parts = (out.k + PART - 1) / PART;
    const int64_t bytes = (out.k + 1) / 2;
    F x[MOST_PARTS * PART];
    Group group;
    Choice choices[MOST_PARTS];
    read(weight, row, rows, column, count, x);
    fill(group, x, importance ? importance + column : nullptr, count);
    const F scale = best_scale(group, choices);
    for (int64_t r = 0; r < rows; r++)
        out.scales[(row + r) * groups + column / out.group] = lane_of(scale, r);
    for (int64_t p = 0; p < group.count; p++) {
        const int64_t at = column + p * PART, width = out.k - at < PART ? out.k - at : PART;
        for (int64_t r = 0; r < rows; r++) {
            out.steps[(row + r) * parts + at / PART] = uint8_t(lane_of(choices[p].step, r));
            out.offsets[(row + r) * parts + at / PART] = uint8_t(lane_of(choices[p].offset, r));
        }
        write_codes(group.parts[p], scale, choices[p], width, rows,
                    out.codes + row * bytes + at / 2, bytes);
    }
}

void search4(const Plain& weight, const float* importance, const Searched& out) {
    parallel_for((out.n + LANES - 1) / LANES, [&](int64_t tile, int) {
        const int64_t row = tile * LANES, left = out.n - row;
        for (int64_t column = 0; column < out.k; column += out.group)
            search_group(weight, importance, out, row, left < LANES ? left : LANES, column);
    });
}

}  // namespace search
}  // namespace
}  // namespace rose

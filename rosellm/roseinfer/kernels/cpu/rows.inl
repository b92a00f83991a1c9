// What happens to rows between the matrix products: norms, sums, and the way of queries, keys and
// values from their projection to attention.
//
// Sums run over a row in an order that its width alone decides. Results may replace what they are
// made from.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "pool.h"
#include "simd.h"
#include "words.inl"

namespace rose {
namespace {

// Numbers that one thread has done before another is awake.
constexpr int64_t ONE_TILE = 1 << 14;

// Calls body with every row; many numbers are shared out to threads.
template <class Body>
void each_row(int64_t count, int64_t width, const Body& body) {
    const int64_t height = std::max<int64_t>(1, ONE_TILE / std::max<int64_t>(width, 1));
    auto rows = [&](int64_t tile, int) {
        const int64_t end = std::min(count, (tile + 1) * height);
        for (int64_t row = tile * height; row < end; row++) body(row);
    };
    if (count <= height)
        rows(0, 0);
    else
        parallel_for((count + height - 1) / height, rows);
}

ROSE_INLINE float* row_of(const Activations& rows, int64_t row) {
    return rows.data + row * rows.stride;
}

// function(vector of x's row, where it begins) becomes out's.
template <class Function>
ROSE_INLINE void map(const float* x, float* out, int64_t width, const Function& function) {
    for (int64_t i = 0; i < width; i += LANES)
        store_up_to(out + i, function(load_up_to(x + i, width - i), i), width - i);
}

// The sum of function(numbers of x).
template <class Function>
ROSE_INLINE float sum_of(const float* x, int64_t width, const Function& function) {
    constexpr int CHAINS = 4;  // that do not wait for each other
    F sums[CHAINS] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + CHAINS * LANES <= width; i += CHAINS * LANES) {
        ROSE_UNROLL
        for (int c = 0; c < CHAINS; c++) sums[c] = sums[c] + function(load(x + i + c * LANES));
    }
    for (int c = 0; i < width; i += LANES, c++)
        sums[c] = sums[c] + within(function(load_up_to(x + i, width - i)), 0, width - i, zero());
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// -- Norms -------------------------------------------------------------------------------------

float rms_scale(const float* x, int64_t width, float eps) {
    const float squares = sum_of(x, width, [](F a) { return a * a; });
    return 1.0f / std::sqrt(squares / float(width) + eps);
}

void rms_norm(const Activations& x, const Activations& out, const float* weight, float eps,
              const Activations* residual) {
    each_row(x.count, x.width, [&](int64_t row) {
        const float* from = row_of(x, row);
        const F scale = splat(rms_scale(from, x.width, eps));
        const float* other = residual ? row_of(*residual, row) : nullptr;
        map(from, row_of(out, row), x.width, [&](F a, int64_t i) {
            const F normed = a * scale * load_up_to(weight + i, x.width - i);
            return other ? load_up_to(other + i, x.width - i) + normed : normed;
        });
    });
}

void layer_norm(const Activations& x, const Activations& out, const float* weight,
                const float* bias, float eps) {
    const float width = float(x.width);
    each_row(x.count, x.width, [&](int64_t row) {
        const float* from = row_of(x, row);
        const F mean = splat(sum_of(from, x.width, [](F a) { return a; }) / width);
        const float squares =
            sum_of(from, x.width, [&](F a) { return (a - mean) * (a - mean); });
        const F scale = splat(1.0f / std::sqrt(squares / width + eps));
        map(from, row_of(out, row), x.width, [&](F a, int64_t i) {
            const F normed = (a - mean) * scale * load_up_to(weight + i, x.width - i);
            return bias ? normed + load_up_to(bias + i, x.width - i) : normed;
        });
    });
}

void add(const Activations& x, const Activations& other, const Activations& out) {
    each_row(x.count, x.width, [&](int64_t row) {
        const float* more = row_of(other, row);
        map(row_of(x, row), row_of(out, row), x.width,
            [&](F a, int64_t i) { return a + load_up_to(more + i, x.width - i); });
    });
}

// -- From a projection to attention ------------------------------------------------------------

// Rotate halves of the first 2 * half numbers, in place (arXiv:2104.09864).
ROSE_INLINE void rotate(float* head, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = half - i;
        const F a = load_up_to(head + i, count), b = load_up_to(head + half + i, count);
        const F c = load_up_to(cos + i, count), s = load_up_to(sin + i, count);
        store_up_to(head + i, a * c - b * s, count);
        store_up_to(head + half + i, b * c + a * s, count);
    }
}

// One head in the type of the cache.
template <class T>
ROSE_INLINE void keep(const float* head, int64_t dim, T* to, float*) {
    for (int64_t i = 0; i < dim; i += LANES)
        store_up_to(to + i, load_up_to(head + i, dim - i), dim - i);
}

// In int8 the largest number becomes 127; no codes where the scale has no reciprocal. What is no
// number, which a maximum passes over, makes the scale none, so that whoever reads it sees it.
ROSE_INLINE void keep(const float* head, int64_t dim, int8_t* to, float* scale) {
    F largest = zero(), nothing = zero();
    for (int64_t i = 0; i < dim; i += LANES) {
        const F a = load_up_to(head + i, dim - i);
        largest = max(abs(a), largest);
        nothing = fma(a, zero(), nothing);
    }
    *scale = most(largest) / 127.0f + sum(nothing);
    const bool codes = *scale >= FLT_MIN && *scale <= FLT_MAX;
    const F inverse = splat(codes ? 1.0f / *scale : 0.0f);
    for (int64_t i = 0; i < dim; i += LANES) {
        const F code = load_up_to(head + i, dim - i) * inverse;
        store_up_to(to + i, rounded(codes ? code : zero()), dim - i);
    }
}

// Queries, keys or values of one row, on their way; T is the type that they end in.
struct Norm {
    const float* weight;  // null: none
    int64_t width;
    float eps;
};
struct Angles {
    const float *cos, *sin;
    int64_t half;
};

template <class T>
void finish_heads(const float* from, int64_t count, int64_t dim, const Norm& norm,
                  const Angles& angles, T* to, float* scales) {
    alignas(64) float head[MAX_DIM];
    float scale = 1.0f;
    for (int64_t i = 0; i < count; i++, from += dim) {
        const int64_t done = norm.weight ? i * dim % norm.width : 0;  // of what the norm spans
        if (norm.weight && done == 0) scale = rms_scale(from, norm.width, norm.eps);
        map(from, head, dim, [&](F a, int64_t at) {
            return norm.weight ? a * splat(scale) * load_up_to(norm.weight + done + at, dim - at)
                               : a;
        });
        rotate(head, angles.cos, angles.sin, angles.half);
        keep(head, dim, to + i * dim, scales ? scales + i : nullptr);
    }
}

template <class T>
void row_to_cache(const QkvToCache& qkv, const KvCache& cache, int64_t row) {
    const int64_t dim = cache.head_dim, q = qkv.heads * dim, kv = cache.kv_heads * dim;
    const int64_t slot = qkv.slots[row], half = qkv.rotary / 2;
    const int64_t angle = (qkv.positions ? qkv.positions[row] : row) * half;
    const Angles angles{qkv.cos + angle, qkv.sin + angle, half}, none{nullptr, nullptr, 0};
    const float* from = row_of(qkv.qkv, row);
    const auto scales = [&](float* all) { return all ? all + slot * cache.kv_heads : nullptr; };
    finish_heads(from, qkv.heads, dim, {qkv.q_norm, qkv.q_norm_width, qkv.eps}, angles,
                 row_of(qkv.q, row), nullptr);
    finish_heads(from + q, cache.kv_heads, dim, {qkv.k_norm, qkv.k_norm_width, qkv.eps}, angles,
                 static_cast<T*>(cache.keys) + slot * kv, scales(cache.key_scales));
    finish_heads(from + q + kv, cache.kv_heads, dim, {nullptr, 0, 0.0f}, none,
                 static_cast<T*>(cache.values) + slot * kv, scales(cache.value_scales));
}

template <class T>
void rows_to_cache(const QkvToCache& qkv, const KvCache& cache) {
    each_row(qkv.qkv.count, qkv.qkv.width, [&](int64_t row) { row_to_cache<T>(qkv, cache, row); });
}

void qkv_to_cache(const QkvToCache& qkv, const KvCache& cache) {
    switch (cache.type) {
        case KV_FP32: return rows_to_cache<float>(qkv, cache);
        case KV_BF16: return rows_to_cache<bf16>(qkv, cache);
        case KV_FP16: return rows_to_cache<fp16>(qkv, cache);
        case KV_INT8: return rows_to_cache<int8_t>(qkv, cache);
    }
}

void slots(const Sequences& step, int64_t* out) {
    const int64_t size = step.block_size;
    for (int64_t sequence = 0; sequence < step.count; sequence++) {
        const int32_t* table = step.tables + step.begins[sequence];
        int64_t position = step.positions[sequence];
        for (int64_t row = step.rows[sequence]; row < step.rows[sequence + 1]; row++, position++)
            *out++ = table[position / size] * size + position % size;
    }
}

}  // namespace
}  // namespace rose

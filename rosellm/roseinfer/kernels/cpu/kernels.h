// What every dispatch level implements, and the structs that cross the C ABI.
//
// Activations are fp32, row-major; a stride is the distance between rows in elements. Weights are
// packed once. A row's bits depend on that row alone: not on how many rows there are, nor on
// threads, nor on where a tile begins.
#pragma once

#include <cstdint>

namespace rose {

enum Format : int32_t { FP32, FP16, BF16, INT8, INT4 };

// A packed weight, y = x W^T (+ bias): plain data without pointers inside, made by `pack` in memory
// that its owner keeps, 64-byte aligned. The layout is that of matmul.h, the same at every level.
struct Matrix {
    Format format;
    int32_t group;      // int8 and int4: how many inputs share a scale, of weights and activations
    int32_t gated;      // 1: rows are [gate; up], n/2 of each, whose tiles alternate when packed
    int32_t reserved;
    int64_t n, k;       // outputs and inputs
    void* data;         // rose_packed_bytes of them
    const float* bias;  // [n], or null
};

// What becomes of a product. A gated one writes n/2 columns, act(gate) * up: the last two, and no others.
enum Finish : int32_t { STORE, ADD, GELU_TANH, GELU_ERF, SILU_MUL, GELU_TANH_MUL };

// fp32 rows of x: row i is data + (index ? index[i] : i) * stride.
struct Rows {
    const float* data;
    int64_t stride, count;
    const int64_t* index;
};

// Rows of a plain weight, for packing: [count, k] in fp32, fp16 or bf16.
struct Plain {
    Format format;
    int32_t reserved;
    const void* data;
    int64_t stride;
};

// Rows of a quantised weight, for packing; groups and parts cut short at the end count as whole.
// int8: w = scale * code, codes int8 [count, k], scales [count, ceil(k / group)].
// int4: w = scale * (step * code + offset - 128), codes uint8 0..15, step 0..15 and offset uint8
// [count, ceil(k / 32)] with 15 * step + offset <= 255: 16 points on the group's grid of 256.
// Scales are rounded to fp16 (give such as are exact).
struct Codes {
    const void* codes;
    const float* scales;
    const uint8_t* steps;    // int4
    const uint8_t* offsets;  // int4
};

// What a search finds for a weight in 4 bits: Codes, but of two codes in a byte, the even one in the
// low half, [n, ceil(k / 2)], in zeroed memory; and scales exact in fp16.
struct Searched {
    int64_t n, k, group;  // group: a multiple of 32 up to 256
    float* scales;
    uint8_t *steps, *offsets, *codes;
};

// fp32 rows to read, or to write.
struct Activations {
    float* data;
    int64_t stride, count, width;
};

// What one step asks of one KV group. The rows of a sequence are consecutive.
struct Sequences {
    int64_t count;
    const int32_t* rows;       // [count + 1] first query row of each sequence; the end
    const int32_t* positions;  // [count] position of that row
    const int32_t* tables;     // block tables, one after the other
    const int32_t* begins;     // [count] where a sequence's table begins in them
    int32_t block_size;
    int32_t causal;  // 0: a row sees all of its sequence, which is then whole in this step
    int64_t window;  // a row sees so many latest positions, itself included; 0: all
};

enum KvType : int32_t { KV_FP32, KV_BF16, KV_FP16, KV_INT8 };

// Keys and values of one layer: [slots, kv_heads, head_dim], slot = block * block_size + offset.
struct KvCache {
    void *keys, *values;
    float *key_scales, *value_scales;  // [slots, kv_heads] of int8, else null
    int32_t type, kv_heads, head_dim;
};

// From fused projections to queries and to the cache's keys and values.
struct QkvToCache {
    Activations qkv;  // width (heads + 2 * kv_heads) * head_dim: queries, keys, values
    Activations q;    // out, width heads * head_dim; may be the same rows as qkv
    int64_t heads;
    const float *q_norm, *k_norm;  // weights, each head_dim wide or as all heads; or null
    int32_t q_norm_width, k_norm_width;
    float eps;
    int32_t rotary;            // rotated dimensions of each head, even; 0: none
    const float *cos, *sin;    // [rows or positions, rotary / 2]
    const int64_t* positions;  // [rows] row of cos and sin; null: a query row's own index
    const int64_t* slots;      // [rows]
};

struct Attention {
    Activations q;    // width heads * head_dim
    Activations out;  // the same; may be the same rows
    int64_t heads;
    float scale, softcap;  // softcap 0: none
};

// How the token of one row is chosen; see request.py.
struct Sampling {
    float temperature;  // 0: the likeliest token, and nothing else counts
    float top_p, min_p;
    int32_t reserved;
    int64_t top_k;  // 0: all
    int64_t seed, choice, position;
};

// Tokens that may be chosen: a bit for each, the lowest of a word first, ceil(width / 32) words a
// row. Null: all.
struct Allowed {
    const uint32_t* bits;
    int64_t stride;  // in words
};

// Of each row, to fill in: the `width` likeliest tokens, at most as many as there are, and their
// log-probabilities, both [rows, width].
struct Likeliest {
    int64_t width;
    int64_t* ids;
    float* values;
};

// The largest of every so many outputs of a row, for those who look for its largest logits: `tops`, of
// each row [2][ceil(n / (2 * TOP))], since every second one has a place of its own. NaN where one of them
// is no finite number. A last pair that has but one has it twice.
constexpr int64_t TOP = 32;

struct Kernels {
    const char* level;

    // y [count, n] = finish(x W^T + bias); ADD adds to what y holds. Tops of y, unless null: of what is
    // not gated.
    void (*linear)(const Rows& x, const Matrix& w, Finish finish, float* y, int64_t y_stride,
                   float* tops);

    // y [count, k] = rows ids [count] of the weight, in fp32: an embedding whose table a head shares.
    void (*lookup)(const Matrix& table, const int64_t* ids, int64_t count, float* y,
                   int64_t y_stride);

    // Fill rows [first, first + count) of a packed weight, in zeroed memory; int8 and int4 are
    // rounded to the nearest.
    void (*pack)(const Matrix& w, int64_t first, int64_t count, const Plain& rows);
    void (*pack_codes)(const Matrix& w, int64_t first, int64_t count, const Codes& rows);

    // search.inl: the form of least error, that of column k counted importance [k] times (or null).
    void (*search4)(const Plain& weight, const float* importance, const Searched& out);

    // rows.inl: what comes out may replace what goes in.
    void (*rms_norm)(const Activations& x, const Activations& out, const float* weight, float eps,
                     const Activations* residual);  // added to the result, or null
    void (*layer_norm)(const Activations& x, const Activations& out, const float* weight,
                       const float* bias, float eps);  // bias may be null
    void (*add)(const Activations& x, const Activations& other, const Activations& out);
    void (*qkv_to_cache)(const QkvToCache& qkv, const KvCache& cache);
    void (*slots)(const Sequences& step, int64_t* out);  // of each query row's key and value

    // attention.inl
    void (*attention)(const Attention& heads, const Sequences& step, const KvCache& cache);

    // sample.inl: of rows of logits, whether they are numbers (1 or 0); the token chosen for each;
    // and log-probabilities, those of `tokens` [rows] into chosen [rows]. With the logits' tops, unless
    // null, most of them need not be read.
    void (*soundness)(const Activations& logits, const float* tops, uint8_t* sound);
    void (*draw)(const Activations& logits, const float* tops, const Allowed& allowed,
                 const Sampling* wanted, int64_t* tokens);
    void (*logprobs)(const Activations& logits, const int64_t* tokens, float* chosen,
                     const Likeliest& likeliest);
};

extern const Kernels avx512_kernels, avx2_kernels, portable_kernels;

// What a level replaces in the table of another: 8-bit dot products in that of AVX2, bf16 and AMX in
// AVX-512's. These are constants: code of a level must not run before it is known that the processor
// has it.
struct Multiplying {
    const char* level;
    decltype(Kernels::linear) linear;
    decltype(Kernels::attention) attention;  // null: as it is
};

extern const Multiplying vnni_multiplying, bf16_multiplying, amx_multiplying;

// The level in use.
const Kernels& kernels();

}  // namespace rose

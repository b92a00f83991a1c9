// A model's forward as a list of operations, run in one call a step.
//
// A step's rows lie in numbered buffers. All that does not change between steps is in the program;
// the rest comes with the step.
#pragma once

#include "kernels.h"

namespace rose {

enum Op : int32_t { OP_LOOKUP, OP_RMS_NORM, OP_LAYER_NORM, OP_LINEAR, OP_ATTEND, OP_SUM, OP_SCALE };

// What an attention layer is, beside its two products.
struct Layer {
    KvCache cache;
    int64_t heads;
    const float *q_norm, *k_norm;  // or null
    int32_t q_norm_width, k_norm_width;
    float eps, scale, softcap;
    int32_t group, rope, rotary;  // rope: which of the step's tables; -1: none
};

struct Operation {
    Op op;
    int32_t target, source, other;  // buffers; of a lookup, source 0 is token ids, 1 is positions
    int32_t finish;                 // of a linear
    float number;                   // of a norm its eps, of a scale its factor
    const Matrix* matrix;           // of a linear or a lookup
    const float *weight, *bias;     // of a norm
    const Layer* layer;             // of an attention
};

struct Program {
    int64_t count;
    const Operation* operations;
    int64_t buffers;
    const int64_t* widths;  // of each buffer; the last one is what the model gives
};

// One KV group's part of a step.
struct Group {
    Sequences sequences;
    const int64_t* slots;  // of each row's key and value
};

struct Rope {
    const float *cos, *sin;  // [positions, rotary / 2]
};

struct Step {
    int64_t count;  // rows
    const int64_t *ids, *positions;
    const Group* groups;
    const Rope* ropes;
    float* out;  // [count, width of the last buffer]
    int64_t* nanoseconds;  // [operations + 2], to which what each takes is added, and a tail's head
                           // and drawing; or null
};

// Where a head's product goes, its tops, and of each row whether it is numbers.
struct Logits {
    Activations values;
    float* tops;
    uint8_t* sound;  // [count]
};

// What comes after a forward whose rows are sampled, and nothing else is done to their logits.
struct Tail {
    const Matrix* head;
    const int64_t* rows;  // [logits' count] those of the forward that are sampled; null: all
    Logits logits;
    const Sampling* wanted;
    int64_t* tokens;
};

void logits(const Rows& x, const Matrix& head, const Logits& out);

// A step in one call, since a caller in Python is slow to go on after each: by then a processor has
// forgotten all but weights. The tail may be null.
void run(const Program& program, const Step& step, const Tail* tail);

}  // namespace rose

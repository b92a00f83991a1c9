#include "program.h"

#include <chrono>

#include "pool.h"
#include "workspace.h"

namespace rose {
namespace {

// Where a step's buffers lie: one after the other in memory that is kept, the last one apart.
class Buffers {
   public:
    Buffers(const Program& program, const Step& step) : program_(program), step_(step) {
        int64_t size = 0;
        for (int64_t buffer = 0; buffer < program.buffers - 1; buffer++) size += size_of(buffer);
        memory_ = kept().room<float>(size);
    }

    Activations at(int32_t buffer) const {
        const int64_t width = program_.widths[buffer];
        return {data(buffer), width, step_.count, width};
    }

   private:
    static Workspace& kept() {
        thread_local Workspace workspace;
        return workspace;
    }

    int64_t size_of(int64_t buffer) const {
        return (program_.widths[buffer] * step_.count + 15) / 16 * 16;
    }

    float* data(int32_t buffer) const {
        if (buffer == program_.buffers - 1) return step_.out;
        float* start = memory_;
        for (int32_t before = 0; before < buffer; before++) start += size_of(before);
        return start;
    }

    const Program& program_;
    const Step& step_;
    float* memory_;
};

void attend(const Kernels& kernels, const Layer& layer, const Step& step, const Activations& qkv,
            const Activations& out) {
    const Group& group = step.groups[layer.group];
    const int64_t width = layer.heads * layer.cache.head_dim;
    const Activations q = {qkv.data, qkv.stride, qkv.count, width};
    QkvToCache split{};
    split.qkv = qkv, split.q = q, split.heads = layer.heads;
    split.q_norm = layer.q_norm, split.k_norm = layer.k_norm;
    split.q_norm_width = layer.q_norm_width, split.k_norm_width = layer.k_norm_width;
    split.eps = layer.eps, split.slots = group.slots;
    if (layer.rope >= 0) {
        split.rotary = layer.rotary, split.positions = step.positions;
        split.cos = step.ropes[layer.rope].cos, split.sin = step.ropes[layer.rope].sin;
    }
    kernels.qkv_to_cache(split, layer.cache);
    const Attention heads = {q, out, layer.heads, layer.scale, layer.softcap};
    kernels.attention(heads, group.sequences, layer.cache);
}

void scale(const Activations& x, const Activations& out, float factor) {
    parallel_for(x.count, [&](int64_t row, int) {
        for (int64_t at = 0; at < x.width; at++)
            out.data[row * out.stride + at] = x.data[row * x.stride + at] * factor;
    });
}

void run_one(const Kernels& kernels, const Operation& operation, const Step& step,
             const Buffers& buffers) {
    const Activations out = buffers.at(operation.target);
    if (operation.op == OP_LOOKUP) {
        const int64_t* ids = operation.source ? step.positions : step.ids;
        return kernels.lookup(*operation.matrix, ids, step.count, out.data, out.stride);
    }
    const Activations x = buffers.at(operation.source);
    switch (operation.op) {
        case OP_RMS_NORM:
            return kernels.rms_norm(x, out, operation.weight, operation.number, nullptr);
        case OP_LAYER_NORM:
            return kernels.layer_norm(x, out, operation.weight, operation.bias, operation.number);
        case OP_LINEAR:
            return kernels.linear({x.data, x.stride, x.count, nullptr}, *operation.matrix,
                                  static_cast<Finish>(operation.finish), out.data, out.stride,
                                  nullptr);
        case OP_ATTEND: return attend(kernels, *operation.layer, step, x, out);
        case OP_SUM: return kernels.add(x, buffers.at(operation.other), out);
        case OP_SCALE: return scale(x, out, operation.number);
        default: return;
    }
}

// Adds up what each part of a step takes, if that is asked for.
class Watch {
   public:
    explicit Watch(int64_t* nanoseconds) : next_(nanoseconds), since_(next_ ? now() : 0) {}

    void lap() {
        if (!next_) return;
        const int64_t until = now();
        *next_++ += until - since_;
        since_ = until;
    }

   private:
    static int64_t now() {
        const auto since = std::chrono::steady_clock::now().time_since_epoch();
        return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
    }

    int64_t* next_;
    int64_t since_;
};

}  // namespace

void logits(const Rows& x, const Matrix& head, const Logits& out) {
    const Kernels& best = kernels();
    best.linear(x, head, STORE, out.values.data, out.values.stride, out.tops);
    best.soundness(out.values, out.tops, out.sound);
}

void run(const Program& program, const Step& step, const Tail* tail) {
    const Kernels& best = kernels();
    const Buffers buffers(program, step);
    Watch watch(step.nanoseconds);
    for (int64_t at = 0; at < program.count; at++) {
        run_one(best, program.operations[at], step, buffers);
        watch.lap();
    }
    if (!tail) return;
    const Logits& out = tail->logits;
    const int64_t width = program.widths[program.buffers - 1];
    logits({step.out, width, out.values.count, tail->rows}, *tail->head, out);
    watch.lap();
    best.draw(out.values, out.tops, {nullptr, 0}, tail->wanted, tail->tokens);
    watch.lap();
}

}  // namespace rose

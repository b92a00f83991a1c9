// A row of logits: its largest, the mass of its tokens, and those above a bound, found without
// sorting.
//
// A row is done in parts, on one thread or on several. What comes of a part depends on the row
// alone, and parts are put together in order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "lanes.inl"
#include "pool.h"
#include "rows.inl"
#include "select.inl"
#include "workspace.h"

namespace rose {
namespace {

// Tokens whose largest logit is kept, so that most of them need not be looked at again.
constexpr int64_t BLOCK = 2 * TOP;
// Blocks of a part.
constexpr int64_t PART = 128;

constexpr float LEAST = std::numeric_limits<float>::lowest();

// Logits as they are compared: (a - shift) * factor, where 0 has no sign.
struct Scale {
    float shift, factor;

    ROSE_INLINE F operator()(F a) const {
        return (a - splat(shift)) * splat(factor) + zero();
    }
    ROSE_INLINE float operator()(float a) const { return (a - shift) * factor + 0.0f; }
};

// The logits of a row, -infinity for tokens that are not allowed.
struct Logits {
    const float* data;
    const float* tops;        // see kernels.h; or null
    const uint32_t* allowed;  // one bit a token, or null
    int64_t size;

    static Logits of(const Activations& rows, int64_t row, const float* tops,
                     const uint32_t* allowed) {
        Logits all = {row_of(rows, row), nullptr, allowed, rows.width};
        if (tops) all.tops = tops + row * 2 * all.blocks();
        return all;
    }

    int64_t blocks() const { return (size + BLOCK - 1) / BLOCK; }
    int64_t parts() const { return (blocks() + PART - 1) / PART; }

    // A block's logits, and -infinity past the end: where they lie, or in `room` [BLOCK].
    const float* block(int64_t block, float* room) const {
        const int64_t first = block * BLOCK, count = std::min(BLOCK, size - first);
        const uint64_t bits = allowed ? allowed_in(block, count) : ~uint64_t(0);
        if (count == BLOCK && bits == ~uint64_t(0)) return data + first;
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            const F a = load_up_to(data + first + i, count - i);
            const F own = select(mask_of(uint32_t(bits >> i) & ALL_LANES), a, splat(-INFINITE));
            store(room + i, within(own, 0, count - i, splat(-INFINITE)));
        }
        return room;
    }

   private:
    uint64_t allowed_in(int64_t block, int64_t count) const {
        const uint32_t* words = allowed + block * (BLOCK / 32);
        return words[0] | (count > 32 ? uint64_t(words[1]) << 32 : 0);
    }
};

// A token and how it fares.
struct Contender {
    float score;
    int64_t token;

    bool beats(const Contender& other) const {
        return score > other.score || (score == other.score && token < other.token);
    }
};

struct Part {
    float most;
    int64_t broken;  // the first NaN, or -1
    int64_t mass;
    Contender best;
};

// What one row comes to, in stages: each part of a stage when the stage before is done.
class Row {
   public:
    Row(const Logits& logits, float* tops, Part* parts)
        : logits_(logits), tops_(tops), parts_(parts) {}

    // Finds the largest logits.
    void scan(int64_t number) {
        if (logits_.tops && !logits_.allowed && take_tops(number)) return;
        const int64_t end = last_block(number);
        F odd = zero(), most = splat(-INFINITE);
        for (int64_t block = number * PART; block < end; block += LANES) {
            const F tops = tops_from(block, end, odd);
            most = max(tops, most);
            store_up_to(tops_ + block, tops, end - block);
        }
        parts_[number].most = rose::most(most);
        parts_[number].broken = may_be_nan(odd) ? find_nan(number) : -1;
    }

    // Adds up what tokens weigh.
    void weigh(int64_t number) {
        const float least = std::max(least_, NO_MASS);
        Mass mass;
        each_block(number * PART, last_block(number), scale_, least, [&](F x, int64_t) {
            mass.add(x, splat(least));
        });
        parts_[number].mass = mass.total();
    }

   protected:
    // After scan.
    void find_most() {
        most_ = -INFINITE, broken_ = -1;
        for (int64_t number = logits_.parts() - 1; number >= 0; number--) {
            most_ = std::max(most_, parts_[number].most);
            if (parts_[number].broken >= 0) broken_ = parts_[number].broken;
        }
        const int64_t block = std::find(tops_, tops_ + logits_.blocks(), most_) - tops_;
        float room[BLOCK];
        const float* logits = logits_.block(block, room);
        likeliest_ = block * BLOCK + (std::find(logits, logits + BLOCK, most_) - logits);
    }

    // Whether there is a distribution at all.
    bool sound() const { return broken_ < 0 && std::isfinite(most_); }

    // After weigh.
    int64_t mass() const {
        int64_t total = 0;
        for (int64_t number = 0; number < logits_.parts(); number++) total += parts_[number].mass;
        return total;
    }

    // Calls body(vector, its first token) for blocks that have anything at least `least`.
    template <class Body>
    ROSE_INLINE void each_block(int64_t begin, int64_t end, const Scale& scale, float least,
                                const Body& body) const {
        alignas(64) float room[BLOCK];
        for (int64_t block = begin; block < end; block++) {
            if (scale(tops_[block]) < least) continue;
            const float* logits = logits_.block(block, room);
            for (int64_t i = 0; i < BLOCK; i += LANES)
                body(scale(load(logits + i)), block * BLOCK + i);
        }
    }

    // Memory of this thread for all values of the row.
    Values values() const {
        thread_local Workspace workspace;
        return Values(workspace.room<float>(logits_.blocks() * BLOCK + LANES));
    }

    // All from `least`, a finite bound, to `most`.
    Values gather(const Scale& scale, float least, float most = INFINITE) const {
        Values found = values();
        each_block(0, logits_.blocks(), scale, least, [&](F x, int64_t) {
            const uint32_t outside = lanes(less(x, splat(least))) | lanes(less(splat(most), x));
            found.append(x, ALL_LANES & ~outside);
        });
        found.close();
        return found;
    }

    // A bound, no less than `least`, that the `count` likeliest tokens reach, equals included, and
    // not many more: so many blocks have one that does.
    float reached_by(int64_t count, const Scale& scale, float least) const {
        const int64_t blocks = logits_.blocks();
        if (count >= blocks) return least;
        Values tops = values();
        for (int64_t i = 0; i < blocks; i += LANES) {
            const uint32_t inside = blocks - i < LANES ? (1u << (blocks - i)) - 1 : ALL_LANES;
            tops.append(scale(load_up_to(tops_ + i, blocks - i)), inside);
        }
        tops.close();
        return std::max(narrow<Count>(tops, double(count)), least);
    }

    int64_t last_block(int64_t part) const {
        return std::min((part + 1) * PART, logits_.blocks());
    }

    const Logits logits_;
    float* tops_;  // [blocks] the largest logit of each
    Part* parts_;  // [parts]
    Scale scale_ = {0.0f, 1.0f};
    float least_ = LEAST;  // that counts, as scaled
    float most_ = 0.0f;
    int64_t likeliest_ = 0, broken_ = -1;

   private:
    // The same of what is known already, if all are finite numbers. Returns whether they are.
    bool take_tops(int64_t number) {
        const int64_t end = last_block(number);
        const float *even = logits_.tops, *odd = even + logits_.blocks();
        F most = splat(-INFINITE), strange = zero();
        for (int64_t block = number * PART; block < end; block += LANES) {
            const F a = load_up_to(even + block, end - block);
            const F b = load_up_to(odd + block, end - block);
            const F top = max(a, b);
            strange = strange + (a - a) + (b - b);
            most = max(within(top, 0, end - block, splat(-INFINITE)), most);
            store_up_to(tops_ + block, top, end - block);
        }
        parts_[number].most = rose::most(most);
        parts_[number].broken = -1;
        return !may_be_nan(strange);
    }

    // The largest of LANES blocks, and what is NaN if any of them has one.
    ROSE_INLINE F tops_from(int64_t first, int64_t end, F& odd) const {
        alignas(64) float room[BLOCK];
        F tops[LANES];
        for (int i = 0; i < LANES; i++) {
            tops[i] = splat(-INFINITE);
            if (first + i >= end) continue;
            const float* logits = logits_.block(first + i, room);
            F sum = zero();
            ROSE_UNROLL
            for (int64_t at = 0; at < BLOCK; at += LANES) {
                const F a = load(logits + at);
                tops[i] = max(a, tops[i]), sum = sum + a;
            }
            odd = odd + sum;
        }
        transpose(tops);
        for (int i = 1; i < LANES; i++) tops[0] = max(tops[0], tops[i]);
        return tops[0];
    }

    // +infinity looks like it as well.
    static bool may_be_nan(F a) { return lanes(less(a, splat(INFINITE))) != ALL_LANES; }

    int64_t find_nan(int64_t part) const {
        float room[BLOCK];
        for (int64_t block = part * PART; block < last_block(part); block++) {
            const float* logits = logits_.block(block, room);
            for (int64_t i = 0; i < BLOCK; i++)
                if (std::isnan(logits[i])) return block * BLOCK + i;
        }
        return -1;
    }
};

// -- Stages ------------------------------------------------------------------------------------

template <class R>
struct Stage {
    void (R::*run)(int64_t part);
    bool whole;  // once a row, not for every part
};

// A few rows share out their parts; of many, each thread takes whole ones, which stay in its cache.
template <class R>
void run_stages(R* rows, int64_t count, const Logits& shape, const Stage<R>* stages,
                int64_t number) {
    const int64_t parts = shape.parts();
    if (parts > 1 && count < 4 * pool_size() && pool_size() > 1) {
        for (const Stage<R>* stage = stages; stage < stages + number; stage++) {
            const int64_t share = stage->whole ? 1 : parts;
            parallel_for(count * share, [&](int64_t tile, int) {
                (rows[tile / share].*stage->run)(tile % share);
            });
        }
        return;
    }
    each_row(count, shape.size, [&](int64_t row) {
        for (const Stage<R>* stage = stages; stage < stages + number; stage++)
            for (int64_t part = 0; part < (stage->whole ? 1 : parts); part++)
                (rows[row].*stage->run)(part);
    });
}

}  // namespace
}  // namespace rose

// Paged attention: any mix of prompt chunks and single tokens in one call.
//
// Online softmax (arXiv:1805.02867) over blocks of positions, which begin at multiples of their
// size. Every split comes to a maximum, a sum and an output of each row, and a row's splits are
// merged in order of position. A position that a row cannot see adds zeros to its sums or is
// skipped, which comes to the same. So a row's bits are its own.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "attention_plan.inl"
#include "pool.h"
#include "words.inl"
#include "workspace.h"

namespace rose {
namespace {
namespace attending {

constexpr int64_t SMALL = 1 << 17;  // products that are done before other threads are awake

// What rows have come to, of one split or of several merged. Rows that are computed together, up
// to TOGETHER, share a vector of maxima and one of sums.
struct Result {
    float* maximum;  // [groups, LANES]
    float* sum;      // [groups, LANES]
    float* out;      // [rows, padded]

    static int64_t lanes(int64_t rows) { return (rows + TOGETHER - 1) / TOGETHER * LANES; }
    static int64_t size(int64_t rows, int64_t padded) { return 2 * lanes(rows) + rows * padded; }
    static Result in(float* memory, int64_t rows) {
        return {memory, memory + lanes(rows), memory + 2 * lanes(rows)};
    }
    static int64_t lane(int64_t row) { return row / TOGETHER * LANES + row % TOGETHER; }
};

// Add what one split has come to.
void merge(const Result& split, const Result& all, int64_t rows, int64_t padded) {
    alignas(64) float keep[LANES], take[LANES];
    for (int64_t row = 0; row < rows; row++) {
        const int64_t lane = row % TOGETHER, group = Result::lane(row) - lane;
        if (lane == 0) {
            const F before = load(all.maximum + group), here = load(split.maximum + group);
            const F now = max(before, here), finite = max(now, splat(-FLT_MAX));
            const F kept = exp(before - finite), taken = exp(here - finite);
            store(all.maximum + group, now);
            store(all.sum + group,
                  load(all.sum + group) * kept + load(split.sum + group) * taken);
            store(keep, kept);
            store(take, taken);
        }
        float* out = all.out + row * padded;
        const float* more = split.out + row * padded;
        for (int64_t i = 0; i < padded; i += LANES)
            store(out + i, load(out + i) * splat(keep[lane]) + load(more + i) * splat(take[lane]));
    }
}

// One tile for one KV head, on one thread. Element is the type of the cache.
template <class Words, class Element>
class TileWork {
   public:
    TileWork(const Call& call, const Tile& tile, int64_t head)
        : call_(call),
          tile_(tile),
          head_(head),
          rows_(tile.tokens * call.group),
          words_(round_up(call.dim, STEP) / Words::DEPTH) {
        int64_t total = 0;
        const auto part = [&](int64_t size) {
            total += round_up(size, 16);  // whole lines of the processor's cache
            return total - round_up(size, 16);
        };
        const int64_t queries = part(rows_ * words_), keys = part(words_ * BLOCK);
        const int64_t values = part(BLOCK / Words::DEPTH * call.padded);
        const int64_t scores = part(TOGETHER * BLOCK);
        const int64_t weights = part(TOGETHER * BLOCK / Words::DEPTH), sums = part(rows_ * LANES);
        const int64_t size = Result::size(rows_, call.padded), all = part(size), one = part(size);
        thread_local Workspace kept;
        float* memory = kept.room<float>(total);
        queries_ = memory + queries, keys_ = memory + keys, values_ = memory + values;
        scores_ = memory + scores, weights_ = memory + weights, sums_ = memory + sums;
        all_ = Result::in(memory + all, rows_), one_ = Result::in(memory + one, rows_);
    }

    // Every split, one after the other.
    void compute() {
        load_queries();
        compute_split(0, all_);
        for (int64_t split = 1; split < tile_.splits(); split++) {
            compute_split(split, one_);
            merge(one_, all_, rows_, call_.padded);
        }
        write(all_);
    }

    // One of several splits; whoever computes the last of them merges them all.
    void compute(int64_t split, float* results, int64_t size, int32_t* waiting) {
        const auto result = [&](int64_t i) { return Result::in(results + i * size, rows_); };
        load_queries();
        compute_split(split, result(split));
        if (__atomic_sub_fetch(waiting, 1, __ATOMIC_ACQ_REL) > 0) return;
        for (int64_t i = 1; i < tile_.splits(); i++)
            merge(result(i), result(0), rows_, call_.padded);
        write(result(0));
    }

   private:
    static constexpr int BLOCK = 64 * Words::DEPTH;
    static constexpr int STEP = LANES * Words::DEPTH;  // columns of scores that make words
    static constexpr bool SCALED = std::is_same<Element, int8_t>::value;

    int64_t position(int64_t row) const { return tile_.position + row / call_.group; }

    // Where row's head stands in queries and in the output.
    float* place(const Activations& heads, int64_t row) const {
        const int64_t token = tile_.first + row / call_.group;
        const int64_t head = head_ * call_.group + row % call_.group;
        return heads.data + token * heads.stride + head * call_.dim;
    }

    void load_queries() {
        const F scale = splat(call_.heads.scale);
        for (int64_t row = 0; row < rows_; row++) {
            const float* query = place(call_.heads.q, row);
            for (int64_t w = 0; w < words_; w += LANES) {
                F parts[Words::DEPTH];
                for (int d = 0; d < Words::DEPTH; d++) {
                    const int64_t at = w * Words::DEPTH + d * LANES;
                    parts[d] = load_up_to(query + at, call_.dim - at) * scale;
                }
                store(queries_ + row * words_ + w, Words::pack(parts));
            }
        }
    }

    void clear(const Result& result) const {
        std::fill_n(result.maximum, Result::lanes(rows_), -INFINITY);
        std::fill_n(result.sum, Result::lanes(rows_) + rows_ * call_.padded, 0.0f);
    }

    // Adding zero makes 0 of -0, which a merge of several splits would have done.
    void write(const Result& result) const {
        for (int64_t row = 0; row < rows_; row++) {
            float* to = place(call_.heads.out, row);
            const float* from = result.out + row * call_.padded;
            const F share = splat(1.0f / result.sum[Result::lane(row)]);
            for (int64_t i = 0; i < call_.dim; i += LANES)
                store_up_to(to + i, (load(from + i) + zero()) * share, call_.dim - i);
        }
    }

    void compute_split(int64_t split, const Result& result) {
        const int64_t start = (tile_.first_split() + split) * SPLIT;
        const int64_t begin = std::max(start, tile_.begin) / BLOCK * BLOCK;
        const int64_t end = std::min(start + SPLIT, tile_.end);
        clear(result);
        std::fill_n(sums_, rows_ * LANES, 0.0f);
        locate(begin, end, next_);
        for (int64_t block = begin; block < end; block += BLOCK) {
            std::copy_n(next_, BLOCK, now_);
            locate(block + BLOCK, end, next_);
            pack_block(block);
            for (int64_t row = 0; row < rows_; row += TOGETHER)
                attend(block, row, std::min<int64_t>(TOGETHER, rows_ - row), result);
        }
        for (int64_t row = 0; row < rows_; row++)
            result.sum[Result::lane(row)] = sum(load(sums_ + row * LANES));
    }

    // -- A block's keys and values, in words

    void pack_block(int64_t block) {
        const int64_t begin = std::max(block, tile_.begin) - block;
        const int64_t end = std::min(block + BLOCK, tile_.end) - block;
        const auto* keys = static_cast<const Element*>(call_.cache.keys);
        const auto* values = static_cast<const Element*>(call_.cache.values);
        for (int64_t i = begin / LANES * LANES; i < end; i += LANES) pack_keys(keys, i);
        for (int64_t i = begin / Words::DEPTH * Words::DEPTH; i < end; i += Words::DEPTH) {
            const Element* rows[Words::DEPTH];
            for (int j = 0; j < Words::DEPTH; j++) rows[j] = find(values, i + j);
            Words::pack_columns(rows, call_.dim, call_.padded,
                                values_ + i / Words::DEPTH * call_.padded);
        }
        if (SCALED) find_scales();
    }

    // The row of the cache of each position of a block, -1 where nobody looks.
    void locate(int64_t block, int64_t end, int64_t (&rows)[BLOCK]) const {
        const int64_t size = call_.step.block_size;
        std::fill_n(rows, BLOCK, -1);
        end = std::min(end, block + BLOCK);
        for (int64_t position = std::max(block, tile_.begin); position < end;) {
            const int64_t within = position % size;
            const int64_t slot = tile_.table[position / size] * size + within;
            const int64_t count = std::min(size - within, end - position);
            for (int64_t i = 0; i < count; i++)
                rows[position - block + i] = (slot + i) * call_.kv_heads + head_;
            position += count;
        }
    }

    // Where a position's key or value is; the next block's comes a little nearer meanwhile.
    const Element* find(const Element* cache, int64_t position) const {
        static const Element nothing[MAX_DIM] = {};
        if (next_[position] >= 0) {
            const auto* next = reinterpret_cast<const char*>(cache + next_[position] * call_.dim);
            for (int64_t i = 0; i < call_.dim * int64_t(sizeof(Element)); i += 64)
                __builtin_prefetch(next + i);
        }
        return now_[position] < 0 ? nothing : cache + now_[position] * call_.dim;
    }

    // LANES keys become columns.
    void pack_keys(const Element* cache, int64_t column) {
        const Element* keys[LANES];
        for (int i = 0; i < LANES; i++) keys[i] = find(cache, column + i);
        for (int64_t w = 0; w < words_; w += LANES) {
            F square[LANES];
            const int64_t at = w * Words::DEPTH;
            ROSE_UNROLL
            for (int i = 0; i < LANES; i++)
                square[i] = Words::load_words(keys[i] + at, call_.dim - at);
            transpose(square);
            ROSE_UNROLL
            for (int i = 0; i < LANES; i++) store(keys_ + (w + i) * BLOCK + column, square[i]);
        }
    }

    void find_scales() {
        for (int i = 0; i < BLOCK; i++) {
            key_scales_[i] = now_[i] < 0 ? 0.0f : call_.cache.key_scales[now_[i]];
            value_scales_[i] = now_[i] < 0 ? 0.0f : call_.cache.value_scales[now_[i]];
        }
    }

    // -- Rows that are computed together

    void attend(int64_t block, int64_t row, int64_t count, const Result& result) {
        const int64_t begin = std::max(call_.begin(position(row)) - block, int64_t(0));
        const int64_t last = position(row + count - 1);
        const int64_t end = std::min(call_.end(last, tile_.length) - block, int64_t(BLOCK));
        if (begin >= end) return;
        const int64_t low = begin / STEP * STEP;
        const int64_t words = (call_.dim + Words::DEPTH - 1) / Words::DEPTH;
        product<Words>({queries_ + row * words_, words_, keys_ + low, BLOCK, scores_ + low, BLOCK,
                        words},
                       count, round_up(end - low, LANES), nullptr);
        alignas(64) float decay[LANES];
        softmax(block, row, count, low, round_up(end, STEP), result, decay);
        const int64_t from = begin / Words::DEPTH;
        const int64_t to = (end + Words::DEPTH - 1) / Words::DEPTH;
        product<Words>({weights_ + from, BLOCK / Words::DEPTH, values_ + from * call_.padded,
                        call_.padded, result.out + row * call_.padded, call_.padded, to - from},
                       count, call_.padded, decay);
    }

    // From scores to weights, and what earlier blocks are worth beside them.
    void softmax(int64_t block, int64_t row, int64_t count, int64_t low, int64_t high,
                 const Result& result, float* decay) {
        alignas(64) float maximum[LANES] = {};
        for (int64_t r = 0; r < count; r++)
            maximum[r] = finish_scores(block, position(row + r), low, high, scores_ + r * BLOCK);
        float* maxima = result.maximum + Result::lane(row);
        const F before = load(maxima), now = max(before, load(maximum));
        const F finite = max(now, splat(-FLT_MAX));  // inf - inf, where a row has seen nothing
        store(maxima, now);
        store(maximum, finite);
        store(decay, exp(before - finite));
        for (int64_t r = 0; r < count; r++) {
            float* sums = sums_ + (row + r) * LANES;
            const F total = weigh(scores_ + r * BLOCK, maximum[r], low, high,
                                  weights_ + r * BLOCK / Words::DEPTH);
            store(sums, load(sums) * splat(decay[r]) + total);
        }
    }

    // Bound them, hide what the row does not see; return the largest.
    float finish_scores(int64_t block, int64_t position, int64_t low, int64_t high, float* scores) {
        const int64_t begin = call_.begin(position) - block;
        const int64_t end = call_.end(position, tile_.length) - block;
        const float cap = call_.heads.softcap;
        F largest = splat(-INFINITY);
        for (int64_t i = low; i < high; i += LANES) {
            F score = load(scores + i);
            if (SCALED) score = score * load(key_scales_ + i);
            if (cap > 0) score = splat(cap) * tanh(score / splat(cap));
            if (begin > i || end < i + LANES)
                score = within(score, begin - i, end - i, splat(-INFINITY));
            store(scores + i, score);
            largest = max(score, largest);
        }
        return most(largest);
    }

    // exp(scores - maximum) in words; returns their sum, in LANES parts.
    F weigh(const float* scores, float maximum, int64_t low, int64_t high, float* words) const {
        F total = zero();
        for (int64_t i = low; i < high; i += STEP) {
            F weights[Words::DEPTH];
            ROSE_UNROLL
            for (int d = 0; d < Words::DEPTH; d++) {
                const int64_t at = i + d * LANES;
                weights[d] = exp(load(scores + at) - splat(maximum));
                total = total + weights[d];
                if (SCALED) weights[d] = weights[d] * load(value_scales_ + at);
            }
            store(words + i / Words::DEPTH, Words::pack(weights));
        }
        return total;
    }

    const Call& call_;
    const Tile& tile_;
    int64_t head_, rows_, words_;  // words_: of a query
    float *queries_, *keys_, *values_, *scores_, *weights_, *sums_;
    int64_t now_[BLOCK], next_[BLOCK];  // rows of this and of the next block, see locate
    float key_scales_[SCALED ? BLOCK : 1], value_scales_[SCALED ? BLOCK : 1];
    Result one_, all_;
};

template <class Words, class Element>
void compute(const Call& call, Plan& plan) {
    thread_local Workspace kept;
    const int64_t size = Result::size(plan.rows, call.padded);
    float* results = kept.room<float>(plan.results * size);
    const auto unit = [&](int64_t index, int) {
        const auto [at, split] = plan.units[index / call.kv_heads];
        const Tile& tile = plan.tiles[at];
        const int64_t head = index % call.kv_heads;
        TileWork<Words, Element> work(call, tile, head);
        if (split == ALL) return work.compute();
        work.compute(split, results + (tile.results + head * tile.splits()) * size, size,
                     &plan.waiting[tile.waiting + head]);
    };
    const int64_t count = int64_t(plan.units.size()) * call.kv_heads;
    if (plan.work(call) < SMALL)
        for (int64_t index = 0; index < count; index++) unit(index, 0);
    else
        parallel_for(count, unit);
}

#if defined(ROSE_AVX512)
using HalfWords = Bf16Words;
#else
using HalfWords = Fp32Words;
#endif

}  // namespace attending

void attention(const Attention& heads, const Sequences& step, const KvCache& cache) {
    using namespace attending;
    thread_local Plan plan;
    const Call call(heads, step, cache);
    plan.make(call);
    switch (cache.type) {
        case KV_FP32: return compute<Fp32Words, float>(call, plan);
        case KV_BF16: return compute<HalfWords, bf16>(call, plan);
        case KV_FP16: return compute<Fp32Words, fp16>(call, plan);
        case KV_INT8: return compute<HalfWords, int8_t>(call, plan);
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

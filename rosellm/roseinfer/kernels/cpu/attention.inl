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
#include "bytes.inl"
#include "few_rows.inl"
#include "pool.h"
#include "words.inl"
#include "workspace.h"
#if defined(ROSE_AMX)
#include "amx_words.inl"
#endif

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

// Those of several KV heads.
struct Results {
    float* first;
    int64_t apart, rows;

    Result operator[](int64_t head) const { return Result::in(first + head * apart, rows); }
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

// One tile for some KV heads, on one thread. Element is the type of the cache.
template <class Words, class Element>
class TileWork {
   public:
    // `after` is what this thread most likely does next, or null.
    TileWork(const Call& call, const Plan& plan, const Unit& unit, const Unit* after)
        : call_(call),
          tile_(plan.tiles[unit.tile]),
          head_(unit.head),
          heads_(unit.heads),
          plan_(plan),
          after_(after),
          rows_(tile_.tokens * call.group),
          few_(rows_ <= few_rows<Element>() && as_they_lie<Element>(call.dim)),
          words_(BYTES ? 2 * columns() / CELL
                       : round_up(call.dim, STEP) / (few_ ? Alone::DEPTH : Words::DEPTH)) {
        const int64_t heads = heads_;
        int64_t total = 0;
        const auto part = [&](int64_t size) {
            total += round_up(size, 16);  // whole lines of the processor's cache
            return total - round_up(size, 16);
        };
        const int64_t queries = part(heads * rows_ * words_), keys = part(words_ * BLOCK);
        const int64_t values = part(BLOCK / Words::DEPTH * call.padded);
        const int64_t scores = part(heads * TOGETHER * BLOCK);
        const int64_t weights = part(heads * TOGETHER * BLOCK / Words::DEPTH);
        const int64_t sums = part(heads * rows_ * LANES), size = Result::size(rows_, call.padded);
        const int64_t all = part(heads * size), one = part(heads * size);
        const int64_t decay = part(heads * LANES);
        const int64_t worths = part(BYTES ? 2 * heads * rows_ : 0);
        const int64_t weight_worths = part(BYTES ? 2 * heads * TOGETHER : 0);
        const int64_t digits = part(BYTES ? heads * TOGETHER * DIGITS : 0);
        const int64_t byte_sums = part(BYTES && few_ ? heads * rows_ * call.padded : 0);
        thread_local Workspace kept;
        float* memory = kept.room<float>(total);
        queries_ = memory + queries, keys_ = memory + keys, values_ = memory + values;
        scores_ = memory + scores, weights_ = memory + weights, sums_ = memory + sums;
        all_ = {memory + all, size, rows_}, one_ = {memory + one, size, rows_};
        decay_ = memory + decay;
        worths_ = reinterpret_cast<Worth*>(memory + worths);
        weight_worths_ = reinterpret_cast<Worth*>(memory + weight_worths);
        digits_ = reinterpret_cast<int32_t*>(memory + digits);
        byte_sums_ = reinterpret_cast<int32_t*>(memory + byte_sums);
    }

    // Every split, one after the other.
    void compute() {
        load_queries();
        compute_split(0, all_);
        for (int64_t split = 1; split < tile_.splits(); split++) {
            compute_split(split, one_);
            merge_heads(one_, all_);
        }
        write(all_);
    }

    // One of several splits; whoever computes the last of them merges them all.
    void compute(int64_t split, float* results, int64_t size, int32_t* waiting) {
        const auto result = [&](int64_t i) {
            return Results{results + i * size, tile_.splits() * size, rows_};
        };
        load_queries();
        compute_split(split, result(split));
        if (__atomic_sub_fetch(waiting, 1, __ATOMIC_ACQ_REL) > 0) return;
        for (int64_t i = 1; i < tile_.splits(); i++) merge_heads(result(i), result(0));
        write(result(0));
    }

   private:
    using Alone = typename Words::Alone;
    static constexpr int BLOCK = LANES == 16 ? 128 : 64;  // positions
    static constexpr int STEP = LANES * Words::DEPTH;  // columns of scores that make words
    static constexpr int WHOLE = Words::WHOLE * Words::DEPTH;  // numbers multiplied as one
    static_assert(STEP % WHOLE == 0);
    static_assert(FEW_ROWS * Words::DEPTH <= TOGETHER);  // weights of few rows have room
    static constexpr bool SCALED = std::is_same<Element, int8_t>::value;
    static constexpr bool BYTES = in_bytes<Element>();
    static constexpr bool AS_THEY_LIE = few_rows<Element>() && Cell<Element>::NUMBERS;
    static constexpr int64_t DIGITS = 2 * BLOCK / CELL;  // cells of a row's weights

    int64_t position(int64_t row) const { return tile_.position + row / call_.group; }

    // Where a row of the KV head `head`, of ours, stands in queries and in the output.
    float* place(const Activations& heads, int64_t head, int64_t row) const {
        const int64_t token = tile_.first + row / call_.group;
        const int64_t query_head = (head_ + head) * call_.group + row % call_.group;
        return heads.data + token * heads.stride + query_head * call_.dim;
    }

    void load_queries() {
        if constexpr (BYTES)
            split_queries();
        else
            few_ ? load_queries_as<Alone>() : load_queries_as<Words>();
    }

    template <class As>
    void load_queries_as() {
        const F scale = splat(call_.heads.scale);
        for (int64_t at = 0; at < heads_ * rows_; at++) {
            const float* query = place(call_.heads.q, at / rows_, at % rows_);
            for (int64_t w = 0; w < words_; w += LANES) {
                F parts[As::DEPTH];
                for (int d = 0; d < As::DEPTH; d++) {
                    const int64_t from = w * As::DEPTH + d * LANES;
                    parts[d] = load_up_to(query + from, call_.dim - from) * scale;
                }
                store(queries_ + at * words_ + w, As::pack(parts));
            }
        }
    }

    void clear(const Result& result) const {
        std::fill_n(result.maximum, Result::lanes(rows_), -INFINITY);
        std::fill_n(result.sum, Result::lanes(rows_) + rows_ * call_.padded, 0.0f);
    }

    void merge_heads(const Results& split, const Results& all) const {
        for (int64_t head = 0; head < heads_; head++)
            merge(split[head], all[head], rows_, call_.padded);
    }

    // Adding zero makes 0 of -0, which a merge of several splits would have done.
    void write(const Results& results) const {
        for (int64_t at = 0; at < heads_ * rows_; at++) {
            const int64_t head = at / rows_, row = at % rows_;
            const Result result = results[head];
            float* to = place(call_.heads.out, head, row);
            const float* from = result.out + row * call_.padded;
            const F share = splat(1.0f / result.sum[Result::lane(row)]);
            for (int64_t i = 0; i < call_.dim; i += LANES)
                store_up_to(to + i, (load(from + i) + zero()) * share, call_.dim - i);
        }
    }

    void compute_split(int64_t split, const Results& results) {
        const int64_t start = (tile_.first_split() + split) * SPLIT;
        const int64_t begin = std::max(start, tile_.begin) / BLOCK * BLOCK;
        const int64_t end = std::min(start + SPLIT, tile_.end);
        for (int64_t head = 0; head < heads_; head++) clear(results[head]);
        std::fill_n(sums_, heads_ * rows_ * LANES, 0.0f);
        locate(tile_, head_, begin, end, next_);
        for (int64_t block = begin; block < end; block += BLOCK) {
            std::copy_n(next_, BLOCK, now_);
            if (block + BLOCK < end)
                locate(tile_, head_, block + BLOCK, end, next_);
            else
                locate_after(split);
            if constexpr (AS_THEY_LIE) {
                if (few_) {
                    attend_few(block, results);
                    continue;
                }
            }
            attend_many(block, results);
        }
        for (int64_t at = 0; at < heads_ * rows_; at++)
            results[at / rows_].sum[Result::lane(at % rows_)] = sum(load(sums_ + at * LANES));
    }

    // The positions of a block that a row sees, or some rows do.
    struct Seen {
        int64_t begin, end;
    };
    Seen seen(int64_t block, int64_t row, int64_t count) const {
        const int64_t last = position(row + count - 1);
        return {std::max(call_.begin(position(row)) - block, int64_t(0)),
                std::min(call_.end(last, tile_.length) - block, int64_t(BLOCK))};
    }

    // -- Few rows: all heads of some positions, then of the next

    void attend_few(int64_t block, const Results& results) {
        const Seen seen = this->seen(block, 0, rows_);
        if (seen.begin >= seen.end) return;
        find_rows();
        const int64_t bytes = heads_ * call_.dim * int64_t(sizeof(Element));
        const int64_t low = seen.begin / TAKEN * TAKEN;
        const auto coming = [&](const Element* const* rows, int64_t from, int64_t end) {
            return Coming<Element>(rows + from, std::min(TAKEN, end - from), bytes);
        };
        for (int64_t from = low; from < seen.end; from += TAKEN) {
            const bool last = from + TAKEN >= seen.end;
            const Coming<Element> ahead = last ? coming(value_rows_, low, seen.end)
                                               : coming(key_rows_, from + TAKEN, seen.end);
            if constexpr (BYTES)
                score_bytes_of(from, ahead);
            else
                score(from, ahead);
        }
        const int64_t first = seen.begin / STEP * STEP;
        for (int64_t head = 0; head < heads_; head++) {
            if (SCALED) find_scales(head);
            softmax<Alone>(block, head, 0, rows_, first, round_up(seen.end, STEP), results[head],
                           decay_ + head * LANES);
        }
        if (BYTES) std::fill_n(byte_sums_, heads_ * rows_ * call_.padded, 0);
        for (int64_t from = low; from < seen.end; from += TAKEN) {
            const bool last = from + TAKEN >= seen.end;
            const int64_t end = std::min(from + TAKEN, seen.end);
            const Coming<Element> ahead = last ? coming(key_rows_, BLOCK, BLOCK + TAKEN)
                                               : coming(value_rows_, from + TAKEN, seen.end);
            if constexpr (BYTES)
                add_bytes_of(std::max(from, first), round_up(end, CELL), ahead);
            else
                add(std::max(from, seen.begin), end, results, from == low ? decay_ : nullptr, ahead);
        }
        if constexpr (BYTES) finish_values(results);
    }

    // Where positions lie: of this block, and keys of the next one's first. Those that nobody sees lie
    // somewhere.
    void find_rows() {
        const auto* keys = static_cast<const Element*>(call_.cache.keys);
        const auto* values = static_cast<const Element*>(call_.cache.values);
        for (int64_t i = 0; i < BLOCK; i++) {
            const int64_t at = std::max(now_[i], int64_t(0)) * call_.dim;
            key_rows_[i] = keys + at, value_rows_[i] = values + at;
        }
        for (int64_t i = 0; i < TAKEN; i++)
            key_rows_[BLOCK + i] = keys + std::max(next_[i], int64_t(0)) * call_.dim;
    }

    // Queries by TAKEN keys of the block, of every head.
    void score(int64_t from, Coming<Element> coming) {
        for (int64_t head = 0; head < heads_; head++) {
            const Lying<Element> keys{key_rows_ + from, head * call_.dim, call_.dim};
            const float* queries = queries_ + head * rows_ * words_;
            float* scores = scores_ + head * TOGETHER * BLOCK + from;
            with_few(rows_, [&](auto rows) {
                score_keys<Element, rows>(keys, queries, words_, scores, BLOCK, coming);
            });
        }
    }

    // Weights by values [from, to) of the block, of every head.
    void add(int64_t from, int64_t to, const Results& results, const float* decay,
             Coming<Element> coming) {
        for (int64_t head = 0; head < heads_; head++) {
            const Lying<Element> values{value_rows_ + from, head * call_.dim, call_.dim};
            const Weighing weighing{weights_of(head) + from, BLOCK,
                                    results[head].out, call_.padded,
                                    decay ? decay + head * LANES : nullptr, from};
            with_few(rows_, [&](auto rows) {
                add_values<Element, rows>(values, to - from, weighing, coming);
            });
        }
    }

    // -- Many rows: head by head, whose keys and values are laid out anew

    void attend_many(int64_t block, const Results& results) {
        for (int64_t head = 0; head < heads_; head++) {
            if constexpr (BYTES)
                pack_bytes(block, head);
            else
                pack_block(block, head);
            for (int64_t row = 0; row < rows_; row += TOGETHER) {
                const int64_t count = std::min<int64_t>(TOGETHER, rows_ - row);
                const Seen seen = this->seen(block, row, count);
                if (seen.begin >= seen.end) continue;
                if constexpr (BYTES)
                    attend_bytes(block, head, row, count, seen, results[head]);
                else
                    attend(block, head, row, count, seen, results[head]);
            }
        }
    }

    // -- A block's keys and values, in words

    void pack_block(int64_t block, int64_t head) {
        const int64_t begin = std::max(block, tile_.begin) - block;
        const int64_t end = std::min(block + BLOCK, tile_.end) - block;
        const auto* keys = static_cast<const Element*>(call_.cache.keys) + head * call_.dim;
        const auto* values = static_cast<const Element*>(call_.cache.values) + head * call_.dim;
        for (int64_t i = begin / LANES * LANES; i < end; i += LANES) pack_keys(keys, i);
        for (int64_t i = begin / WHOLE * WHOLE; i < round_up(end, WHOLE); i += Words::DEPTH) {
            const Element* rows[Words::DEPTH];
            for (int j = 0; j < Words::DEPTH; j++) rows[j] = find(values, i + j);
            Words::pack_columns(rows, call_.dim, call_.padded,
                                values_ + i / Words::DEPTH * call_.padded);
        }
        if (SCALED) find_scales(head);
    }

    // The row of the cache of each position of a block and a head, -1 where nobody looks.
    void locate(const Tile& tile, int64_t head, int64_t block, int64_t end,
                int64_t (&rows)[BLOCK]) const {
        const int64_t size = call_.step.block_size;
        std::fill_n(rows, BLOCK, -1);
        end = std::min(end, block + BLOCK);
        for (int64_t position = std::max(block, tile.begin); position < end;) {
            const int64_t within = position % size;
            const int64_t slot = tile.table[position / size] * size + within;
            const int64_t count = std::min(size - within, end - position);
            for (int64_t i = 0; i < count; i++)
                rows[position - block + i] = (slot + i) * call_.kv_heads + head;
            position += count;
        }
    }

    // Of the first block after ours.
    void locate_after(int64_t split) {
        std::fill_n(next_, BLOCK, -1);
        if (split + 1 < tile_.splits() && !tile_.shared) return locate_split(tile_, head_, split + 1);
        if (!after_) return;
        locate_split(plan_.tiles[after_->tile], after_->head, std::max<int64_t>(after_->split, 0));
    }

    void locate_split(const Tile& tile, int64_t head, int64_t split) {
        const int64_t start = (tile.first_split() + split) * SPLIT;
        locate(tile, head, std::max(start, tile.begin) / BLOCK * BLOCK,
               std::min(start + SPLIT, tile.end), next_);
    }

    // Where a position's key or value is; one that follows comes nearer meanwhile. More of them would
    // be in each other's way: rows of a head lie in few sets of the processor's cache.
    const Element* find(const Element* cache, int64_t position) const {
        static const Element nothing[MAX_DIM] = {};
        constexpr int64_t AHEAD = 8;
        const int64_t ahead = position + AHEAD < BLOCK ? now_[position + AHEAD]
                                                       : next_[position + AHEAD - BLOCK];
        if (ahead >= 0) {
            const auto* next = reinterpret_cast<const char*>(cache + ahead * call_.dim);
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

    void find_scales(int64_t head) {
        for (int i = 0; i < BLOCK; i++) {
            key_scales_[i] = now_[i] < 0 ? 0.0f : call_.cache.key_scales[now_[i] + head];
            value_scales_[i] = now_[i] < 0 ? 0.0f : call_.cache.value_scales[now_[i] + head];
        }
    }

    // -- Rows that are computed together

    void attend(int64_t block, int64_t head, int64_t row, int64_t count, const Seen& seen,
                const Result& result) {
        const auto [begin, end] = seen;
        const int64_t low = begin / STEP * STEP;
        const float* queries = queries_ + (head * rows_ + row) * words_;
        float *scores = scores_ + head * TOGETHER * BLOCK, *weights = weights_of(head);
        const int64_t words = round_up(call_.dim, WHOLE) / Words::DEPTH;
        product(Words(), {queries, words_, keys_ + low, BLOCK, scores + low, BLOCK, words}, count,
                round_up(end - low, LANES), nullptr);
        alignas(64) float decay[LANES];
        softmax<Words>(block, head, row, count, low, round_up(end, STEP), result, decay);
        const int64_t from = begin / WHOLE * Words::WHOLE;
        const int64_t to = round_up(end, WHOLE) / Words::DEPTH;
        product(Words(),
                {weights + from, BLOCK / Words::DEPTH, values_ + from * call_.padded, call_.padded,
                 result.out + row * call_.padded, call_.padded, to - from},
                count, call_.padded, decay);
    }

    // From scores to weights, and what earlier blocks are worth beside them.
    template <class As>
    void softmax(int64_t block, int64_t head, int64_t row, int64_t count, int64_t low,
                 int64_t high, const Result& result, float* decay) {
        float *scores = scores_ + head * TOGETHER * BLOCK, *weights = weights_of(head);
        alignas(64) float maximum[LANES] = {};
        for (int64_t r = 0; r < count; r++)
            maximum[r] = finish_scores(block, position(row + r), low, high, scores + r * BLOCK);
        float* maxima = result.maximum + Result::lane(row);
        const F before = load(maxima), now = max(before, load(maximum));
        const F finite = max(now, splat(-FLT_MAX));  // inf - inf, where a row has seen nothing
        store(maxima, now);
        store(maximum, finite);
        store(decay, exp(before - finite));
        for (int64_t r = 0; r < count; r++) {
            float* sums = sums_ + (head * rows_ + row + r) * LANES;
            const F total = weigh<As>(scores + r * BLOCK, maximum[r], low, high,
                                      weights + r * BLOCK / As::DEPTH);
            store(sums, load(sums) * splat(decay[r]) + total);
            if constexpr (BYTES) split_weights(head, r, low, high);
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

    // What is not seen weighs nothing, even where its scale is no number.
    static F scaled(F weight, F scale) {
        return select(less(zero(), weight), weight * scale, weight);
    }

    // exp(scores - maximum) in words; returns their sum, in LANES parts.
    template <class As>
    F weigh(const float* scores, float maximum, int64_t low, int64_t high, float* words) const {
        F total = zero();
        for (int64_t i = low; i < high; i += LANES * As::DEPTH) {
            F weights[As::DEPTH];
            ROSE_UNROLL
            for (int d = 0; d < As::DEPTH; d++) {
                const int64_t at = i + d * LANES;
                weights[d] = exp(load(scores + at) - splat(maximum));
                total = total + weights[d];
                if (SCALED) weights[d] = scaled(weights[d], load(value_scales_ + at));
            }
            store(words + i / As::DEPTH, As::pack(weights));
        }
        return total;
    }

    float* weights_of(int64_t head) const {
        return weights_ + head * TOGETHER * BLOCK / Words::DEPTH;
    }

    // -- Bytes, see attention_bytes.inl

    int64_t columns() const { return round_up(call_.dim, LINE); }
    void split_queries();
    void score_bytes_of(int64_t from, Coming<Element> coming);
    void split_weights(int64_t head, int64_t row, int64_t low, int64_t high);
    void add_bytes_of(int64_t from, int64_t to, Coming<Element> coming);
    void finish_values(const Results& results);
    void pack_bytes(int64_t block, int64_t head);
    void attend_bytes(int64_t block, int64_t head, int64_t row, int64_t count, const Seen& seen,
                      const Result& result);
    int32_t* query_digits(int64_t at) const {
        return reinterpret_cast<int32_t*>(queries_ + at * words_);
    }
    int32_t* weight_digits(int64_t head) const { return digits_ + head * TOGETHER * DIGITS; }
    int32_t* key_cells() const { return reinterpret_cast<int32_t*>(keys_); }
    int32_t* value_cells() const { return reinterpret_cast<int32_t*>(values_); }

    const Call& call_;
    const Tile& tile_;
    int64_t head_, heads_;
    const Plan& plan_;
    const Unit* after_;
    int64_t rows_;  // of each head
    bool few_;
    int64_t words_;  // of a query
    float *queries_, *keys_, *values_, *scores_, *weights_, *sums_, *decay_;
    Worth *worths_, *weight_worths_;  // of bytes: of queries, and of weights
    int32_t *digits_, *byte_sums_;    // of weights; and what values have come to
    int64_t now_[BLOCK], next_[BLOCK];  // rows of this and of the next block, see locate
    const Element *key_rows_[BLOCK + TAKEN], *value_rows_[BLOCK];  // see find_rows
    float key_scales_[SCALED ? BLOCK : 1], value_scales_[SCALED ? BLOCK : 1];
    Results one_, all_;
};

}  // namespace attending
}  // namespace
}  // namespace rose

#if defined(ROSE_BYTES)
#include "attention_bytes.inl"
#endif

namespace rose {
namespace {
namespace attending {

template <class Words, class Element>
void compute(const Call& call, Plan& plan) {
    thread_local Workspace kept;
    const int64_t size = Result::size(plan.rows, call.padded);
    float* results = kept.room<float>(plan.results * size);
    const int64_t count = int64_t(plan.units.size());
    const auto unit = [&](int64_t index, int) {
        const NormalNumbers normal;  // else much of a softmax would be subnormal, and slow
        const Unit& unit = plan.units[index];
        const Tile& tile = plan.tiles[unit.tile];
        const int64_t after = index + pool_size();
        TileWork<Words, Element> work(call, plan, unit, after < count ? &plan.units[after] : nullptr);
        if (unit.split == ALL) return work.compute();
        work.compute(unit.split, results + (tile.results + unit.head * tile.splits()) * size, size,
                     &plan.waiting[tile.waiting + unit.head]);
    };
    if (plan.work(call) < SMALL)
        for (int64_t index = 0; index < count; index++) unit(index, 0);
    else
        parallel_for(count, unit);
}

#if defined(ROSE_AMX)
using HalfWords = AmxWords;
#elif defined(ROSE_BF16)
using HalfWords = Bf16Words;
#else
using HalfWords = Fp32Words;
#endif

using ByteWords = std::conditional_t<in_bytes<int8_t>(), Fp32Words, HalfWords>;

}  // namespace attending

void attention(const Attention& heads, const Sequences& step, const KvCache& cache) {
    using namespace attending;
    thread_local Plan plan;
    const Call call(heads, step, cache);
    plan.make(call, cache.type == KV_INT8 ? few_rows<int8_t>() : FEW_ROWS);
    switch (cache.type) {
        case KV_FP32: return compute<Fp32Words, float>(call, plan);
        case KV_BF16: return compute<HalfWords, bf16>(call, plan);
        case KV_FP16: return compute<Fp32Words, fp16>(call, plan);
        case KV_INT8: return compute<ByteWords, int8_t>(call, plan);
    }
}

}  // namespace
}  // namespace rose

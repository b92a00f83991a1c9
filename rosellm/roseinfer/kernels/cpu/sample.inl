// The next token of rows of logits, and how likely tokens are: kernels/sampling.py says what is
// meant.
//
// Filters become one bound of tempered logits, below which no token is drawn. Among the others the
// sum of logit and Gumbel noise decides, which is drawn from their distribution; noise is only
// worked out where it can win.
#pragma once

#include <iterator>
#include <new>
#include <numeric>

#include "noise.inl"
#include "vocabulary.inl"

namespace rose {
namespace {

constexpr float LOG2_E = 1.44269504f;
static_assert(BLOCK % GROUP == 0, "a block has whole groups");

// What rows keep from one stage to the next, in memory of the calling thread.
struct Memory {
    Workspace rows, tops, parts;

    static Memory& own() {
        thread_local Memory memory;
        return memory;
    }
};

// -- Whether there is anything to draw from ----------------------------------------------------

class Soundness : public Row {
   public:
    Soundness(const Logits& logits, float* tops, Part* parts, uint8_t* sound)
        : Row(logits, tops, parts), sound_(sound) {}

    void settle(int64_t) {
        find_most();
        *sound_ = sound();
    }

   private:
    uint8_t* sound_;
};

constexpr Stage<Soundness> SOUNDNESS[] = {{&Soundness::scan, false}, {&Soundness::settle, true}};

void soundness(const Activations& logits, const float* known, uint8_t* sound) {
    const Logits shape = {nullptr, nullptr, nullptr, logits.width};
    Memory& memory = Memory::own();
    Soundness* rows = memory.rows.room<Soundness>(logits.count);
    float* tops = memory.tops.room<float>(logits.count * shape.blocks());
    Part* parts = memory.parts.room<Part>(logits.count * shape.parts());
    for (int64_t row = 0; row < logits.count; row++)
        new (rows + row) Soundness(Logits::of(logits, row, known, nullptr),
                                   tops + row * shape.blocks(), parts + row * shape.parts(),
                                   sound + row);
    run_stages(rows, logits.count, shape, SOUNDNESS, std::size(SOUNDNESS));
}

// -- Tokens ------------------------------------------------------------------------------------

class Draw : public Row {
   public:
    Draw(const Logits& logits, float* tops, Part* parts, const Sampling& wanted, int64_t* token)
        : Row(logits, tops, parts), wanted_(wanted), token_(token) {}

    void settle(int64_t) {
        find_most();
        *token_ = broken_ < 0 ? likeliest_ : wanted_.temperature > 0 ? 0 : broken_;
        if (!random()) return;
        const float factor = 1.0f / std::max(wanted_.temperature, TINY);
        scale_ = {most_, std::max(factor, TINY)};
        if (wanted_.min_p > 0)
            least_ = std::min(0.0f, std::max(float(std::log(double(wanted_.min_p))), LEAST));
    }

    void weigh(int64_t part) {
        if (random() && wanted_.top_p < 1 && !ranked()) Row::weigh(part);
    }

    // Top-p is taken over what min-p and top-k leave.
    void filter(int64_t) {
        if (!random()) return;
        if (ranked())
            filter_ranks();
        else if (wanted_.top_p < 1)
            filter_mass();
        float room[BLOCK];
        const int64_t first = likeliest_ / GROUP * GROUP, block = first / BLOCK;
        const float* logits = logits_.block(block, room);
        start_ = {-INFINITE, likeliest_};
        race_group(stream(), logits + (first - block * BLOCK), first, start_);
    }

    void race(int64_t number) {
        if (!random()) return;
        const Stream words = stream();
        alignas(64) float room[BLOCK];
        Contender best = start_;
        for (int64_t block = number * PART; block < last_block(number); block++) {
            if (scale_(tops_[block]) < std::max(least_, best.score - MOST_NOISE)) continue;
            const float* logits = logits_.block(block, room);
            for (int64_t i = 0; i < BLOCK; i += GROUP)
                race_group(words, logits + i, block * BLOCK + i, best);
        }
        parts_[number].best = best;
    }

    void finish(int64_t) {
        if (!random()) return;
        Contender best = start_;
        for (int64_t number = 0; number < logits_.parts(); number++)
            if (parts_[number].best.beats(best)) best = parts_[number].best;
        *token_ = best.token;
    }

   private:
    static constexpr int64_t FIRST_BLOCKS = 64;
    static constexpr float TINY = std::numeric_limits<float>::min();

    // Of a row that is not sound, the token is settled.
    bool random() const { return wanted_.temperature > 0 && sound(); }
    bool ranked() const { return wanted_.top_k > 0 && wanted_.top_k < logits_.size; }
    Stream stream() const { return Stream(wanted_.seed, wanted_.choice, wanted_.position); }

    void filter_ranks() {
        const int64_t count = wanted_.top_k;
        Values likely = gather(scale_, reached_by(count, scale_, least_));
        int64_t equals = 0;  // of the last one, beyond the count
        if (likely.count() >= count) {
            least_ = narrow<Count>(likely, double(count));
            likely = gather(scale_, least_);
            equals = likely.count() - count;
        }
        if (wanted_.top_p >= 1) return;
        const int64_t mass = likely.weight<Mass>(LEAST) - equals * mass_of(least_);
        least_ = narrow<Mass>(likely, double(wanted_.top_p) * double(mass));
    }

    // Of more and more of the likeliest blocks, until they have the mass.
    void filter_mass() {
        const double target = double(wanted_.top_p) * double(mass());
        const float least = std::max(least_, NO_MASS);
        for (int64_t blocks = FIRST_BLOCKS;; blocks *= 4) {
            const float bound = reached_by(blocks, scale_, least);
            const Values likely = gather(scale_, bound);
            if (bound > least && double(likely.weight<Mass>(bound)) < target) continue;
            least_ = narrow<Mass>(likely, target);
            return;
        }
    }

    static int64_t mass_of(float x) {
        float lanes[LANES];
        store(lanes, splat(-INFINITE));
        lanes[0] = x;
        Mass mass;
        mass.add(load(lanes), splat(x));
        return mass.total();
    }

    // Who in a group beats the best. Few can: the others' noise would have to be too rare.
    ROSE_INLINE void race_group(const Stream& stream, const float* logits, int64_t first,
                                Contender& best) const {
        I words[4];
        stream.words(first, words);
        const F shift = splat(scale_.shift), factor = splat(scale_.factor * LOG2_E);
        F chance = splat(-INFINITE);
        ROSE_UNROLL
        for (int i = 0; i < 4; i++) {
            const F a = load(logits + i * LANES) - shift;
            chance = max(fma(a, factor, rarity(whole(words[i]))), chance);
        }
        const F bar = splat(best.score * LOG2_E - 0.01f);  // more than roundings come to
        if (lanes(less(chance, bar)) != ALL_LANES) compare(words, logits, first, best);
    }

    // Rare, and so not worth its room in the loop.
    __attribute__((noinline)) void compare(const I (&words)[4], const float* logits, int64_t first,
                                           Contender& best) const {
        float scores[GROUP];
        for (int i = 0; i < 4; i++) {
            const F x = scale_(load(logits + i * LANES)), score = x + gumbel(whole(words[i]));
            store(scores + i * LANES, select(less(x, splat(least_)), splat(-INFINITE), score));
        }
        for (int i = 0; i < GROUP; i++) {
            const Contender other = {scores[i], first + i};
            if (other.beats(best)) best = other;
        }
    }

    const Sampling& wanted_;
    int64_t* token_;
    Contender start_ = {-INFINITE, 0};
};

constexpr Stage<Draw> DRAW[] = {
    {&Draw::scan, false},  {&Draw::settle, true}, {&Draw::weigh, false},
    {&Draw::filter, true}, {&Draw::race, false},  {&Draw::finish, true},
};
constexpr int64_t GREEDY = 2;  // stages that do if no row is random

void draw(const Activations& logits, const float* known, const Allowed& allowed,
          const Sampling* wanted, int64_t* tokens) {
    const Logits shape = {nullptr, nullptr, nullptr, logits.width};
    Memory& memory = Memory::own();
    Draw* rows = memory.rows.room<Draw>(logits.count);
    float* tops = memory.tops.room<float>(logits.count * shape.blocks());
    Part* parts = memory.parts.room<Part>(logits.count * shape.parts());
    bool random = false;
    for (int64_t row = 0; row < logits.count; row++) {
        const uint32_t* bits = allowed.bits ? allowed.bits + row * allowed.stride : nullptr;
        new (rows + row) Draw(Logits::of(logits, row, known, bits),
                              tops + row * shape.blocks(), parts + row * shape.parts(),
                              wanted[row], tokens + row);
        random |= wanted[row].temperature > 0;
    }
    run_stages(rows, logits.count, shape, DRAW, random ? std::size(DRAW) : GREEDY);
}

// -- Log-probabilities -------------------------------------------------------------------------

class Likelihood : public Row {
   public:
    Likelihood(const Logits& logits, float* tops, Part* parts, int64_t token, float* chosen,
               const Likeliest& likeliest)
        : Row(logits, tops, parts), token_(token), chosen_(chosen), out_(likeliest) {}

    void settle(int64_t) {
        find_most();
        scale_ = {most_, 1.0f};
    }

    void finish(int64_t) {
        normalizer_ = sound() ? std::log(double(mass()) / ONE) : std::nan("");
        *chosen_ = of(token_);
        if (broken_ < 0)
            find_likeliest();
        else
            std::iota(out_.ids, out_.ids + out_.width, 0);
        for (int64_t i = 0; i < out_.width; i++) out_.values[i] = of(out_.ids[i]);
    }

   private:
    // Sorts as the likeliest first, and equals by id, which stands in the lower half.
    using Key = uint64_t;

    static Key key_of(float logit, int64_t id) {
        const uint32_t order = uint32_t(order_of(logit + 0.0f)) ^ 0x7fffffff;  // the largest: 0
        return Key(order) << 32 | uint32_t(id);
    }

    float of(int64_t token) const {
        return float(double(logits_.data[token]) - double(most_) - normalizer_);
    }

    // Those above the bound are fewer than wanted; ids in order fill up with those that equal it.
    void find_likeliest() {
        if (out_.width == 0) return;
        thread_local Workspace workspace;
        Key* keys = workspace.room<Key>(out_.width);
        int64_t above = 0, equals = 0;
        const float bound = last();
        for (int64_t block = 0; block < logits_.blocks(); block++) {
            if (tops_[block] < bound) continue;
            const int64_t end = std::min((block + 1) * BLOCK, logits_.size);
            for (int64_t id = block * BLOCK; id < end; id++) {
                const float logit = logits_.data[id];
                if (logit > bound) keys[above++] = key_of(logit, id);
                if (logit == bound && equals < out_.width) out_.ids[equals++] = id;
            }
        }
        std::sort(keys, keys + above);
        std::copy_backward(out_.ids, out_.ids + out_.width - above, out_.ids + out_.width);
        std::transform(keys, keys + above, out_.ids, [](Key key) { return key & 0xffffffff; });
    }

    // The least logit among the likeliest.
    float last() const {
        const Scale plain = {0.0f, 1.0f};
        const Values likely = gather(plain, reached_by(out_.width, plain, LEAST));
        if (likely.count() < out_.width) return -INFINITE;
        return narrow<Count>(likely, double(out_.width));
    }

    int64_t token_;
    float* chosen_;
    Likeliest out_;
    double normalizer_ = 0.0;
};

constexpr Stage<Likelihood> LIKELIHOOD[] = {
    {&Likelihood::scan, false},
    {&Likelihood::settle, true},
    {&Likelihood::weigh, false},
    {&Likelihood::finish, true},
};

void logprobs(const Activations& logits, const int64_t* tokens, float* chosen,
              const Likeliest& likeliest) {
    const Logits shape = {nullptr, nullptr, nullptr, logits.width};
    Memory& memory = Memory::own();
    Likelihood* rows = memory.rows.room<Likelihood>(logits.count);
    float* tops = memory.tops.room<float>(logits.count * shape.blocks());
    Part* parts = memory.parts.room<Part>(logits.count * shape.parts());
    for (int64_t row = 0; row < logits.count; row++) {
        const int64_t first = row * likeliest.width;
        new (rows + row) Likelihood(Logits::of(logits, row, nullptr, nullptr),
                                    tops + row * shape.blocks(), parts + row * shape.parts(),
                                    tokens[row], chosen + row,
                                    {likeliest.width, likeliest.ids + first,
                                     likeliest.values + first});
    }
    run_stages(rows, logits.count, shape, LIKELIHOOD, std::size(LIKELIHOOD));
}

}  // namespace
}  // namespace rose

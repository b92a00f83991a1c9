// Finding a value among many by what lies above it, without sorting: the k-th largest, or the one
// at which the mass of a distribution reaches a share. Bounds are narrowed until one value is left.
//
// Counts and masses are integers: the order in which they are added changes nothing.
#pragma once

#include <limits>

#include "lanes.inl"
#include "simd.h"
#include "words.inl"

namespace rose {
namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();

// No value counts below this, see Mass.
constexpr float NO_MASS = -30.0f;

// How many are at least some value.
class Count {
   public:
    ROSE_INLINE void add(F x, F least) {
        total_ += LANES - __builtin_popcount(lanes(less(x, least)));
    }
    int64_t total() { return total_; }

   private:
    int64_t total_ = 0;
};

// The sum of e^x, x <= 0, over those that are at least some value, in steps of 2^-40: each is made
// a whole number of steps in two parts, the first in steps of 2^-20.
class Mass {
   public:
    ROSE_INLINE void add(F x, F least) {
        const F kept = select(less(x, least), splat(2 * NO_MASS), max(x, splat(2 * NO_MASS)));
        const F odds = exp(kept) * splat(0x1p20f);
        const I coarse = rounded(odds);
        high_ = rose::add(high_, coarse);
        low_ = rose::add(low_, rounded((odds - floats(coarse)) * splat(0x1p20f)));
        if (++pending_ == 1024) flush();  // 2^20 each, in 31 bits
    }
    ROSE_INLINE int64_t total() {
        flush();
        return total_;
    }

   private:
    ROSE_INLINE void flush() {
        int32_t high[LANES], low[LANES];
        store_ints(high, high_), store_ints(low, low_);
        for (int lane = 0; lane < LANES; lane++)
            total_ += int64_t(high[lane]) * (1 << 20) + low[lane];
        high_ = low_ = splat(0), pending_ = 0;
    }

    I high_ = splat(0), low_ = splat(0);
    int32_t pending_ = 0;
    int64_t total_ = 0;
};

constexpr double ONE = 0x1p40;  // the mass of x = 0

// -- Arrays of values --------------------------------------------------------------------------

// Values in memory that has room for LANES more; none is -0, NaN or -infinity.
class Values {
   public:
    explicit Values(float* data) : data_(data) {}

    int64_t count() const { return count_; }
    float* data() { return data_; }

    ROSE_INLINE void append(F a, uint32_t which) {
        if (which) count_ += pack_lanes(data_ + count_, a, which);
    }

    // Before the values are read: what fills the last vector is below them all.
    void close() { store(data_ + count_, splat(-INFINITE)); }

    template <class Weight>
    int64_t weight(float least) const {
        Weight weight;
        for (int64_t i = 0; i < count_; i += LANES) weight.add(load(data_ + i), splat(least));
        return weight.total();
    }

    // Of the values at least `pivot`, or of those below it, lose the others.
    void keep(float pivot, bool upper) {
        const int64_t before = count_;
        const F bound = splat(pivot);
        count_ = 0;
        for (int64_t i = 0; i < before; i += LANES) {
            const F a = load(data_ + i);
            const uint32_t below = lanes(less(a, bound));
            const uint32_t inside = before - i < LANES ? (1u << (before - i)) - 1 : ALL_LANES;
            append(a, inside & (upper ? ~below : below));
        }
        close();
    }

    float least() const { return -extreme(-1.0f); }
    float most() const { return extreme(1.0f); }

   private:
    float extreme(float sign) const {
        F found = splat(-INFINITE);
        for (int64_t i = 0; i < count_; i += LANES) {
            const F a = load(data_ + i) * splat(sign);
            const int64_t left = count_ - i;
            found = max(left < LANES ? within(a, 0, left, splat(-INFINITE)) : a, found);
        }
        return rose::most(found);
    }

    float* data_;
    int64_t count_ = 0;
};

// A number that orders as the value does.
inline int32_t order_of(float a) {
    const int32_t bits = int32_t(bits_of(a));
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

// A value above low and at most high. Halving what lies between them is quick, halving the numbers
// that floats can have there always ends.
inline float between(float low, float high, int round) {
    const float middle = low * 0.5f + high * 0.5f;
    if (round % 2 == 0 && middle > low && middle <= high) return middle;
    const int64_t begin = order_of(low), end = order_of(high);
    const int32_t order = int32_t(begin + (end - begin + 1) / 2);
    return float_of(uint32_t(order < 0 ? order ^ 0x7fffffff : order));
}

// The largest value such that those at least as large weigh `target` or more; the least one if all
// do not. Values are lost. There must be one.
template <class Weight>
float narrow(Values values, double target) {
    float low = values.least(), high = values.most();
    int64_t above = 0;
    for (int round = 0; low < high; round++) {
        const float pivot = between(low, high, round);
        const int64_t weight = values.weight<Weight>(pivot);
        const bool upper = double(above + weight) >= target;
        if (!upper) above += weight;
        values.keep(pivot, upper);
        (upper ? low : high) = upper ? values.least() : values.most();
    }
    return high;
}

}  // namespace
}  // namespace rose

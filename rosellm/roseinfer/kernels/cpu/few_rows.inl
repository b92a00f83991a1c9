// The products of attention for the fewest rows, with keys and values as they lie in the cache.
//
// Laying a block out anew, as `product` wants it, takes longer than multiplying it by a row or two: so
// keys are turned in registers here. And there is little to do for each number that is read, so that
// memory is waited for unless it is read in its own order: meanwhile the lines are asked for that come
// next, those of all heads. Every sum, over the numbers of a key or over positions, is made in the order
// of words.inl; with AMX that of bf16 and int8 is the matrix unit's.
#pragma once

#include "words.inl"

namespace rose {
namespace {

// Where bf16 pairs are multiplied as they are, that is another chain.
#if defined(ROSE_BF16) && !defined(ROSE_AMX)
constexpr int64_t FEW_ROWS = 0;
#else
constexpr int64_t FEW_ROWS = 4;
#endif
static_assert(FEW_ROWS <= TOGETHER);

// What of a key is moved as one: 32 bits.
template <class Element>
struct Cell {
    static constexpr int NUMBERS = 0;  // none: it is laid out anew
};

template <>
struct Cell<float> {
    static constexpr int NUMBERS = 1;
    template <int AT>
    static F number(F cell) {
        return cell;
    }
};

template <>
struct Cell<bf16> {
    static constexpr int NUMBERS = 2;
    template <int AT>
    static F number(F cell) {
        const I two = as_ints(cell);
        return as_floats(AT ? both(two, splat(int32_t(0xffff0000))) : shift_left<16>(two));
    }
};

template <>
struct Cell<int8_t> {
    static constexpr int NUMBERS = 4;
    template <int AT>
    static F number(F cell) {
        return floats(shift_right<24>(shift_left<24 - 8 * AT>(as_ints(cell))));
    }
};

// Whether keys and values of a head so wide can be taken as they lie.
template <class Element>
constexpr bool as_they_lie(int64_t dim) {
    constexpr int SQUARE = LANES * Cell<Element>::NUMBERS;
    return SQUARE && dim % SQUARE == 0 && dim % (2 * LANES) == 0;
}

// What is read next: so many bytes, whole lines, of each of some positions, asked for line by line.
template <class Element>
class Coming {
   public:
    Coming(const Element* const* positions, int64_t count, int64_t bytes)
        : positions_(positions), left_(count), bytes_(bytes) {
        turn();
    }

    ROSE_INLINE void ask() {
        __builtin_prefetch(line_);
        line_ += LINE;
        if (line_ >= end_) turn();
    }

   private:
    // To the next position; from the last one to nothing, of which one line is asked for again.
    ROSE_INLINE void turn() {
        static const char nothing[LINE] = {};
        line_ = left_ > 0 ? reinterpret_cast<const char*>(*positions_++) : nothing;
        end_ = line_ + (left_ > 0 ? bytes_ : LINE);
        left_--;
    }

    const Element* const* positions_;
    int64_t left_, bytes_;
    const char *line_, *end_;
};

// Keys or values [positions, dim] of one head: `offset` numbers from where the positions lie.
template <class Element>
struct Lying {
    const Element* const* positions;
    int64_t offset, dim;

    ROSE_INLINE const Element* at(int64_t position) const { return positions[position] + offset; }
};

constexpr int KEY_GROUPS = 2;  // of LANES keys; more, and what is asked for falls out of the cache
constexpr int64_t TAKEN = KEY_GROUPS * LANES;

constexpr int64_t STEP = 32;  // of the matrix unit

// A sum over a step, and what was there before: in order; or even and odd numbers apart, as the matrix
// unit does.
template <class Element>
class Sum {
   public:
    ROSE_INLINE void begin(F before) {
        parts_[0] = PARTS == 1 ? before : zero();
        if constexpr (PARTS == 2) parts_[1] = zero();
    }
    template <int AT>
    ROSE_INLINE void add(F a, F b) {
        parts_[AT % PARTS] = fma(a, b, parts_[AT % PARTS]);
    }
    ROSE_INLINE F end(F before) const {
        return PARTS == 1 ? parts_[0] : before + (parts_[0] + parts_[PARTS - 1]);
    }

#if defined(ROSE_AMX)
    static constexpr int PARTS = std::is_same<Element, float>::value ? 1 : 2;
#else
    static constexpr int PARTS = 1;
#endif

    static_assert(PARTS == 1 || TAKEN == STEP);

   private:
    F parts_[PARTS];
};

// Scores [ROWS, TAKEN] of TAKEN keys.
template <class Element, int ROWS>
void score_keys(const Lying<Element>& keys, const float* queries, int64_t stride, float* scores,
                int64_t scores_stride, Coming<Element>& coming) {
    constexpr int NUMBERS = Cell<Element>::NUMBERS;
    constexpr int64_t LINES = LANES * LANES * 4 / LINE;  // that a square reads
    Coming<Element> ahead = coming;                      // in registers
    F sums[KEY_GROUPS][ROWS];
    repeat<KEY_GROUPS>([&](auto g) { repeat<ROWS>([&](auto r) { sums[g][r] = zero(); }); });
    for (int64_t at = 0; at < keys.dim; at += LANES * NUMBERS) {
        repeat<KEY_GROUPS>([&](auto g) {
            F square[LANES];
            repeat<LANES>([&](auto i) ROSE_INLINED {
                square[i] = load(reinterpret_cast<const float*>(keys.at(g * LANES + i) + at));
            });
            repeat<LINES>([&](auto) { ahead.ask(); });
            transpose(square);
            Sum<Element> now[ROWS];
            repeat<LANES>([&](auto i) ROSE_INLINED {
                repeat<NUMBERS>([&](auto j) ROSE_INLINED {
                    constexpr int NUMBER = decltype(i)::value * NUMBERS + decltype(j)::value;
                    const F number = Cell<Element>::template number<j>(square[i]);
                    repeat<ROWS>([&](auto r) ROSE_INLINED {
                        if constexpr (NUMBER % STEP == 0) now[r].begin(sums[g][r]);
                        const float query = queries[r * stride + at + NUMBER];
                        now[r].template add<NUMBER>(splat(query), number);
                        if constexpr ((NUMBER + 1) % STEP == 0 || NUMBER + 1 == LANES * NUMBERS)
                            sums[g][r] = now[r].end(sums[g][r]);
                    });
                });
            });
        });
    }
    repeat<KEY_GROUPS>([&](auto g) {
        repeat<ROWS>([&](auto r) { store(scores + r * scores_stride + g * LANES, sums[g][r]); });
    });
    coming = ahead;
}

// Rows of weights, and of what values are added to.
struct Weighing {
    const float* weights;
    int64_t weights_stride;
    float* out;
    int64_t out_stride;
    const float* decay;  // of what is there, for each row; or null: none
    int64_t first;       // position of the first value in its block
};

// Adds to WIDTH vectors of columns, from `column` on, values times weights [ROWS, count].
template <class Element, int ROWS, int WIDTH>
void add_columns(const Lying<Element>& values, int64_t column, int64_t count, const Weighing& to,
                 Coming<Element>& coming) {
    constexpr int64_t SIZE = sizeof(Element);
    const int64_t lines = (column + WIDTH * LANES) * SIZE / LINE - column * SIZE / LINE;
    Coming<Element> ahead = coming;
    float* out = to.out + column;
    Sum<Element> sums[ROWS][WIDTH];
    const auto before = [&](auto r, auto c) {
        const F there = load(out + r * to.out_stride + c * LANES);
        return to.decay ? there * splat(to.decay[r]) : there;
    };
    repeat<ROWS>([&](auto r) ROSE_INLINED {
        repeat<WIDTH>([&](auto c) { sums[r][c].begin(before(r, c)); });
    });
    const auto take = [&](auto at, int64_t i) ROSE_INLINED {
        F value[WIDTH];
        repeat<WIDTH>([&](auto c) { value[c] = load(values.at(i) + column + c * LANES); });
        for (int64_t line = 0; line < lines; line++) ahead.ask();
        repeat<ROWS>([&](auto r) ROSE_INLINED {
            const F weight = splat(to.weights[r * to.weights_stride + i]);
            repeat<WIDTH>([&](auto c) { sums[r][c].template add<at>(weight, value[c]); });
        });
    };
    const std::integral_constant<int, 0> even{};
    const std::integral_constant<int, 1> odd{};
    int64_t i = 0;
    if (Sum<Element>::PARTS == 2) {
        if (to.first % 2 == 1 && count > 0) take(odd, i++);
        for (; i + 1 < count; i += 2) take(even, i), take(odd, i + 1);
    }
    for (; i < count; i++) take(even, i);
    repeat<ROWS>([&](auto r) ROSE_INLINED {
        repeat<WIDTH>([&](auto c) {
            store(out + r * to.out_stride + c * LANES, sums[r][c].end(before(r, c)));
        });
    });
    coming = ahead;
}

// The same of all columns.
template <class Element, int ROWS>
void add_values(const Lying<Element>& values, int64_t count, const Weighing& to,
                Coming<Element>& coming) {
    constexpr int WIDE = ROWS == 1 ? 8 : ROWS == 2 ? 4 : 2;
    int64_t column = 0;
    for (; column + WIDE * LANES <= values.dim; column += WIDE * LANES)
        add_columns<Element, ROWS, WIDE>(values, column, count, to, coming);
    for (; column < values.dim; column += 2 * LANES)
        add_columns<Element, ROWS, 2>(values, column, count, to, coming);
}

// Calls run(rows) with a number that is known to the compiler.
template <class Run>
void with_few(int64_t rows, const Run& run) {
    if (rows == 1) run(std::integral_constant<int, 1>());
    if (rows == 2) run(std::integral_constant<int, 2>());
    if (rows == 3) run(std::integral_constant<int, 3>());
    if (rows == 4) run(std::integral_constant<int, 4>());
}

}  // namespace
}  // namespace rose

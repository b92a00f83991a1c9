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

// What of a key is moved as one: 32 bits. LANES of them, of as many keys, make a square that is turned:
// `number` is number AT of each key in one that was.
template <class Element>
struct Cell {
    static constexpr int NUMBERS = 0;  // none: it is laid out anew
};

template <>
struct Cell<float> {
    static constexpr int NUMBERS = 1;
    ROSE_INLINE static void turn(F (&square)[LANES]) { transpose(square); }
    template <int AT>
    ROSE_INLINE static F number(const float* turned) {
        return load(turned + AT * LANES);
    }
};

// The lower or upper ones of LANES pairs.
template <int UPPER>
ROSE_INLINE F half_of(I pairs) {
    return as_floats(UPPER ? both(pairs, splat(int32_t(0xffff0000))) : shift_left<16>(pairs));
}

template <>
struct Cell<bf16> {
    static constexpr int NUMBERS = 2;
    ROSE_INLINE static void turn(F (&square)[LANES]) { transpose(square); }
    template <int AT>
    ROSE_INLINE static F number(const float* turned) {
        return half_of<AT % 2>(load_ints(turned + AT / 2 * LANES));
    }
};

template <>
struct Cell<int8_t> {
    static constexpr int NUMBERS = 4;
#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
    ROSE_INLINE static void turn(F (&square)[LANES]) { transpose_bytes(square); }
    template <int AT>
    ROSE_INLINE static F number(const float* turned) {
        constexpr int EACH = 16 / LANES, LANE = AT / 16, COLUMN = AT % 16;
        constexpr int PLACE = COLUMN / EACH * LANES * 4 + LANE * 16 + COLUMN % EACH * LANES;
        return load(reinterpret_cast<const int8_t*>(turned) + PLACE);
    }
#else
    ROSE_INLINE static void turn(F (&square)[LANES]) { transpose(square); }
    template <int AT>
    ROSE_INLINE static F number(const float* turned) {
        const I cells = load_ints(turned + AT / 4 * LANES);
        return floats(shift_right<24>(shift_left<24 - AT % 4 * 8>(cells)));
    }
#endif
};

// Whether keys and values of a head so wide can be taken as they lie.
template <class Element>
constexpr bool as_they_lie(int64_t dim) {
    constexpr int SQUARE = LANES * Cell<Element>::NUMBERS;
    return SQUARE && dim % SQUARE == 0 && dim % (2 * LANES) == 0;
}

// What is read next: so many bytes, whole lines, of each of some positions, asked for in their order.
template <class Element>
class Coming {
   public:
    Coming(const Element* const* positions, int64_t count, int64_t bytes)
        : positions_(positions), left_(count), bytes_(bytes) {
        turn();
    }

    // For so many lines: most often they are of one position.
    template <int COUNT>
    ROSE_INLINE void ask() {
        if (end_ - line_ >= COUNT * LINE) {
            repeat<COUNT>([&](auto i) { __builtin_prefetch(line_ + i * LINE); });
            line_ += COUNT * LINE;
            if (line_ == end_) turn();
            return;
        }
        for (int i = 0; i < COUNT && line_ != end_; i++) {
            __builtin_prefetch(line_);
            line_ += LINE;
            if (line_ == end_) turn();
        }
    }

   private:
    // To the next position; behind the last one is nothing.
    ROSE_INLINE void turn() {
        line_ = end_ = nullptr;
        if (left_-- <= 0) return;
        line_ = reinterpret_cast<const char*>(*positions_++);
        end_ = line_ + (bytes_ + LINE - 1) / LINE * LINE;
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

// Scores [ROWS, TAKEN] of TAKEN keys. Each is one chain of sums, of which a core has to have several
// under way: so groups of keys take turns with every number, out of squares that are turned before.
template <class Element, int ROWS>
void score_keys(const Lying<Element>& keys, const float* queries, int64_t stride, float* scores,
                int64_t scores_stride, Coming<Element>& coming) {
    constexpr int NUMBERS = LANES * Cell<Element>::NUMBERS;  // of each key in a square
    constexpr int LINES = LANES * LANES * 4 / LINE;          // that a square reads
    alignas(64) float turned[KEY_GROUPS][LANES * LANES];
    Coming<Element> ahead = coming;  // in registers
    F sums[KEY_GROUPS][ROWS];
    repeat<KEY_GROUPS>([&](auto g) { repeat<ROWS>([&](auto r) { sums[g][r] = zero(); }); });
    for (int64_t at = 0; at < keys.dim; at += NUMBERS) {
        repeat<KEY_GROUPS>([&](auto g) ROSE_INLINED {
            F square[LANES];
            repeat<LANES>([&](auto i) ROSE_INLINED {
                square[i] = load(reinterpret_cast<const float*>(keys.at(g * LANES + i) + at));
            });
            ahead.template ask<LINES>();
            Cell<Element>::turn(square);
            repeat<LANES>([&](auto i) ROSE_INLINED { store(turned[g] + i * LANES, square[i]); });
        });
        Sum<Element> now[KEY_GROUPS][ROWS];
        repeat<NUMBERS>([&](auto i) ROSE_INLINED {
            F number[KEY_GROUPS];
            repeat<KEY_GROUPS>([&](auto g) ROSE_INLINED {
                number[g] = Cell<Element>::template number<i>(turned[g]);
            });
            repeat<ROWS>([&](auto r) ROSE_INLINED {
                const F query = splat(queries[r * stride + at + i]);
                repeat<KEY_GROUPS>([&](auto g) ROSE_INLINED {
                    if constexpr (i % STEP == 0) now[g][r].begin(sums[g][r]);
                    now[g][r].template add<i>(query, number[g]);
                    if constexpr ((i + 1) % STEP == 0 || i + 1 == NUMBERS)
                        sums[g][r] = now[g][r].end(sums[g][r]);
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

// WIDTH vectors of values of a position. Of bf16 even columns are apart from odd ones: whole pairs are
// read, and each half is one instruction.
#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
template <class Element>
constexpr bool APART = Cell<Element>::NUMBERS == 2;
#else
template <class Element>
constexpr bool APART = false;
#endif

template <class Element, int WIDTH>
ROSE_INLINE void load_values(const Element* from, F (&value)[WIDTH]) {
    if constexpr (APART<Element>) {
        repeat<WIDTH / 2>([&](auto pair) ROSE_INLINED {
            const I two = load_ints(from + pair * 2 * LANES);
            value[2 * pair] = half_of<0>(two), value[2 * pair + 1] = half_of<1>(two);
        });
    } else {
        repeat<WIDTH>([&](auto c) { value[c] = load(from + c * LANES); });
    }
}

template <class Element, int WIDTH>
ROSE_INLINE void load_columns(const float* from, F (&columns)[WIDTH]) {
    repeat<WIDTH>([&](auto c) { columns[c] = load(from + c * LANES); });
    if constexpr (APART<Element>)
        repeat<WIDTH / 2>([&](auto i) { part(columns[2 * i], columns[2 * i + 1]); });
}

template <class Element, int WIDTH>
ROSE_INLINE void store_columns(float* to, F (&columns)[WIDTH]) {
    if constexpr (APART<Element>)
        repeat<WIDTH / 2>([&](auto i) { join(columns[2 * i], columns[2 * i + 1]); });
    repeat<WIDTH>([&](auto c) { store(to + c * LANES, columns[c]); });
}

// Adds to WIDTH vectors of columns, from `column` on, values times weights [ROWS, count].
template <class Element, int ROWS, int WIDTH>
void add_columns(const Lying<Element>& values, int64_t column, int64_t count, const Weighing& to,
                 Coming<Element>& coming) {
    constexpr int LINES = 4 * WIDTH * LANES * int(sizeof(Element)) / LINE;  // of four positions
    Coming<Element> ahead = coming;
    float* out = to.out + column;
    Sum<Element> sums[ROWS][WIDTH];
    const auto load_row = [&](auto r, F(&before)[WIDTH]) ROSE_INLINED {
        load_columns<Element>(out + r * to.out_stride, before);
        if (to.decay) repeat<WIDTH>([&](auto c) { before[c] = before[c] * splat(to.decay[r]); });
    };
    repeat<ROWS>([&](auto r) ROSE_INLINED {
        F before[WIDTH];
        load_row(r, before);
        repeat<WIDTH>([&](auto c) { sums[r][c].begin(before[c]); });
    });
    const auto take = [&](auto at, int64_t i) ROSE_INLINED {
        F value[WIDTH];
        load_values(values.at(i) + column, value);
        repeat<ROWS>([&](auto r) ROSE_INLINED {
            const F weight = splat(to.weights[r * to.weights_stride + i]);
            repeat<WIDTH>([&](auto c) { sums[r][c].template add<at>(weight, value[c]); });
        });
    };
    const std::integral_constant<int, 0> even{};
    const std::integral_constant<int, 1> odd{};
    int64_t i = 0;
    if (Sum<Element>::PARTS == 2 && to.first % 2 == 1 && count > 0) take(odd, i++);
    for (; i + 3 < count; i += 4) {
        ahead.template ask<LINES>();
        take(even, i), take(odd, i + 1), take(even, i + 2), take(odd, i + 3);
    }
    if (i < count) ahead.template ask<LINES>();
    for (; i + 1 < count; i += 2) take(even, i), take(odd, i + 1);
    if (i < count) take(even, i);
    repeat<ROWS>([&](auto r) ROSE_INLINED {
        F all[WIDTH];
        if (Sum<Element>::PARTS == 2) load_row(r, all);
        repeat<WIDTH>([&](auto c) { all[c] = sums[r][c].end(all[c]); });
        store_columns<Element>(out + r * to.out_stride, all);
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

// The innermost loops: R rows times C tiles of 16 outputs over all inputs, sums in registers.
//
// Every output is one chain of sums over the inputs in their order, whatever R and C are.
#pragma once

#include "matmul.h"
#include "prepare.inl"
#include "simd.h"
#include "unfold.inl"

namespace rose {
namespace {
namespace matmul {

// Asks for the line of weights that is read that much later. Where there is much to do for each line, as
// with vectors of half a line or with codes to be made sense of, a core asks too late by itself: pages
// are short, and each begins anew.
ROSE_INLINE void ask_ahead(const void* weights) {
    constexpr int64_t AHEAD = 3072;
    __builtin_prefetch(static_cast<const char*>(weights) + AHEAD);
}

// Most rows that ask for nothing but the next lines of what they read.
constexpr int ALONE = 4;

// What is read next, asked for while something else is multiplied: C lines with each line of C tiles,
// or every line, where that leaves some out. Many at once would make a core wait, which keeps a dozen
// under way. Where rows are so few that memory is waited for anyway, it makes it slower. (For those, and
// where vectors are half a line, see ask_ahead.)
template <int R, int C, bool ASKING, bool EVERY = false>
class Coming {
   public:
    // From what is asked for with input `first` on; so many inputs a line.
    Coming(const Panel& panel, int64_t first, int64_t inputs)
        : at_(panel.coming + first * panel.pace), end_(at_), step_(inputs * panel.pace) {}

    ROSE_INLINE void ask() {
        if constexpr (!ASKING || LANES != 16 || R <= ALONE) return;
        end_ += step_;
        if constexpr (EVERY) {
            for (; at_ < end_; at_ += LINE) __builtin_prefetch(at_, 0, 2);
        } else {
            repeat<C>([&](auto i) { __builtin_prefetch(at_ + i * LINE, 0, 2); });
            at_ = end_;
        }
    }

   private:
    const char *at_, *end_;
    int64_t step_;
};

// Whether a row's number is an operand in memory, not read into a register first. That is an instruction
// less, of which a core that runs two threads takes in few for each, but it is read for every tile: with
// half of the rows neither is too much.
template <int ROW, int C>
constexpr bool THERE = LANES == 16 && C == 2 && ROW % 2 == 1;

// -- Floats ------------------------------------------------------------------------------------

#if defined(ROSE_AVX512)
ROSE_INLINE F fma_there(const float* x, F weights, F all) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(all) : "v"(weights), "m"(*x));
    return all;
}
#endif

// Sums [C][R][16] of a prepared tile of R rows and tiles c.. of a panel, whose weights are T.
template <class T, int R, int C, bool ASKING>
void float_tiles(const Panel& panel, int c, const char* prepared, float* sums) {
    const int64_t pairs = padded_k(panel.w) / 2;
    const float* x = reinterpret_cast<const float*>(prepared);
    const char* tiles[C];
    for (int i = 0; i < C; i++) tiles[i] = panel.floats(c + i);
    Coming<R, C, ASKING> coming(panel, 0, 2);
    F all[R][C * V];
    repeat<R>([&](auto r) { repeat<C * V>([&](auto v) { all[r][v] = zero(); }); });
    for (int64_t pair = 0; pair < pairs; pair++) {
        coming.ask();
        repeat<2>([&](auto odd) {
            F weights[C * V];
            repeat<C * V>([&](auto v) {
                weights[v] = weights_of<T, odd>(tiles[v / V], pair, v % V * LANES);
            });
            repeat<R>([&](auto r) ROSE_INLINED {
                if constexpr (THERE<r, C>) {
                    repeat<C>([&](auto i) { all[r][i] = fma_there(x + r, weights[i], all[r][i]); });
                } else {
                    const F value = splat(x[r]);
                    repeat<C * V>([&](auto v) { all[r][v] = fma(value, weights[v], all[r][v]); });
                }
            });
            x += R;
        });
    }
    repeat<R>([&](auto r) {
        repeat<C * V>([&](auto v) {
            store(sums + (v / V * R + r) * TILE + v % V * LANES, all[r][v]);
        });
    });
}

#if defined(ROSE_BF16)
// The same of bf16 pairs.
template <int R, int C, bool ASKING>
void pair_tiles(const Panel& panel, int c, const char* prepared, float* sums) {
    const int64_t pairs = padded_k(panel.w) / 2, apart = panel.apart;
    const char* tile = panel.tile(c);
    const auto* x = reinterpret_cast<const int32_t*>(prepared);
    Coming<R, C, ASKING> coming(panel, 0, 2);
    __m512 all[R][C];
    repeat<R>([&](auto r) { repeat<C>([&](auto i) { all[r][i] = _mm512_setzero_ps(); }); });
    for (int64_t k = 0; k < pairs; k++, x += R, tile += LINE) {
        __m512i weights[C];
        coming.ask();
        repeat<C>([&](auto i) { weights[i] = _mm512_load_si512(tile + i * apart); });
        repeat<R>([&](auto r) {
            const __m512i value = _mm512_set1_epi32(x[r]);
            repeat<C>([&](auto i) {
                all[r][i] = _mm512_dpbf16_ps(all[r][i], (__m512bh)weights[i], (__m512bh)value);
            });
        });
    }
    repeat<R>([&](auto r) {
        repeat<C>([&](auto i) { _mm512_storeu_ps(sums + (i * R + r) * TILE, all[r][i]); });
    });
}
#endif

// -- Points ------------------------------------------------------------------------------------
// A Sum holds 16 int32, somehow; `dot` adds the products of four inputs; all of it is exact.

#if defined(ROSE_AVX512) || defined(ROSE_AVX2)
// Four bytes. Of two neighbours gcc would load eight, and part them in registers.
ROSE_INLINE I broadcast(const void* from) {
    I all;
    asm("vpbroadcastd %1, %0" : "=v"(all) : "m"(*static_cast<const char(*)[4]>(from)));
    return all;
}
#endif

#if defined(ROSE_WIDENING)
// Products of bytes that are added two by two overflow 16 bits: inputs are widened to them first. A
// line's inputs 0 and 2 lie right for that where 1 and 3 are masked, and these where it is shifted.
struct Sum {  // eight outputs a vector, as below
    __m256i first, last;
};
struct Quads {
    __m256i first_even, first_odd, last_even, last_odd;
};
struct Quad {
    __m256i even, odd;
};

ROSE_INLINE Sum sum_at(const int32_t* start) { return {splat(*start), splat(*start)}; }
ROSE_INLINE __m256i even(__m256i inputs) { return both(inputs, splat(int32_t(0x00ff00ff))); }
ROSE_INLINE __m256i odd(__m256i inputs) { return _mm256_srli_epi16(inputs, 8); }
ROSE_INLINE Quads quads_at(const uint8_t* w) {
    ask_ahead(w);
    const __m256i first = load_ints(w), last = load_ints(w + LINE / 2);
    return {even(first), odd(first), even(last), odd(last)};
}
ROSE_INLINE Quad quad_at(const Code* x) { return {broadcast(x), broadcast(x + 2)}; }
// Adds products of pairs. Not the intrinsics: gcc would add them to each other first, which takes
// registers that are not there.
ROSE_INLINE __m256i add_pairs(__m256i all, __m256i w, __m256i x) {
    __m256i products;
    asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(all), "=&x"(products) : "x"(w), "x"(x));
    return all;
}
ROSE_INLINE Sum dot(Sum all, const Quads& w, const Quad& x) {
    all.first = add_pairs(all.first, w.first_even, x.even);
    all.last = add_pairs(all.last, w.last_even, x.even);
    all.first = add_pairs(all.first, w.first_odd, x.odd);
    all.last = add_pairs(all.last, w.last_odd, x.odd);
    return all;
}
ROSE_INLINE F total_of(const Sum& all, int v) { return floats(v ? all.last : all.first); }

#else
struct Sum {
    I of[V];
};
struct Quads {
    I of[V];
};

ROSE_INLINE I splat_at(const int32_t* start) {
#if defined(ROSE_AVX512)
    // gcc would see that sums begin as equals, and copy one to the others, twice
    I all;
    asm volatile("vpbroadcastd %1, %0" : "=v"(all) : "m"(*start));
    return all;
#else
    return splat(*start);
#endif
}
ROSE_INLINE Sum sum_at(const int32_t* start) {
    Sum all;
    repeat<V>([&](auto v) { all.of[v] = splat_at(start); });
    return all;
}
ROSE_INLINE Quads quads_at(const uint8_t* w) {
    if constexpr (LANES == 8) ask_ahead(w);
    Quads quads;
    repeat<V>([&](auto v) { quads.of[v] = load_ints(w + v * LANES * 4); });
    return quads;
}
ROSE_INLINE F total_of(const Sum& all, int v) { return floats(all.of[v]); }

#if defined(ROSE_VNNI)
using Quad = I;

ROSE_INLINE Quad quad_at(const Code* x) { return broadcast(x); }
ROSE_INLINE I dot(I all, I w, const Quad& x) { return dot_bytes(all, w, x); }
#else
struct Quad {
    int32_t of[4];
};

ROSE_INLINE Quad quad_at(const Code* x) { return {{x[0], x[1], x[2], x[3]}}; }
ROSE_INLINE I dot(I all, I w, const Quad& x) {
    const U bytes = (U)w;
    return all + (I)(bytes & 255) * x.of[0] + (I)(bytes >> 8 & 255) * x.of[1] +
           (I)(bytes >> 16 & 255) * x.of[2] + (I)(bytes >> 24) * x.of[3];
}
#endif

ROSE_INLINE Sum dot(Sum all, const Quads& w, const Quad& x) {
    repeat<V>([&](auto v) { all.of[v] = dot(all.of[v], w.of[v], x); });
    return all;
}
#endif

#if defined(ROSE_AVX512)
// The same of four inputs as an operand in memory.
ROSE_INLINE I dot_there(I all, I w, const Code* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(all)
        : "v"(w), "m"(*reinterpret_cast<const char(*)[4]>(x)));
    return all;
}
ROSE_INLINE Sum dot_there(Sum all, const Quads& w, const Code* x) {
    all.of[0] = dot_there(all.of[0], w.of[0], x);
    return all;
}
#endif

// Calls add(quads of C tiles that lie so far apart) for every four of some inputs. It takes two such at
// a time, of which there are even numbers: fewer jumps and steps.
template <int C, class Asking, class Add>
ROSE_INLINE void for_quads(const uint8_t* points, int64_t apart, int64_t inputs, Asking& coming,
                           const Add& add) {
    const uint8_t* end = points + inputs * TILE;
    for (; points < end; points += 2 * LINE)
        repeat<2>([&](auto line) ROSE_INLINED {
            Quads quads[C];
            coming.ask();
            repeat<C>([&](auto i) { quads[i] = quads_at(points + i * apart + line * LINE); });
            add(quads);
        });
}

#if !defined(ROSE_AVX2)
// Adds products of two bytes that lie in 16 bits each, and a pair.
ROSE_INLINE I dot_pair(I all, I bytes, const Pair& x) {
#if defined(ROSE_AVX512)
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(all) : "v"(bytes), "m"(x));
    return all;
#else
    return add(all, (bytes & 255) * int32_t(x.of[0]) + shift_right<16>(bytes) * int32_t(x.of[1]));
#endif
}

// What the offsets of int4 add to the sums of a group: times the sums of a row's codes, for two parts at
// once, but where a group is one part. It is the same whole number as if each point had its offset.
template <int R, int C>
ROSE_INLINE void add_offsets(const Panel& panel, int c, const Block4& block, int64_t first,
                             int64_t last, const Pair* x_sums, Sum (&all)[R][C]) {
    for (int64_t at = first / PART; at < last / PART; at += 2) {
        const Part part(block, at);
        const Pair* pairs = x_sums + at / 2 * R;
        repeat<C * V>([&](auto v) {
            const char* offsets = panel.tile(c + v / V) + part.offsets() + v % V * LANES * 4;
            I two = two_bytes(load_ints(offsets), part.number / 2);
            if (last - first == PART) two = both(two, splat(part.number % 2 ? ~0xffff : 0xffff));
            repeat<R>([&](auto r) {
                I& sum = all[r][v / V].of[v % V];
                sum = dot_pair(sum, two, pairs[r]);
            });
        });
    }
}

// Points of C tiles of int4 for every four inputs, without offsets (see add_offsets), or KEPT: with them,
// and left in memory for other rows. With AVX2, code_tiles take its place.
// They are unfolded four inputs ahead, and what a part's codes mean is looked up before its turn: a core
// takes the oldest of what is ready, so that it would begin with these only when all products of the
// last inputs are under way, and then wait for them. AHEAD: see ask_ahead.
template <int C, bool KEPT, bool AHEAD>
class Unfolding {
   public:
    Unfolding(const Panel& panel, int c)
        : block_(panel.w),
          tile_(panel.tile(c)),
          apart_(panel.apart),
          parts_(padded_k(panel.w) / PART),
          kept_(KEPT ? panel.room(c) : nullptr),
          kept_apart_(KEPT ? panel.room(c + 1) - kept_ : 0) {
        look_up(0);
        turn();
        unfold<0>(0);
    }

    // Calls add(quads) for inputs [first, last), which follow those of the last call.
    template <class Asking, class Add>
    ROSE_INLINE void run(int64_t first, int64_t last, Asking& coming, const Add& add) {
        constexpr int QUADS = PART / 4;
        for (int64_t part = first / PART; part < last / PART; part++)
            repeat<QUADS>([&](auto quad) ROSE_INLINED {
                constexpr int NEXT = (decltype(quad)::value + 1) % QUADS;
                if constexpr (NEXT % 2) coming.ask();
                Quads now[C];
                repeat<C>([&](auto i) { now[i] = next_[i]; });
                if constexpr (KEPT) keep(now);
                if constexpr (NEXT == QUADS - 2) look_up(smaller(part + 1, parts_ - 1));
                if constexpr (NEXT == 0) turn();
                unfold<NEXT % 2>(NEXT / 2);
                add(now);
            });
    }

   private:
    ROSE_INLINE void look_up(int64_t number) {
        const Part part(block_, number);
        repeat<C * V>([&](auto v) {
            coming_[v] = grid_of(tile_ + v / V * apart_, part, v % V * LANES);
        });
        coming_codes_ = tile_ + part.codes();
    }

    ROSE_INLINE void turn() {
        repeat<C * V>([&](auto v) { grids_[v] = coming_[v]; });
        codes_ = coming_codes_;
    }

    template <int HIGH>
    ROSE_INLINE void unfold(int64_t line) {
        repeat<C>([&](auto i) {
            const char* codes = codes_ + line * LINE + i * apart_;
            if constexpr (AHEAD && HIGH == 0) ask_ahead(codes);
            repeat<V>([&](auto v) {
                const I two = load_ints(codes + v * LANES * 4);
                const Grid& grid = grids_[i * V + v];
                next_[i].of[v] = KEPT ? grid.template points<HIGH>(two)
                                      : grid.template products<HIGH>(two);
            });
        });
    }

    ROSE_INLINE void keep(const Quads (&quads)[C]) {
        repeat<C>([&](auto i) {
            repeat<V>([&](auto v) {
                store_ints(kept_ + i * kept_apart_ + v * LANES * 4, quads[i].of[v]);
            });
        });
        kept_ += LINE;
    }

    const Block4 block_;
    const char* tile_;
    int64_t apart_, parts_;
    Grid grids_[C * V], coming_[C * V];
    const char *codes_, *coming_codes_;  // of a part
    char* kept_;
    int64_t kept_apart_;
    Quads next_[C];
};
#endif

#if defined(ROSE_AVX512)
// Sums of int4 for the fewest rows, where unfolding would take longer than all else: a part's codes
// are multiplied as they are, and the step comes after. It is the same whole number.
template <int R, int C>
ROSE_INLINE void add_codes(const Panel& panel, int c, const Part& part, const Code* x,
                           Sum (&all)[R][C]) {
    constexpr int QUADS = PART / 4;
    const I nibble = splat(int32_t(0x0f0f0f0f));
    Quad quads[QUADS][R];
    repeat<R>([&](auto r) {
        repeat<QUADS>([&](auto i) { quads[i][r] = quad_at(x + (i * R + r) * 4); });
    });
    repeat<C>([&](auto i) {
        const char* tile = panel.tile(c + i);
        I sums[R], others[R];  // two chains, where rows are too few to keep a core busy with one each
        repeat<R>([&](auto r) { sums[r] = others[r] = splat(int32_t(0)); });
        repeat<QUADS / 2>([&](auto line) {
            const char* codes = tile + part.codes() + line * LINE;
            ask_ahead(codes);
            const __m512i two = load_ints(codes);
            const I low = both(two, nibble), high = both(shift_right<4>(two), nibble);
            repeat<R>([&](auto r) {
                sums[r] = dot(sums[r], low, quads[2 * line][r]);
                others[r] = dot(others[r], high, quads[2 * line + 1][r]);
            });
        });
        const auto* steps = reinterpret_cast<const uint16_t*>(tile + part.steps());
        const I step = both(shift_right(load(steps), 4 * part.number), splat(int32_t(15)));
        repeat<R>([&](auto r) {
            all[r][i].of[0] = add(all[r][i].of[0], mul(step, add(sums[r], others[r])));
        });
    });
}
#endif

struct Nothing {
    Nothing(const Panel&, int) {}
};

// How the loops read a format: as points; unfolding codes of 4 bits to such, which are perhaps kept for
// other rows; or as those codes.
enum Reading { POINTS, UNFOLDING, KEEPING, CODES };

// The same as float_tiles of points and codes; groups are added up in fp32.
template <Reading READING, int R, int C, bool ASKING>
void point_tiles(const Panel& panel, int c, const char* prepared, float* sums) {
    const Matrix& w = panel.w;
    [[maybe_unused]] const Block4 block(w);
    const Offsets scales = scales_in(w), points = panel.groups();
    const int64_t k = padded_k(w), groups = groups_of(w);
    const auto* x_scales = reinterpret_cast<const float*>(prepared);
    const auto* corrections = reinterpret_cast<const int32_t*>(x_scales + groups * R);
    const auto* x_sums = reinterpret_cast<const Pair*>(corrections + groups * R);
    constexpr bool OFFSETS = READING == UNFOLDING || READING == CODES;  // that are added for a group
    const auto* x = reinterpret_cast<const Code*>(x_sums + (OFFSETS ? pairs_of(w) * R : 0));
    const uint8_t* of_tile = panel.points(c);
    const int64_t apart = panel.points(c + 1) - of_tile;
    // those that keep points ask for what they read themselves
    Coming<R, C, ASKING && READING != KEEPING, READING != POINTS> coming(
        panel, 0, READING == POINTS ? 4 : 8);
#if !defined(ROSE_AVX2)
    constexpr bool IN_TURN = READING == UNFOLDING || READING == KEEPING;
    using Unfolded = Unfolding<C, READING == KEEPING, (R <= ALONE || READING == KEEPING)>;
    std::conditional_t<IN_TURN, Unfolded, Nothing> unfolding(panel, c);
#endif
    repeat<R * C * V>([&](auto i) { store(sums + i * LANES, zero()); });
    for (int64_t group = 0; group < groups; group++, x_scales += R, corrections += R) {
        const int64_t first = group * w.group, last = smaller(k, first + w.group);
        Sum all[R][C];
        repeat<R>([&](auto r) { repeat<C>([&](auto i) { all[r][i] = sum_at(corrections + r); }); });
        const auto add_four = [&](const Quads(&quads)[C]) ROSE_INLINED {
            repeat<R>([&](auto r) ROSE_INLINED {
                const Code* at = x + 4 * r;
                if constexpr (THERE<r, C>) {
                    repeat<C>([&](auto i) { all[r][i] = dot_there(all[r][i], quads[i], at); });
                } else {
                    const Quad four = quad_at(at);
                    repeat<C>([&](auto i) { all[r][i] = dot(all[r][i], quads[i], four); });
                }
            });
            x += 4 * R;
        };
#if !defined(ROSE_AVX2)
        if constexpr (OFFSETS) add_offsets<R, C>(panel, c, block, first, last, x_sums, all);
#endif
        if constexpr (READING == POINTS)
            for_quads<C>(of_tile + points(group), apart, last - first, coming, add_four);
#if !defined(ROSE_AVX2)
        if constexpr (IN_TURN) unfolding.run(first, last, coming, add_four);
#endif
#if defined(ROSE_AVX512)
        if constexpr (READING == CODES)
            for (int64_t part = first / PART; part < last / PART; part++, x += PART * R)
                add_codes<R, C>(panel, c, Part(block, part), x, all);
#endif
        asm("" : "+r"(sums));  // else gcc keeps a second copy of what is there
        const int64_t at = scales(group);
        repeat<C * V>([&](auto v) {
            const F scale = load(panel.scales(c + v / V, at) + v % V * LANES);
            repeat<R>([&](auto r) {
                float* to = sums + (v / V * R + r) * TILE + v % V * LANES;
                const F total = total_of(all[r][v / V], v % V);
                store(to, fma(total, scale * splat(x_scales[r]), load(to)));
            });
        });
    }
}

#if defined(ROSE_AVX2)
// -- Codes -------------------------------------------------------------------------------------
// Products of codes of 4 bits and of 8 bits are so small that a part's fit in 16 bits: two inputs are
// multiplied and added at once, and eight such added, before they take 32. A part's step and offset
// come after. It is the same whole number as that of points.

// Adds products of two inputs each, in 16 bits; see add_pairs.
ROSE_INLINE __m256i add_bytes(__m256i all, __m256i codes, __m256i x) {
    __m256i products;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
        : "+x"(all), "=&x"(products) : "x"(codes), "x"(x));
    return all;
}

struct Halves {  // 16 int32, of eight outputs each
    __m256i of[2];
};

// What a part's codes mean, of eight outputs: each in both halves, or in the lower one alone.
struct Meaning {
    __m256i step, offset;

    ROSE_INLINE Meaning(const char* tile, const Part& part, int half) {
        const Grid grid = grid_of(tile, part, half * LANES);
        step = grid.step, offset = both(grid.offset, splat(int32_t(255)));
    }
    // Sums of codes times a row's, with what the offset adds; x_sum fits in 16 bits.
    ROSE_INLINE __m256i total(__m256i sums, int32_t x_sum) const {
        const __m256i stepped = _mm256_madd_epi16(sums, step);
        return add(stepped, _mm256_madd_epi16(offset, splat(x_sum & 0xffff)));
    }
};

// Adds a part of a tile and R rows: x [PART / 4][R][4].
template <int R>
ROSE_INLINE void add_part(const char* tile, const Part& part, const int8_t* x,
                          const Pair* x_sums, Halves (&all)[R]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    if (part.number % 2 == 0) ask_ahead(tile + part.block + part.number / 2 * LINE);
    __m256i sums[R][2];
    repeat<PART / 8>([&](auto line) {
        const char* codes = tile + part.codes() + line * LINE;
        ask_ahead(codes);
        const __m256i two[2] = {load_ints(codes), load_ints(codes + LINE / 2)};
        repeat<2>([&](auto high) {
            __m256i four[2];
            repeat<2>([&](auto half) {
                four[half] = both(high ? _mm256_srli_epi16(two[half], 4) : two[half], nibble);
            });
            repeat<R>([&](auto r) {
                const __m256i value = broadcast(x + ((2 * line + high) * R + r) * 4);
                repeat<2>([&](auto half) {
                    if constexpr (line + high == 0)
                        sums[r][half] = _mm256_maddubs_epi16(four[half], value);
                    else
                        sums[r][half] = add_bytes(sums[r][half], four[half], value);
                });
            });
        });
    });
    repeat<2>([&](auto half) {
        const Meaning meaning(tile, part, half);
        repeat<R>([&](auto r) {
            const int32_t x_sum = x_sums[r].of[part.number % 2];
            all[r].of[half] = add(all[r].of[half], meaning.total(sums[r][half], x_sum));
        });
    });
}

// The same as point_tiles, of one tile.
template <int R>
void code_tiles(const Panel& panel, int c, const char* prepared, float* sums) {
    const Matrix& w = panel.w;
    const int64_t k = padded_k(w), groups = groups_of(w);
    const auto* x_scales = reinterpret_cast<const float*>(prepared);
    const auto* corrections = reinterpret_cast<const int32_t*>(x_scales + groups * R);
    const auto* x_sums = reinterpret_cast<const Pair*>(corrections + groups * R);
    const auto* x = reinterpret_cast<const int8_t*>(x_sums + pairs_of(w) * R);
    const char* tile = panel.tile(c);
    const Block4 block(w);
    const Offsets scales = scales_in(w);
    std::memset(sums, 0, sizeof(float) * R * TILE);
    for (int64_t group = 0; group < groups; group++, x_scales += R, corrections += R) {
        const int64_t first = group * w.group, last = smaller(k, first + w.group);
        Halves all[R];
        repeat<R>([&](auto r) { all[r].of[0] = all[r].of[1] = splat(corrections[r]); });
        for (int64_t part = first / PART; part < last / PART; part++)
            add_part<R>(tile, Part(block, part), x + part * PART * R, x_sums + part / 2 * R, all);
        repeat<2>([&](auto half) {
            const F scale = load(panel.scales(c, scales(group)) + half * LANES);
            repeat<R>([&](auto r) {
                float* to = sums + r * TILE + half * LANES;
                store(to, fma(floats(all[r].of[half]), scale * splat(x_scales[r]), load(to)));
            });
        });
    }
}
#endif

}  // namespace matmul
}  // namespace
}  // namespace rose

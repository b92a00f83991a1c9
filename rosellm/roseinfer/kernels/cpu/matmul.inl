// The product of rows with a packed weight.
//
// Rows are prepared once (prepare.inl), in blocks that stay in the cache. Tiles of outputs are
// taken in panels, a unit of work being some panels and some tiles of rows: where there are many
// rows, a panel's weights stay in the second-level cache while the rows go past. Sums of a tile of
// rows and a panel (tiles.inl) are finished while they are in the first-level cache.
#pragma once

#include <optional>

#include "matmul.h"
#include "pool.h"
#include "tiles.inl"
#if defined(ROSE_AMX)
#include "amx.inl"
#endif

namespace rose {
namespace {
namespace matmul {

// -- Which innermost loop ----------------------------------------------------------------------

using Loop = void (*)(const Panel& panel, int c, const char* prepared, float* sums);

// The loops for R rows, by how many tiles they take side by side; null where registers are short.
struct Loops {
    int rows;
    Loop one, two, four;
};

template <class T, bool ASKING = true>
struct Floats {
    template <int R, int C>
    static constexpr Loop loop = float_tiles<T, R, C, ASKING>;
    using Quiet = Floats<T, false>;
};
template <Reading READING, bool ASKING = true>
struct Points {
    template <int R, int C>
    static constexpr Loop loop = point_tiles<READING, R, C, ASKING>;
    using Quiet = Points<READING, false>;
};
#if defined(ROSE_BF16)
template <bool ASKING = true>
struct Pairs {
    template <int R, int C>
    static constexpr Loop loop = pair_tiles<R, C, ASKING>;
    using Quiet = Pairs<false>;
};
#if defined(ROSE_AMX)
struct OrderedPairs {
    template <int R, int C>
    static constexpr Loop loop = ordered_pairs<R, C>;
};
struct AmxPairs {
    template <int R, int C>
    static constexpr Loop loop = amx_pairs<R, C>;
};
struct AmxPoints {
    template <int R, int C>
    static constexpr Loop loop = amx_points<R, C>;
};
#endif
#endif
#if defined(ROSE_AVX2)
struct CodesAlone {
    template <int R, int C>
    static constexpr Loop loop = code_tiles<R>;
};
#endif

template <class Kind, int R, int WIDEST>
constexpr Loops loops() {
    Loops all{R, Kind::template loop<R, 1>, nullptr, nullptr};
    if constexpr (WIDEST >= 2) all.two = Kind::template loop<R, 2>;
    if constexpr (WIDEST >= 4) all.four = Kind::template loop<R, 4>;
    return all;
}

// The loops of a kind, by ascending rows, and the form in which they take these.
struct Family {
    const Loops* all;
    int count;
    Form form;

    int64_t most_rows() const { return all[count - 1].rows; }
    bool holds(int64_t rows) const { return count && rows <= most_rows(); }

    // The least that hold so many rows.
    const Loops& holding(int64_t rows) const {
        int i = 0;
        while (all[i].rows < rows) i++;
        return all[i];
    }
};

template <int COUNT>
constexpr Family family(const Loops (&all)[COUNT], Form form) {
    return {all, COUNT, form};
}

#if defined(ROSE_AVX512)
template <class Kind>
constexpr Loops FEW[] = {loops<Kind, 1, 4>(), loops<Kind, 2, 4>(), loops<Kind, 3, 4>(),
                         loops<Kind, 4, 4>(), loops<Kind, 6, 2>(), loops<Kind, 8, 2>()};
template <>
constexpr Loops FEW<Points<UNFOLDING>>[] = {
    loops<Points<CODES>, 1, 2>(),     loops<Points<CODES>, 2, 2>(),
    loops<Points<UNFOLDING>, 3, 2>(), loops<Points<UNFOLDING>, 4, 2>(),
    loops<Points<UNFOLDING>, 6, 2>(), loops<Points<UNFOLDING>, 8, 2>()};
template <class Kind>
constexpr Loops MANY[] = {FEW<Kind>[0], FEW<Kind>[1], FEW<Kind>[2], FEW<Kind>[3],
                          FEW<Kind>[4], FEW<Kind>[5], loops<Kind, 12, 2>()};
// For the first rows of a panel, which unfold it for the others on the way.
constexpr Loops FIRST[] = {loops<Points<KEEPING>, 1, 2>(), loops<Points<KEEPING>, 2, 2>(),
                           loops<Points<KEEPING>, 3, 2>(), loops<Points<KEEPING>, 4, 2>(),
                           loops<Points<KEEPING>, 6, 2>(), loops<Points<KEEPING>, 8, 2>()};
// Where rows are so many that loops need not ask for what is read next: see ask_for_share.
template <class Kind>
constexpr Loops MOST[] = {FEW<Kind>[0], FEW<Kind>[1], FEW<Kind>[2], FEW<Kind>[3],
                          FEW<Kind>[4], FEW<Kind>[5], loops<typename Kind::Quiet, 12, 2>()};
#elif defined(ROSE_AVX2)
template <class Kind>
constexpr Loops MANY[] = {loops<Kind, 1, 2>(), loops<Kind, 2, 1>(), loops<Kind, 3, 1>(),
                          loops<Kind, 4, 1>(), loops<Kind, 6, 1>()};
#if defined(ROSE_WIDENING)
template <>
constexpr Loops MANY<Points<POINTS>>[] = {
    loops<Points<POINTS>, 1, 2>(), loops<Points<POINTS>, 2, 1>(), loops<Points<POINTS>, 3, 1>(),
    loops<Points<POINTS>, 4, 1>()};
#endif
template <>
constexpr Loops MANY<CodesAlone>[] = {loops<CodesAlone, 1, 1>(), loops<CodesAlone, 2, 1>(),
                                     loops<CodesAlone, 3, 1>(), loops<CodesAlone, 4, 1>()};
template <class Kind>
constexpr auto& FEW = MANY<Kind>;
template <class Kind>
constexpr auto& MOST = MANY<Kind>;
#else
template <class Kind>
constexpr Loops FEW[] = {loops<Kind, 1, 1>(), loops<Kind, 2, 1>()};
template <class Kind>
constexpr Loops MANY[] = {FEW<Kind>[0], FEW<Kind>[1], loops<Kind, 4, 1>()};
template <class Kind>
constexpr auto& MOST = MANY<Kind>;
#endif

constexpr int64_t MOST_ASKING = 48;  // rows for which loops ask for what is read next

template <class Kind>
Family all_of(int64_t rows, Form form) {
    return rows > MOST_ASKING ? family(MOST<Kind>, form) : family(MANY<Kind>, form);
}

// The loops that read a format as it lies: those of a folded one are for few rows.
inline Family family_of(const Matrix& w, int64_t rows) {
    switch (w.format) {
        case FP32: return all_of<Floats<float>>(rows, Form::FLOATS);
        case FP16: return family(FEW<Floats<fp16>>, Form::FLOATS);
#if defined(ROSE_BF16)
        case BF16: return all_of<Pairs<>>(rows, Form::PAIRS);
#else
        case BF16: return family(FEW<Floats<bf16>>, Form::FLOATS);
#endif
        case INT8: return all_of<Points<POINTS>>(rows, Form::POINTS);
#if defined(ROSE_AVX2)
        default: return family(MANY<CodesAlone>, Form::CODES);
#else
        default: return family(FEW<Points<UNFOLDING>>, Form::CODES);
#endif
    }
}

// Those that read a folded one unfolded.
inline Family unfolded_family_of(const Matrix& w, int64_t rows) {
    return w.format == INT4 ? all_of<Points<POINTS>>(rows, Form::POINTS)
                            : all_of<Floats<float>>(rows, Form::FLOATS);
}

// Those that unfold it for others, where these are so few that it is felt.
inline Family first_family_of([[maybe_unused]] const Matrix& w, [[maybe_unused]] int64_t rows) {
#if defined(ROSE_AVX512)
    if (w.format == INT4 && rows <= MOST_ASKING) return family(FIRST, Form::POINTS);
#endif
    return {};
}

#if defined(ROSE_AVX2)
constexpr int64_t FOLDED_TILES = 2;  // of rows, for which it is not worth while to unfold
#else
constexpr int64_t FOLDED_TILES = 1;
#endif

struct Choice {
    Family family;
    bool unfold;   // panels of a folded format
    Family first;  // loops of a panel's first rows that unfold it on the way; or none
};

#if defined(ROSE_AMX)
constexpr Loops ORDERED_PAIRS[] = {loops<OrderedPairs, 1, 4>(), loops<OrderedPairs, 2, 2>(),
                                   loops<OrderedPairs, 4, 2>()};
template <class Kind>
constexpr Loops AMX[] = {loops<Kind, 16, 2>(), loops<Kind, 32, 2>()};

inline Choice amx_choice(const Matrix& w, int64_t rows) {
    if (w.format == BF16) {
        const Family few = family(ORDERED_PAIRS, Form::ROUNDED);
        return {rows <= few.most_rows() ? few : family(AMX<AmxPairs>, Form::AMX_PAIRS), false, {}};
    }
    const Family few = family_of(w, rows);
    if (rows <= few.most_rows()) return {few, false, {}};
    return {family(AMX<AmxPoints>, Form::AMX_POINTS), folded(w), {}};
}
#endif

// What so many rows are multiplied with.
inline Choice choice_for(const Matrix& w, int64_t rows) {
#if defined(ROSE_AMX)
    if (amx_takes(w)) return amx_choice(w, rows);
#endif
    const Family few = family_of(w, rows);
    if (!folded(w) || rows <= FOLDED_TILES * few.most_rows()) return {few, false, {}};
    return {unfolded_family_of(w, rows), true, first_family_of(w, rows)};
}

// -- Finishing ---------------------------------------------------------------------------------

// Where results go, and what is done to them first.
struct Target {
    const Matrix& w;
    Finish finish;
    float* y;
    int64_t stride;
    float* tops;  // or null
};

template <Finish FINISH>
ROSE_INLINE F activated(F value) {
    if constexpr (FINISH == GELU_TANH || FINISH == GELU_TANH_MUL) return gelu_tanh(value);
    if constexpr (FINISH == GELU_ERF) return gelu_erf(value);
    if constexpr (FINISH == SILU_MUL) return silu(value);
    return value;
}

// Sums of LANES outputs with their bias, if there is one; `there` of them exist.
ROSE_INLINE F with_bias(const float* bias, const float* sums, int64_t there) {
    if (!bias) return load(sums);
    return load(sums) + (there >= LANES ? load(bias) : load_part(bias, there));
}

ROSE_INLINE void put(F value, bool adding, float* y, int64_t there) {
    if (there >= LANES) return store(y, adding ? load(y) + value : value);
    store_part(y, adding ? load_part(y, there) + value : value, there);
}

// Calls each(y, at, there) for LANES outputs `at` of a tile's row, `there` of which exist.
template <class Each>
ROSE_INLINE void for_lanes(int64_t there, const Each& each) {
    repeat<TILE / LANES>([&](auto v) ROSE_INLINED {
        if (v * LANES < there) each(v * LANES, there - v * LANES);
    });
}

// Outputs from `column` on, for `rows` rows of y: sums [rows][16]. What is asked for every row is in
// variables: for all that the compiler knows, a store could change the target.
template <Finish FINISH>
void finish_tile(const Target& to, int64_t column, int64_t row, int64_t rows, const float* sums) {
    const int64_t stride = to.stride, there = to.w.n - column;
    const float* bias = to.w.bias ? to.w.bias + column : nullptr;
    float* y = to.y + row * stride + column;
    for (int64_t r = 0; r < rows; r++, sums += TILE, y += stride)
        for_lanes(there, [&](int64_t at, int64_t left) ROSE_INLINED {
            const F value = with_bias(bias ? bias + at : nullptr, sums + at, left);
            put(activated<FINISH>(value), FINISH == ADD, y + at, left);
        });
}

// The same for a tile of gates, and the tile of what they let through.
template <Finish FINISH>
void finish_gated(const Target& to, int64_t column, int64_t row, int64_t rows, const float* gates,
                  const float* ups) {
    const int64_t stride = to.stride, half = to.w.n / 2, there = half - column;
    const float* bias = to.w.bias ? to.w.bias + column : nullptr;
    float* y = to.y + row * stride + column;
    for (int64_t r = 0; r < rows; r++, gates += TILE, ups += TILE, y += stride)
        for_lanes(there, [&](int64_t at, int64_t left) ROSE_INLINED {
            const F gate = with_bias(bias ? bias + at : nullptr, gates + at, left);
            const F up = with_bias(bias ? bias + half + at : nullptr, ups + at, left);
            put(activated<FINISH>(gate) * up, false, y + at, left);
        });
}

// Tiles of outputs from the first one on: sums [tiles][apart].
inline void finish_tiles(const Target& to, int64_t first, int64_t tiles, int64_t row, int64_t rows,
                         const float* sums, int64_t apart) {
    const auto each = [&](auto finish) {
        for (int64_t c = 0; c < tiles; c++) finish(to, (first + c) * TILE, row, rows, sums + c * apart);
    };
    const auto each_pair = [&](auto finish) {
        for (int64_t c = 0; c < tiles; c += 2) {
            const float* gates = sums + c * apart;
            finish(to, (first + c) / 2 * TILE, row, rows, gates, gates + apart);
        }
    };
    switch (to.finish) {
        case STORE: return each(finish_tile<STORE>);
        case ADD: return each(finish_tile<ADD>);
        case GELU_TANH: return each(finish_tile<GELU_TANH>);
        case GELU_ERF: return each(finish_tile<GELU_ERF>);
        case SILU_MUL: return each_pair(finish_gated<SILU_MUL>);
        case GELU_TANH_MUL: return each_pair(finish_gated<GELU_TANH_MUL>);
    }
}

// Where the top of outputs from `column` on is kept, for the first row.
inline float* top_at(const Target& to, int64_t column) {
    const int64_t pairs = ceil_div(to.w.n, 2 * TOP), top = column / TOP;
    return to.tops + top % 2 * pairs + top / 2;
}

// The largest of some outputs, or NaN, one by one.
inline float top_of(const float* y, int64_t count) {
    float largest = y[0], odd = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        largest = y[i] > largest ? y[i] : largest;
        odd += y[i] - y[i];
    }
    return largest + odd;
}

// Tops of TOP outputs of `rows` rows that lie `apart`. Returns whether all is finite; if not, they mean
// nothing.
inline bool find_whole_tops(const float* y, int64_t stride, int64_t rows, float* tops, int64_t apart) {
    F all = zero();
    for (int64_t r = 0; r < rows; r++, y += stride, tops += apart) {
        F most = load(y), total = most;
        for (int64_t v = LANES; v < TOP; v += LANES) {
            const F more = load(y + v);
            most = max(most, more), total = total + more;
        }
        all = all + total;
        *tops = rose::most(most);
    }
    return sum(all - all) == 0.0f;
}

// Of tiles [tile, tile + tiles), which are finished for some rows. They are in pairs but for the last.
inline void find_tops(const Target& to, int64_t tile, int64_t tiles, int64_t row, int64_t rows) {
    static_assert(TOP == 2 * TILE);
    const int64_t apart = 2 * ceil_div(to.w.n, 2 * TOP);
    const int64_t end = smaller((tile + tiles) * TILE, to.w.n);
    for (int64_t column = tile * TILE; column < end; column += TOP) {
        const int64_t count = smaller(TOP, to.w.n - column);
        const float* y = to.y + row * to.stride + column;
        float *tops = top_at(to, column) + row * apart, *twins = top_at(to, column + TOP) + row * apart;
        if (count < TOP || !find_whole_tops(y, to.stride, rows, tops, apart))
            for (int64_t r = 0; r < rows; r++) tops[r * apart] = top_of(y + r * to.stride, count);
        if (column + TOP >= to.w.n && column % (2 * TOP) == 0)
            for (int64_t r = 0; r < rows; r++) twins[r * apart] = tops[r * apart];
    }
}

// -- Blocks, panels and units ------------------------------------------------------------------

constexpr int64_t BLOCK_ROWS = 516;         // a prompt's usual 512 in whole tiles of any size
constexpr int64_t BLOCK_BYTES = 4 << 20;    // of prepared rows, but for the first tiles
constexpr int64_t FEW_ROWS = 4;             // for which panels are wide
constexpr int64_t MOST_WIDTH = 4;           // tiles of a panel
constexpr int64_t UNIT_BYTES = 256 << 10;   // of weights, at least, where there are few rows
constexpr int64_t UNIT_TILES = 24;          // of rows, by panels: those of a unit, where there are many

// What all units of a block of rows share.
struct Block {
    Target target;
    Choice choice;
    const char* prepared;
    int64_t row_bytes;          // of a prepared row
    int64_t row, rows;          // in y
    const Loops &usual, &last;  // of a tile of rows, and of the last one
    bool last_unfolds;          // panels, for the others: it comes first
    int64_t width;              // tiles of a panel

    int64_t row_tiles() const { return ceil_div(rows, usual.rows); }
    int64_t panels() const { return ceil_div(tiles_of(target.w), width); }
};

// All sums of one tile of rows and one panel: [tiles][rows][16].
inline void panel_sums(const Loops& loops, const Panel& panel, int64_t tiles, const char* prepared,
                       float* sums) {
    for (int c = 0; c < tiles;) {
        const int64_t left = tiles - c;
        const int wide = loops.four && left >= 4 ? 4 : loops.two && left >= 2 ? 2 : 1;
        (wide == 4 ? loops.four : wide == 2 ? loops.two : loops.one)(panel, c, prepared, sums);
        c += wide, sums += wide * loops.rows * TILE;
    }
}

// Asks for what will be written, while sums are made: with many columns each row is in another page.
inline void ask_for(const Target& to, int64_t column, int64_t columns, int64_t row, int64_t rows) {
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t at = column; at < column + columns; at += LINE / int64_t(sizeof(float)))
            __builtin_prefetch(to.y + r * to.stride + at, 1);
}

// Asks at once for what of the next panel falls to a tile of rows, little of it where they are many.
inline void ask_for_share(const char* share, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += LINE) __builtin_prefetch(share + at, 0, 2);
}

inline void multiply_panel(const Block& block, const Panel& panel, int64_t first, int64_t tiles,
                           int64_t row_tile) {
    const Target& to = block.target;
    const int64_t begin = row_tile * block.usual.rows;
    const int64_t there = smaller(block.usual.rows, block.rows - begin);
    const Loops& loops = row_tile + 1 == block.row_tiles() ? block.last : block.usual;
    alignas(64) float sums[MOST_WIDTH * MOST_ROWS * TILE];
    const int64_t apart = loops.rows * TILE, row = block.row + begin;
    const int64_t outputs_a_column = to.w.gated ? 2 : 1;
    ask_for(to, first * TILE / outputs_a_column, tiles * TILE / outputs_a_column, row, there);
    panel_sums(loops, panel, tiles, block.prepared + begin * block.row_bytes, sums);
    finish_tiles(to, first, tiles, row, there, sums, apart);
    if (to.tops) find_tops(to, first, tiles, row, there);
}

// Tiles of rows [row_tile, row_tile + row_tiles) and a panel, after which `next` is multiplied.
inline void multiply_unit(const Block& block, int64_t panel_index, int64_t next, int64_t row_tile,
                          int64_t row_tiles) {
    thread_local Workspace kept;
    const Matrix& w = block.target.w;
    const int64_t first = panel_index * block.width, k = padded_k(w);
    const int64_t tiles = smaller(block.width, tiles_of(w) - first);
    Panel panel{w, tile_at(w, first), bytes_of_tile(w), nullptr, nullptr, 0};
    const bool last_first = block.last_unfolds && row_tile + row_tiles == block.row_tiles();
    if (block.choice.unfold) panel.make_room(tiles, kept);
    if (block.choice.unfold && !last_first) panel.unfold(tiles);
    const Form form = block.choice.family.form;
    const bool in_unit = form == Form::AMX_POINTS || form == Form::AMX_PAIRS;
#if defined(ROSE_AMX)
    std::optional<AmxShapes> shapes;
    if (in_unit) shapes.emplace(TILE, amx_bytes(w));
#endif
    const int64_t share = ceil_div(block.width * bytes_of_tile(w), row_tiles);
    panel.pace = ceil_div(share, k);
    const bool asking = block.rows > MOST_ASKING && !in_unit;
    for (int64_t i = 0; i < row_tiles; i++) {
        panel.coming = tile_at(w, next * block.width) + i * share;
        if (asking) ask_for_share(panel.coming, share);
        const int64_t turn = last_first ? (i + row_tiles - 1) % row_tiles : i;
        multiply_panel(block, panel, first, tiles, row_tile + turn);
    }
}

// Panels in runs of some, as equal as can be.
struct Runs {
    int64_t panels, count;

    // Runs for which each thread has as many to take as the others.
    static Runs of(int64_t panels, int64_t length) {
        return {panels, smaller(panels, round_up(ceil_div(panels, length), pool_size()))};
    }
    int64_t begin(int64_t run) const { return smaller(run, count) * panels / count; }
};

// A run of panels, after which a thread most likely takes the one that the others leave.
inline void multiply_run(const Block& block, const Runs& runs, int64_t run, int64_t row_tile,
                         int64_t row_tiles) {
    const int64_t end = runs.begin(run + 1);
    const int64_t after = smaller(runs.begin(run + pool_size()), runs.panels - 1);
    for (int64_t i = runs.begin(run); i < end; i++)
        multiply_unit(block, i, i + 1 < end ? i + 1 : after, row_tile, row_tiles);
}

// One tile of rows: units are runs of panels.
inline void multiply_few(const Block& block) {
    const int64_t panels = block.panels(), each = block.width * bytes_of_tile(block.target.w);
    const int64_t fair = larger(1, panels / (UNITS_EACH * pool_size()));
    const Runs runs = Runs::of(panels, smaller(fair, ceil_div(UNIT_BYTES, each)));
    parallel_for(runs.count, [&](int64_t run, int) { multiply_run(block, runs, run, 0, 1); });
}

// Many: units are panels and all tiles of rows, or parts of them where panels are few. The more tiles,
// the fewer panels: threads shall end together, and a panel is soon read beside what is done with it.
inline void multiply_many(const Block& block) {
    const int64_t panels = block.panels(), row_tiles = block.row_tiles();
    const int64_t parts =
        smaller(row_tiles, ceil_div(UNITS_EACH * pool_size(), panels));
    const int64_t high = ceil_div(row_tiles, parts);
    const int64_t fair = panels / (UNITS_EACH * pool_size());
    const Runs runs = Runs::of(panels, larger(1, smaller(UNIT_TILES / high, fair)));
    parallel_for(runs.count * parts, [&](int64_t unit, int) {
        const int64_t first = unit % parts * high;
        if (first < row_tiles)
            multiply_run(block, runs, unit / parts, first, smaller(high, row_tiles - first));
    });
}

// Rows [first, first + count) of x.
inline void multiply_block(const Rows& x, const Target& target, int64_t first, int64_t count,
                           Workspace& kept) {
    const Matrix& w = target.w;
    const Choice choice = choice_for(w, count);
    const Family& family = choice.family;
    const int64_t tile_rows = smaller(count, family.most_rows());
    const int64_t left = count - (ceil_div(count, tile_rows) - 1) * tile_rows;
    const bool last_unfolds = choice.first.holds(left);
    // loops for fewer rows would ask for nothing of the next panel
    const bool asks = LANES == 16 && count > tile_rows && !choice.unfold;
    const int64_t least = asks ? larger(left, ALONE + 1) : left;
    const Loops& usual = family.holding(tile_rows);
    const Loops& last = last_unfolds ? choice.first.holding(left) : family.holding(least);
    const int64_t row_bytes = prepared_bytes(w, family.form);
    char* prepared = kept.room<char>((count + last.rows) * row_bytes);
    prepare(w, family.form, x, first, count, tile_rows, last.rows, prepared);
    const Block block{target, choice, prepared, row_bytes, first, count, usual, last, last_unfolds,
                      count <= FEW_ROWS ? MOST_WIDTH : 2};
    if (count <= tile_rows)
        multiply_few(block);
    else
        multiply_many(block);
}

inline int64_t rows_of_block(const Matrix& w) {
    const Family family = choice_for(w, BLOCK_ROWS).family;
    const int64_t most = family.most_rows();
    const int64_t rows = BLOCK_BYTES / prepared_bytes(w, family.form) / most * most;
    return smaller(BLOCK_ROWS / most * most, larger(rows, 4 * most));
}

void linear(const Rows& x, const Matrix& w, Finish finish, float* y, int64_t y_stride,
            float* tops) {
    thread_local Workspace kept;
    const int64_t most = rows_of_block(w);
    for (int64_t row = 0; row < x.count; row += most)
        multiply_block(x, {w, finish, y, y_stride, tops}, row, smaller(most, x.count - row), kept);
}

}  // namespace matmul
}  // namespace
}  // namespace rose

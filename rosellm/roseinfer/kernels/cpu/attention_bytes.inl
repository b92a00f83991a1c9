// What attention does otherwise over a cache in 8 bits: see bytes.inl.
#pragma once

namespace rose {
namespace {
namespace attending {

template <class Words, class Element>
void TileWork<Words, Element>::split_queries() {
    const F scale = splat(call_.heads.scale);
    alignas(64) float scaled[MAX_DIM];
    for (int64_t at = 0; at < heads_ * rows_; at++) {
        const float* query = place(call_.heads.q, at / rows_, at % rows_);
        for (int64_t i = 0; i < columns(); i += LANES)
            store(scaled + i, load_up_to(query + i, call_.dim - i) * scale);
        int32_t* high = query_digits(at);
        worths_[at] = to_digits(scaled, columns(), high, high + words_ / 2);
    }
}

// Of positions [low, high) of a block, whole vectors.
template <class Words, class Element>
void TileWork<Words, Element>::split_weights(int64_t head, int64_t row, int64_t low, int64_t high) {
    int32_t* digits = weight_digits(head) + row * DIGITS + low / CELL;
    weight_worths_[head * TOGETHER + row] = to_digits(
        weights_of(head) + row * BLOCK + low, high - low, digits, digits + DIGITS / 2);
}

// -- Few rows ------------------------------------------------------------------------------------

template <class Words, class Element>
void TileWork<Words, Element>::score_bytes_of(int64_t from, Coming<Element> coming) {
    for (int64_t head = 0; head < heads_; head++) {
        const Lying<Element> keys{key_rows_ + from, head * call_.dim, call_.dim};
        float* scores = scores_ + head * TOGETHER * BLOCK + from;
        with_few(rows_, [&](auto rows) {
            score_bytes<rows>(keys, query_digits(head * rows_), words_, worths_ + head * rows_,
                              scores, BLOCK, coming);
        });
    }
}

// From and to are whole cells of the block.
template <class Words, class Element>
void TileWork<Words, Element>::add_bytes_of(int64_t from, int64_t to, Coming<Element> coming) {
    for (int64_t head = 0; head < heads_; head++) {
        const Lying<Element> values{value_rows_, head * call_.dim, call_.dim};
        const ByteWeights weights{weight_digits(head), DIGITS, DIGITS / 2};
        int32_t* sums = byte_sums_ + head * rows_ * call_.padded;
        with_few(rows_, [&](auto rows) {
            add_bytes<rows>(values, from, to, weights, sums, call_.padded, coming);
        });
    }
}

template <class Words, class Element>
void TileWork<Words, Element>::finish_values(const Results& results) {
    for (int64_t at = 0; at < heads_ * rows_; at++) {
        const int64_t head = at / rows_, row = at % rows_;
        finish_bytes(byte_sums_ + at * call_.padded, call_.dim,
                     weight_worths_[head * TOGETHER + row], decay_[head * LANES + row],
                     results[head].out + row * call_.padded);
    }
}

// -- Many rows -----------------------------------------------------------------------------------

template <class Words, class Element>
void TileWork<Words, Element>::pack_bytes(int64_t block, int64_t head) {
    const int64_t begin = std::max(block, tile_.begin) - block;
    const int64_t end = std::min(block + BLOCK, tile_.end) - block;
    const auto* keys = static_cast<const Element*>(call_.cache.keys) + head * call_.dim;
    const auto* values = static_cast<const Element*>(call_.cache.values) + head * call_.dim;
    for (int64_t i = begin / LANES * LANES; i < end; i += LANES) {
        const Element* rows[LANES];
        for (int j = 0; j < LANES; j++) rows[j] = find(keys, i + j);
        for (int64_t at = 0; at < columns(); at += LINE)
            turn_keys(rows, at, call_.dim - at, key_cells() + at / CELL * BLOCK + i, BLOCK);
    }
    for (int64_t i = begin / CELL * CELL; i < end; i += CELL) {
        const Element* rows[CELL];
        for (int j = 0; j < CELL; j++) rows[j] = find(values, i + j);
        for (int64_t at = 0; at < columns(); at += LINE)
            turn_values(rows, at, call_.dim - at, value_cells() + i / CELL * columns() + at);
    }
    find_scales(head);
}

template <class Words, class Element>
void TileWork<Words, Element>::attend_bytes(int64_t block, int64_t head, int64_t row,
                                            int64_t count, const Seen& seen,
                                            const Result& result) {
    constexpr int64_t SIDE = 2 * LANES;  // columns side by side
    const auto [begin, end] = seen;
    const int64_t at = head * rows_ + row;
    float* scores = scores_ + head * TOGETHER * BLOCK;
    const ByteProduct by_keys{query_digits(at), words_, words_ / 2,  worths_ + at,
                              key_cells(),      BLOCK,  words_ / 2};
    byte_product<TOGETHER>(by_keys, count, begin / SIDE * SIDE, round_up(end, SIDE),
                           [&](int64_t r, int64_t column, F score) ROSE_INLINED {
                               store(scores + r * BLOCK + column, score);
                           });
    alignas(64) float decay[LANES];
    softmax<Words>(block, head, row, count, begin / STEP * STEP, round_up(end, STEP), result, decay);
    float* out = result.out + row * call_.padded;
    const int64_t first = begin / CELL, cells = round_up(end, CELL) / CELL - first;
    const ByteProduct by_values{weight_digits(head) + first,
                                DIGITS,
                                DIGITS / 2,
                                weight_worths_ + head * TOGETHER,
                                value_cells() + first * columns(),
                                columns(),
                                cells};
    byte_product<TOGETHER>(by_values, count, 0, call_.padded,
                           [&](int64_t r, int64_t column, F sum) ROSE_INLINED {
                               float* to = out + r * call_.padded + column;
                               store(to, load(to) * splat(decay[r]) + sum);
                           });
}

}  // namespace attending
}  // namespace
}  // namespace rose

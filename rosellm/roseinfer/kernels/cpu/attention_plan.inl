// How the attention of a step is cut into parts that threads can compute.
//
// A "row" is a query token's head. The heads that share a KV head, of some query tokens, make a
// tile: keys and values are read once for all of it. Positions are cut into splits at multiples of
// their size, whatever the sequence looks like.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "simd.h"

namespace rose {
namespace {
namespace attending {

constexpr int SPLIT = 256;
// Rows of a tile; more, if one token has more heads. The faster they are multiplied, the more it costs
// to lay keys and values out for each.
#if defined(ROSE_AMX)
constexpr int TILE = 128;
#else
constexpr int TILE = 64;
#endif

constexpr int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// The operands of a call, and their sizes.
struct Call {
    const Attention& heads;
    const Sequences& step;
    const KvCache& cache;
    int64_t dim, padded;  // of a head; with zeros, up to whole vectors
    int64_t kv_heads, group;

    Call(const Attention& heads, const Sequences& step, const KvCache& cache)
        : heads(heads),
          step(step),
          cache(cache),
          dim(cache.head_dim),
          padded(round_up(cache.head_dim, 2 * LANES)),
          kv_heads(cache.kv_heads),
          group(heads.heads / cache.kv_heads) {}

    // The positions that a token sees.
    int64_t begin(int64_t position) const {
        return step.window ? std::max<int64_t>(0, position - step.window + 1) : 0;
    }
    int64_t end(int64_t position, int64_t length) const {
        return step.causal ? position + 1 : length;
    }
};

// Consecutive query tokens of one sequence.
struct Tile {
    int64_t first, tokens;  // index of the first in the step, and how many
    int64_t position;       // of the first
    int64_t length;         // of the sequence
    int64_t begin, end;     // positions that any of them sees
    const int32_t* table;
    bool shared;               // its splits are units
    int64_t waiting, results;  // if they are: its counters', its results' first index

    int64_t first_split() const { return begin / SPLIT; }
    int64_t splits() const { return (end - 1) / SPLIT + 1 - first_split(); }
};

// What one thread computes, for some KV heads: a split of a tile, or all of them.
constexpr int64_t ALL = -1;
struct Unit {
    int64_t tile, split, head, heads;
};

class Plan {
   public:
    std::vector<Tile> tiles;
    std::vector<Unit> units;
    // Of tiles whose splits are units, by a unit's first KV head: how many are not computed yet.
    std::vector<int32_t> waiting;
    int64_t results, rows;  // of those tiles: splits, by KV head, and most rows

    // Sequences that have several tiles come first, since these take longest. Tiles of at most `few`
    // rows are read faster with all heads in a unit; but each worker shall have some units.
    void make(const Call& call, int64_t few) {
        tiles.clear(), units.clear(), waiting.clear();
        results = rows = 0;
        const int64_t most = std::max<int64_t>(1, TILE / call.group);
        for (bool several : {true, false})
            for (int64_t sequence = 0; sequence < call.step.count; sequence++) {
                const int64_t tokens = call.step.rows[sequence + 1] - call.step.rows[sequence];
                if (tokens == 0 || (tokens > most) != several) continue;
                if (several)
                    add_tiles(call, sequence, tokens, most);
                else
                    add_tile(call, sequence, tokens);
            }
        int64_t small = 0;
        for (const Tile& tile : tiles) small += tile.tokens * call.group <= few ? tile.splits() : 0;
        const int64_t parts = small ? (UNITS_EACH * pool_size() + small - 1) / small : 1;
        const int64_t heads = std::max<int64_t>(1, call.kv_heads / parts);
        for (int64_t tile = 0; tile < int64_t(tiles.size()); tile++)
            add_units(call, tile, tiles[tile].tokens * call.group <= few ? heads : 1);
    }

    // Products of two numbers, in all.
    int64_t work(const Call& call) const {
        int64_t seen = 0;
        for (const Tile& tile : tiles) seen += tile.tokens * (tile.end - tile.begin);
        return 2 * seen * call.heads.heads * call.dim;
    }

   private:
    // The last ones, which see most, come first.
    void add_tiles(const Call& call, int64_t sequence, int64_t tokens, int64_t most) {
        for (int64_t end = tokens; end > 0;) {
            const int64_t first = (end - 1) / most * most;
            tiles.push_back(tile_of(call, sequence, first, end - first));
            end = first;
        }
    }

    // A single tile, whose splits several threads can share.
    void add_tile(const Call& call, int64_t sequence, int64_t tokens) {
        Tile tile = tile_of(call, sequence, 0, tokens);
        tile.shared = tile.splits() > 1;
        if (tile.shared) {
            tile.waiting = int64_t(waiting.size());
            tile.results = results;
            waiting.resize(waiting.size() + size_t(call.kv_heads), int32_t(tile.splits()));
            results += tile.splits() * call.kv_heads;
            rows = std::max(rows, tokens * call.group);
        }
        tiles.push_back(tile);
    }

    void add_units(const Call& call, int64_t tile, int64_t heads) {
        const int64_t splits = tiles[tile].shared ? tiles[tile].splits() : 1;
        for (int64_t split = 0; split < splits; split++)
            for (int64_t head = 0; head < call.kv_heads; head += heads)
                units.push_back({tile, tiles[tile].shared ? split : ALL, head,
                                 std::min(heads, call.kv_heads - head)});
    }

    static Tile tile_of(const Call& call, int64_t sequence, int64_t first, int64_t tokens) {
        const Sequences& step = call.step;
        const int64_t row = step.rows[sequence], start = step.positions[sequence];
        Tile tile{};
        tile.first = row + first;
        tile.tokens = tokens;
        tile.position = start + first;
        tile.length = start + step.rows[sequence + 1] - row;
        tile.begin = call.begin(tile.position);
        tile.end = call.end(tile.position + tokens - 1, tile.length);
        tile.table = step.tables + step.begins[sequence];
        return tile;
    }
};

}  // namespace attending
}  // namespace
}  // namespace rose

// Threads that share the tiles of one operation.
//
// Tiles are claimed from a counter, so a slow core holds nobody up; which worker computes a tile
// never changes its bits. The caller works too. One operation runs at a time: callers on several
// threads take turns. What an operation keeps from one run_tiles to the next is not guarded by
// that: let it belong to the calling thread.
#pragma once

#include <cstdint>

namespace rose {

// It must not throw, nor call run_tiles.
using Body = void (*)(void* context, int64_t tile, int worker);

// Workers, the caller included.
int pool_size();

// For each of them, at least, where there are so many: so that one that is slow holds nobody up.
constexpr int64_t UNITS_EACH = 4;

// How many workers there shall be, at least one. Not while a kernel runs that asked for their
// number. Threads start with the first operation that can use them.
void resize_pool(int workers);

// Calls body once for every tile in [0, tiles), and returns when all are done.
void run_tiles(int64_t tiles, Body body, void* context);

// The same for a callable that takes (tile, worker), 0 <= worker < pool_size(). No two calls at a
// time have the same worker.
template <class F>
void parallel_for(int64_t tiles, const F& body) {
    run_tiles(
        tiles,
        [](void* context, int64_t tile, int worker) {
            (*static_cast<const F*>(context))(tile, worker);
        },
        const_cast<F*>(&body));
}

}  // namespace rose

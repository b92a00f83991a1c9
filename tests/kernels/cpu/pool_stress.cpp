// The pool under stress, as a program: so that a sanitizer can watch it without Python.
//
// Several threads run operations of many sizes at once, some right after each other and some after
// the workers have gone to sleep, while another thread changes their number.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

void check(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

// Every tile once; what a tile wrote is seen after the call; a worker does one thing at a time.
void run_one(int64_t tiles) {
    std::vector<int64_t> done(tiles, 0);
    std::atomic<int> inside[16] = {};
    rose::parallel_for(tiles, [&](int64_t tile, int worker) {
        check(worker >= 0 && worker < 16, "a worker's number is less than the pool's size");
        check(inside[worker]++ == 0, "a worker does one tile at a time");
        done[tile] += tile + 1;
        inside[worker]--;
    });
    for (int64_t tile = 0; tile < tiles; tile++) check(done[tile] == tile + 1, "each tile once");
}

void run_many(int rounds, unsigned seed) {
    for (int round = 0; round < rounds; round++) {
        seed = seed * 1664525 + 1013904223;
        run_one((seed >> 16) % 40);
        if ((seed >> 24) % 64 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace

int main(int, char** arguments) {
    const int rounds = std::atoi(arguments[1]);
    std::atomic<bool> running{true};
    rose::resize_pool(4);
    std::thread resizing([&] {
        for (int size = 1; running; size = size % 8 + 1) {
            rose::resize_pool(size);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    });
    std::vector<std::thread> callers;
    for (unsigned seed = 0; seed < 3; seed++) callers.emplace_back(run_many, rounds, seed);
    for (auto& caller : callers) caller.join();
    running = false;
    resizing.join();
}

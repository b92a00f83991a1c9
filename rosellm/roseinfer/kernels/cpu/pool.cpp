#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace rose {
namespace {

using Clock = std::chrono::steady_clock;

// How long a worker looks for more work before it sleeps: longer than the gaps inside a step,
// shorter than those between requests.
constexpr auto SPIN = std::chrono::microseconds(100);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Looks at a condition again and again for a while. Returns whether it came true.
template <class Condition>
bool spin_until(const Condition& condition) {
    const auto end = Clock::now() + SPIN;
    do {
        for (int look = 0; look < 32; look++) {
            if (condition()) return true;
            pause();
        }
    } while (Clock::now() < end);
    return false;
}

// The thread's rounding and denormal modes. Workers take the caller's, for these change bits.
#if defined(__x86_64__)
using Modes = unsigned;
inline Modes get_modes() { return __builtin_ia32_stmxcsr(); }
inline void set_modes(Modes modes) { __builtin_ia32_ldmxcsr(modes); }
#elif defined(__aarch64__)
using Modes = uint64_t;
inline Modes get_modes() {
    Modes modes;
    asm volatile("mrs %0, fpcr" : "=r"(modes));
    return modes;
}
inline void set_modes(Modes modes) { asm volatile("msr fpcr, %0" : : "r"(modes)); }
#else
using Modes = int;
inline Modes get_modes() { return 0; }
inline void set_modes(Modes) {}
#endif

// The operation's fields need no lock, because of the gate: one number that says which operation
// it is, whether workers may still join it, and how many are inside.
// - A worker joins by adding one to an open gate, in one exchange, and reads the fields after that.
// - The caller writes the fields while the gate is closed with nobody inside, then opens it. When
//   no tile is left it closes the gate and waits until nobody is inside.
// So nobody is inside while the fields change, and who is inside sees the fields of the operation
// that he joined: opening is a release, joining an acquire, leaving a release that the caller's
// wait acquires (all joins and leaves of one operation are one release sequence).
// A worker that sleeps, or has lost its core, did not join and is not waited for: later it finds
// the gate closed, or open for another operation.
class Pool {
   public:
    explicit Pool(int workers) {
        try {
            for (int worker = 1; worker < workers; worker++)
                threads_.emplace_back([this, worker] { serve(worker); });
        } catch (const std::system_error&) {
            // the system gives no more threads: go on with those that there are
        }
    }

    ~Pool() {
        open(STOP);
        for (auto& thread : threads_) thread.join();
    }

    void run(int64_t tiles, Body body, void* context) {
        body_ = body, context_ = context, tiles_ = tiles, modes_ = get_modes();
        next_.store(0, std::memory_order_relaxed);
        number_++;
        open(number_ * NUMBER | OPEN);
        work(0);
        gate_.fetch_and(~OPEN, std::memory_order_relaxed);
        wait_until_empty();
    }

   private:
    static constexpr uint64_t INSIDE = 0xffff, OPEN = 0x10000, STOP = 0x20000, NUMBER = 0x40000;

    void work(int worker) {
        for (int64_t tile; (tile = next_.fetch_add(1, std::memory_order_relaxed)) < tiles_;)
            body_(context_, tile, worker);
    }

    // Either a worker that goes to sleep sees the open gate, or the caller sees the sleeper: each
    // writes first and reads then, all in one order (seq_cst). The lock is for a sleeper who has
    // looked at the gate but does not wait yet.
    void open(uint64_t gate) {
        gate_.store(gate);
        if (sleepers_.load() == 0) return;
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }

    void wait_until_empty() {
        auto empty = [this] { return (gate_.load(std::memory_order_acquire) & INSIDE) == 0; };
        if (spin_until(empty)) return;
        while (!empty()) std::this_thread::yield();  // a worker has lost its core: offer this one
    }

    void serve(int worker) {
        for (uint64_t done = 0;;) {
            uint64_t gate = wait_for_work(done);
            if (gate & STOP) return;
            if (!gate_.compare_exchange_strong(gate, gate + 1, std::memory_order_acquire)) continue;
            set_modes(modes_);
            work(worker);
            done = gate / NUMBER;
            gate_.fetch_sub(1, std::memory_order_release);
        }
    }

    // The gate, when it is open for another operation than the one that is done.
    uint64_t wait_for_work(uint64_t done) {
        uint64_t gate;
        auto ready = [&] {
            gate = gate_.load();
            return (gate & STOP) || ((gate & OPEN) && gate / NUMBER != done);
        };
        if (spin_until(ready)) return gate;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, ready);
        sleepers_.fetch_sub(1);
        return gate;
    }

    Body body_ = nullptr;
    void* context_ = nullptr;
    int64_t tiles_ = 0;
    Modes modes_ = {};
    uint64_t number_ = 0;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<uint64_t> gate_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::vector<std::thread> threads_;
};

struct State {
    std::mutex turn;
    std::unique_ptr<Pool> pool;  // made when needed
    std::atomic<int> workers{1};
};

// Never destroyed: at exit, threads may still be at work.
State* state = new State;

// A forked child has none of the threads, and its copy of the state may be in the middle of an
// operation: it begins anew.
void forget_threads() {
    const int workers = state->workers;
    state = new State;
    state->workers = workers;
}

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, forget_threads);

}  // namespace

int pool_size() { return state->workers; }

void resize_pool(int workers) {
    std::lock_guard<std::mutex> turn(state->turn);
    workers = std::max(workers, 1);
    if (workers != state->workers) state->pool.reset();
    state->workers = workers;
}

void run_tiles(int64_t tiles, Body body, void* context) {
    std::lock_guard<std::mutex> turn(state->turn);
    if (tiles <= 1 || state->workers == 1) {
        for (int64_t tile = 0; tile < tiles; tile++) body(context, tile, 0);
        return;
    }
    if (!state->pool) state->pool = std::make_unique<Pool>(state->workers);
    state->pool->run(tiles, body, context);
}

}  // namespace rose

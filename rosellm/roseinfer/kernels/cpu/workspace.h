// Memory that a thread keeps for its next operation, so that none of them allocates.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rose {
namespace {

class Workspace {
   public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    // Room for `count` values, aligned to 64 bytes; what it held before is lost.
    template <class T>
    T* room(int64_t count) {
        const size_t bytes = size_t(count) * sizeof(T);
        if (bytes > size_) grow(bytes);
        return static_cast<T*>(memory_);
    }

   private:
    // Rows of activations lie pages apart, so that a tile of them needs many small pages at a time.
    static constexpr size_t LARGE_PAGE = 2 << 20;

    void grow(size_t bytes) {
        std::free(memory_);
        const size_t wanted = bytes + bytes / 4, step = wanted < LARGE_PAGE ? 64 : LARGE_PAGE;
        size_ = (wanted + step - 1) / step * step;
        memory_ = std::aligned_alloc(step, size_);
        if (!memory_) std::abort();  // there is no way on, and nobody to tell
#if defined(__linux__)
        if (step == LARGE_PAGE) madvise(memory_, size_, MADV_HUGEPAGE);
#endif
    }

    void* memory_ = nullptr;
    size_t size_ = 0;
};

}  // namespace
}  // namespace rose

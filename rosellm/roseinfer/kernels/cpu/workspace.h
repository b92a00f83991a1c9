// Memory that a thread keeps for its next operation, so that none of them allocates.
#pragma once

#include <cstdint>
#include <cstdlib>

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
    void grow(size_t bytes) {
        std::free(memory_);
        size_ = (bytes + bytes / 4 + 63) / 64 * 64;
        memory_ = std::aligned_alloc(64, size_);
        if (!memory_) std::abort();  // there is no way on, and nobody to tell
    }

    void* memory_ = nullptr;
    size_t size_ = 0;
};

}  // namespace
}  // namespace rose

// The C ABI: what Python calls. Nothing here computes.
#include <cstring>

#if defined(ROSE_HAS_AVX2_VNNI) || defined(ROSE_HAS_AMX)
#include <cpuid.h>
#endif
#if defined(ROSE_HAS_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"
#include "matmul.h"
#include "pool.h"
#include "program.h"

namespace rose {
namespace {

// ROSE_HAS_…: the levels that were compiled; see build.py.
#if defined(ROSE_HAS_AVX2)
bool has_avx2() {  // and F16C, which is older
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#if defined(ROSE_HAS_AVX2_VNNI) || defined(ROSE_HAS_AVX512_BF16)
Kernels with(const Multiplying& other, Kernels table) {
    table.level = other.level;
    table.linear = other.linear;
    if (other.attention) table.attention = other.attention;
    return table;
}
#endif

#if defined(ROSE_HAS_AVX2_VNNI)
bool has_avx2_vnni() {
    constexpr unsigned VNNI = 1u << 4;
    unsigned features = 0, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &features, &b, &c, &d) && (features & VNNI);
}

const Kernels avx2_vnni_kernels = with(vnni_multiplying, avx2_kernels);
#endif

#if defined(ROSE_HAS_AVX512)
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(ROSE_HAS_AVX512_BF16)
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

const Kernels avx512_bf16_kernels = with(bf16_multiplying, avx512_kernels);
#endif

#if defined(ROSE_HAS_AMX)
// Also whether the system lets this process use it: a thread's state is 8 KB larger then.
bool has_amx() {
    constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24, INT8 = 1u << 25, ALL = BF16 | TILES | INT8;
    unsigned a, b, c, features = 0;
    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &features)) return false;
    if ((features & ALL) != ALL) return false;
#if defined(__linux__)
    constexpr int ASK = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
#else
    return false;
#endif
}

const Kernels amx_kernels = with(amx_multiplying, avx512_kernels);
#endif

// The best level that this processor has, or the one of that name; null if it has none such.
const Kernels* find_level(const char* name) {
    auto fits = [name](const Kernels& level) {
        return name == nullptr || std::strcmp(level.level, name) == 0;
    };
#if defined(ROSE_HAS_AMX)
    if (fits(amx_kernels) && has_amx()) return &amx_kernels;
#endif
#if defined(ROSE_HAS_AVX512_BF16)
    if (fits(avx512_bf16_kernels) && has_avx512_bf16()) return &avx512_bf16_kernels;
#endif
#if defined(ROSE_HAS_AVX512)
    if (fits(avx512_kernels) && has_avx512()) return &avx512_kernels;
#endif
#if defined(ROSE_HAS_AVX2_VNNI)
    if (fits(avx2_vnni_kernels) && has_avx2_vnni()) return &avx2_vnni_kernels;
#endif
#if defined(ROSE_HAS_AVX2)
    if (fits(avx2_kernels) && has_avx2()) return &avx2_kernels;
#endif
    return fits(portable_kernels) ? &portable_kernels : nullptr;
}

const Kernels*& chosen() {
    static const Kernels* level = find_level(nullptr);
    return level;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

}  // namespace rose

#pragma GCC visibility push(default)
extern "C" {

// Of what the library was built from: library.py refuses one that is left from other sources.
const char* rose_interface() { return ROSE_INTERFACE; }

const char* rose_level() { return rose::kernels().level; }

// Take the level of that name, or the best one if null. Returns whether this processor has it.
// Not while an operation runs.
int rose_set_level(const char* name) {
    const rose::Kernels* level = rose::find_level(name);
    if (level) rose::chosen() = level;
    return level != nullptr;
}

int rose_threads() { return rose::pool_size(); }
void rose_set_threads(int count) { rose::resize_pool(count); }

// Calls body(context, tile, worker) once for every tile, from several threads.
void rose_run_tiles(int64_t tiles, rose::Body body, void* context) {
    rose::run_tiles(tiles, body, context);
}

// -- products; see kernels.h

// Bytes of a packed weight, whose data may be null; 0 if there is none such.
int64_t rose_packed_bytes(const rose::Matrix* w) {
    return rose::matmul::valid(*w) ? rose::matmul::bytes_of(*w) : 0;
}
void rose_pack(const rose::Matrix* w, int64_t first, int64_t count, const rose::Plain* rows) {
    rose::kernels().pack(*w, first, count, *rows);
}
void rose_pack_codes(const rose::Matrix* w, int64_t first, int64_t count,
                     const rose::Codes* rows) {
    rose::kernels().pack_codes(*w, first, count, *rows);
}
void rose_linear(const rose::Rows* x, const rose::Matrix* w, int32_t finish, float* y,
                 int64_t y_stride) {
    rose::kernels().linear(*x, *w, static_cast<rose::Finish>(finish), y, y_stride, nullptr);
}
void rose_logits(const rose::Rows* x, const rose::Matrix* w, const rose::Logits* out) {
    rose::logits(*x, *w, *out);
}
void rose_lookup(const rose::Matrix* table, const int64_t* ids, int64_t count, float* y,
                 int64_t y_stride) {
    rose::kernels().lookup(*table, ids, count, y, y_stride);
}

void rose_search4(const rose::Plain* weight, const float* importance, const rose::Searched* out) {
    rose::kernels().search4(*weight, importance, *out);
}

// -- rows and attention; see kernels.h

void rose_rms_norm(const rose::Activations* x, const rose::Activations* out, const float* weight,
                   float eps, const rose::Activations* residual) {
    rose::kernels().rms_norm(*x, *out, weight, eps, residual);
}
void rose_layer_norm(const rose::Activations* x, const rose::Activations* out, const float* weight,
                     const float* bias, float eps) {
    rose::kernels().layer_norm(*x, *out, weight, bias, eps);
}
void rose_add(const rose::Activations* x, const rose::Activations* other,
              const rose::Activations* out) {
    rose::kernels().add(*x, *other, *out);
}
void rose_qkv_to_cache(const rose::QkvToCache* qkv, const rose::KvCache* cache) {
    rose::kernels().qkv_to_cache(*qkv, *cache);
}
void rose_slots(const rose::Sequences* step, int64_t* out) { rose::kernels().slots(*step, out); }
void rose_attention(const rose::Attention* heads, const rose::Sequences* step,
                    const rose::KvCache* cache) {
    rose::kernels().attention(*heads, *step, *cache);
}

// -- tokens; see kernels.h

void rose_draw(const rose::Activations* logits, const float* tops, const rose::Allowed* allowed,
               const rose::Sampling* wanted, int64_t* tokens) {
    rose::kernels().draw(*logits, tops, *allowed, wanted, tokens);
}
void rose_logprobs(const rose::Activations* logits, const int64_t* tokens, float* chosen,
                   const rose::Likeliest* likeliest) {
    rose::kernels().logprobs(*logits, tokens, chosen, *likeliest);
}

// -- a whole forward; see program.h

void rose_run(const rose::Program* program, const rose::Step* step, const rose::Tail* tail) {
    rose::run(*program, *step, tail);
}

}  // extern "C"
#pragma GCC visibility pop

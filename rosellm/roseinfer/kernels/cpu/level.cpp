// One dispatch level: compiled once for each, with that level's instructions allowed.
#include "kernels.h"

#if defined(ROSE_AVX2) && defined(ROSE_VNNI)  // has products of its own; all else is AVX2's
#include "matmul.inl"

namespace rose {

const Multiplying vnni_multiplying = {"avx2_vnni", matmul::linear, nullptr};

}  // namespace rose

#elif defined(ROSE_BF16)  // and attention; all else is AVX-512's
#include "attention.inl"
#include "matmul.inl"

namespace rose {

#if defined(ROSE_AMX)
const Multiplying amx_multiplying = {"amx", matmul::linear, attention};
#else
const Multiplying bf16_multiplying = {"avx512_bf16", matmul::linear, attention};
#endif

}  // namespace rose

#else

#if defined(ROSE_AVX512)
#define ROSE_KERNELS avx512_kernels
#define ROSE_LEVEL "avx512"
#elif defined(ROSE_AVX2)
#define ROSE_KERNELS avx2_kernels
#define ROSE_LEVEL "avx2"
#else
#define ROSE_KERNELS portable_kernels
#define ROSE_LEVEL "portable"
#endif

#include "matmul.inl"
#include "pack.inl"
#include "rows.inl"
#include "attention.inl"
#include "search.inl"
#include "sample.inl"

namespace rose {
namespace {

constexpr Kernels all_kernels() {
    Kernels table{};
    table.level = ROSE_LEVEL;
    table.linear = matmul::linear;
    table.lookup = matmul::lookup;
    table.pack = matmul::pack;
    table.pack_codes = matmul::pack_codes;
    table.search4 = search::search4;
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.add = add;
    table.qkv_to_cache = qkv_to_cache;
    table.slots = slots;
    table.attention = attention;
    table.soundness = soundness;
    table.draw = draw;
    table.logprobs = logprobs;
    return table;
}

}  // namespace

const Kernels ROSE_KERNELS = all_kernels();

}  // namespace rose

#endif

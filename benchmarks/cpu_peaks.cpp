// What this processor can do at most: reading memory, and multiplying in registers.
//
// Each function is a tile for the kernels' own threads. Sums go through empty asm statements, so
// that the compiler neither leaves them out nor adds them up beforehand.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#define MATRIX_UNIT
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int SUMS = 16;  // independent, more than a multiplication takes to finish
#else
constexpr int SUMS = 12;  // as many as there are registers for
#endif
constexpr int64_t ROUNDS = 100000;

#if defined(__AVX512F__)
using Floats = __m512;
#elif defined(__AVX__)
using Floats = __m256;
#else
typedef float Floats __attribute__((vector_size(16)));
#endif
constexpr int64_t LANES = sizeof(Floats) / 4;

#if defined(__x86_64__)
#define KEEP(value) asm volatile("" : "+v"(value))  // any register that there is
#else
#define KEEP(value) asm volatile("" : "+w"(value))
#endif

struct Reading {
    const char* data;
    int64_t bytes;  // of a tile
};

#if defined(MATRIX_UNIT)
// Four sums of 16 x 16, full tiles; `multiply` is said what to multiply how.
constexpr int64_t UNIT_ROUNDS = 10000;

template <class Multiply>
void with_unit(const Multiply& multiply) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {};
    shapes.palette = 1;
    for (int tile = 0; tile < 8; tile++) shapes.row_bytes[tile] = 64, shapes.rows[tile] = 16;
    asm volatile("ldtilecfg %0" : : "m"(shapes));
    for (int64_t i = 0; i < UNIT_ROUNDS; i++) multiply();
    _tile_release();
}

bool unit_is_there() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM
    return allowed;
}
#else
constexpr int64_t UNIT_ROUNDS = 0;
bool unit_is_there() { return false; }
#endif

}  // namespace

extern "C" {

// Operations of one tile of each kind; 0 if there is no such instruction.
int64_t peak_fp32_operations() { return ROUNDS * SUMS * LANES * 2; }

void peak_fp32(void*, int64_t, int) {
    Floats sums[SUMS] = {}, one = {}, two = {};
    KEEP(one);
    KEEP(two);
    for (int64_t i = 0; i < ROUNDS; i++) {
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++) {
#if defined(__AVX512F__)
            sums[s] = _mm512_fmadd_ps(one, two, sums[s]);
#elif defined(__FMA__)
            sums[s] = _mm256_fmadd_ps(one, two, sums[s]);
#else
            sums[s] += one * two;
#endif
        }
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++) KEEP(sums[s]);
    }
}

#if defined(__AVX512BF16__)
int64_t peak_bf16_operations() {
    return unit_is_there() ? UNIT_ROUNDS * 4 * 16384 : ROUNDS * SUMS * 64;
}

void peak_bf16(void*, int64_t, int) {
#if defined(MATRIX_UNIT)
    if (unit_is_there())
        return with_unit([] {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        });
#endif
    __m512 sums[SUMS] = {};
    __m512i one = {}, two = {};
    KEEP(one);
    KEEP(two);
    for (int64_t i = 0; i < ROUNDS; i++) {
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++)
            sums[s] = _mm512_dpbf16_ps(sums[s], (__m512bh)one, (__m512bh)two);
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++) KEEP(sums[s]);
    }
}
#else
int64_t peak_bf16_operations() { return 0; }
void peak_bf16(void*, int64_t, int) {}
#endif

#if defined(__AVX512VNNI__)
int64_t peak_int8_operations() {
    return unit_is_there() ? UNIT_ROUNDS * 4 * 32768 : ROUNDS * SUMS * 128;
}

void peak_int8(void*, int64_t, int) {
#if defined(MATRIX_UNIT)
    if (unit_is_there())
        return with_unit([] {
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        });
#endif
    __m512i sums[SUMS] = {}, one = {}, two = {};
    KEEP(one);
    KEEP(two);
    for (int64_t i = 0; i < ROUNDS; i++) {
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++)
            asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[s]) : "v"(one), "v"(two));
    }
}
#elif defined(__AVX2__)
// Sums of 16 bits, as those of small codes may be: two instructions for 32 products.
int64_t peak_int8_operations() { return ROUNDS * SUMS * 64; }

void peak_int8(void*, int64_t, int) {
    __m256i sums[SUMS] = {}, one = {}, two = {};
    KEEP(one);
    KEEP(two);
    for (int64_t i = 0; i < ROUNDS; i++) {
#pragma GCC unroll 12
        for (int s = 0; s < SUMS; s++) {
            __m256i products;
            asm volatile("vpmaddubsw %2, %1, %0" : "=x"(products) : "x"(one), "x"(two));
            sums[s] = _mm256_add_epi16(sums[s], products);
        }
#pragma GCC unroll 12
        for (int s = 0; s < SUMS; s++) KEEP(sums[s]);
    }
}
#else
int64_t peak_int8_operations() { return 0; }
void peak_int8(void*, int64_t, int) {}
#endif

// Four streams at a time, as of neighbouring rows.
void peak_read(void* context, int64_t tile, int) {
    const Reading& reading = *static_cast<const Reading*>(context);
    const int64_t stream = reading.bytes / 4;
    const char* from = reading.data + tile * reading.bytes;
    Floats sums[4] = {};
    for (int64_t at = 0; at < stream; at += int64_t(sizeof(Floats))) {
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            Floats values;
            std::memcpy(&values, from + s * stream + at, sizeof values);
            sums[s] += values;
        }
    }
    for (int s = 0; s < 4; s++) KEEP(sums[s]);
}

}  // extern "C"

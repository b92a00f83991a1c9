// A processor's matrix unit (AMX), which multiplies up to 16 rows by 16 columns at once: 64 inputs of
// int8, or 32 of bf16.
//
// In bf16 it has an order of its own: of 32 inputs the even ones are added up apart from the odd ones,
// and their sum is added to those before. What is too small for a normal number is 0 to it.
#pragma once

#include "simd.h"

namespace rose {
namespace {

constexpr int64_t AMX_BYTES = 64;  // of a row, that the unit takes at once
constexpr int64_t AMX_PAIRS = AMX_BYTES / 4;

// While it lives, this thread's unit has these shapes: tiles 0 to 3 are sums [rows][16], 4 and 5 rows of
// so many bytes, 6 and 7 columns [bytes / 4][16][4 bytes].
class AmxShapes {
   public:
    AmxShapes(int64_t rows, int64_t bytes) {
        struct {
            uint8_t palette, start, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } shapes = {};
        shapes.palette = 1;
        for (int tile = 0; tile < 8; tile++) {
            shapes.row_bytes[tile] = uint16_t(tile == 4 || tile == 5 ? bytes : AMX_BYTES);
            shapes.rows[tile] = uint8_t(tile >= 6 ? bytes / 4 : rows);
        }
        // gcc's intrinsics do not say what they read; what is written before stays before
        asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
    }
    ~AmxShapes() { _tile_release(); }
    AmxShapes(const AmxShapes&) = delete;
    AmxShapes& operator=(const AmxShapes&) = delete;
};

}  // namespace
}  // namespace rose

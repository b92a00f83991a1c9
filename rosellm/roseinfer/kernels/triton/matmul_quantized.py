"""The same products of weights in few bits, whose numbers are made in registers.

A number becomes what ``QuantizedTensor.dequantize`` says, rounded to the rows' type, and is then
multiplied as in ``matmul``, in the same order; so the result is that of the reference up to the
order of sums. An fp8 code is a number of every such type, so its row's scale is left to the end.

Knows the layout that ``packing`` makes: bytes [n, ...] with ``HALF`` columns in a step's byte row
(in 4 bits: the first 64 columns of 128 in the low halves, the others in the high ones), scales
[groups, n padded] and, in 4 bits, step + 256 * offset [parts of 32, n padded].
"""

from __future__ import annotations

import triton
import triton.language as tl

from rosellm.roseinfer.kernels.triton.matmul import keep, keep_part, place_of

HALF = tl.constexpr(64)
PART = tl.constexpr(32)
IN_HALF = tl.constexpr(2)


@triton.jit
def float_of_byte(code):
    """A byte as fp32, by its place in the mantissa of 2^23: conversions are slow on some cards."""
    wide = code.to(tl.int32) | 0x4B000000
    return wide.to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def float_of_e4m3(code):
    """The number of an e4m3 byte, exact, as fp16; the two that mean none become 480 and -480.

    The exponent's four bits land in fp16's five, whose bias is 8 more. By bits, since not every
    card has an instruction for it.
    """
    wide = code.to(tl.int16)
    bits = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def numbers(
    codes,
    scales,
    points,
    columns,
    at,
    padded,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
):
    """What codes [BLOCK_N, HALF] of columns from ``at`` mean, in fp32."""
    spread = codes.to(tl.float32).reshape(BLOCK_N, IN_HALF, PART)
    places = at // PART + tl.arange(0, IN_HALF)
    scale = tl.load(scales + (places * PART // GROUP_SIZE)[None, :] * padded + columns[:, None])
    scale = scale.to(tl.float32)
    if KIND == "int4":
        point = tl.load(points + places[None, :] * padded + columns[:, None]).to(tl.int32)
        step = float_of_byte(point & 255) * scale
        base = (float_of_byte((point >> 8) & 255) - 128.0) * scale
        # exact: every one of these has fewer than 24 digits
        spread = spread * step[:, :, None] + base[:, :, None]
    else:
        spread = spread * scale[:, :, None]
    return spread.reshape(BLOCK_N, HALF)


@triton.jit
def weights_of(
    packed,
    scales,
    points,
    columns,
    at,
    padded,
    HIGH: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Numbers [BLOCK_N, HALF] of bytes that hold them, in the type of the rows."""
    if KIND == "fp8":
        return float_of_e4m3(packed).to(TYPE)
    if KIND == "int8":
        codes = float_of_byte(packed) - 128.0
    elif HIGH:
        codes = float_of_byte((packed >> 4) & 15)
    else:
        codes = float_of_byte(packed & 15)
    spread = numbers(codes, scales, points, columns, at, padded, KIND, BLOCK_N, GROUP_SIZE)
    return spread.to(TYPE)


@triton.jit
def two_halves(
    sums,
    x_rows,
    w_rows,
    scales,
    points,
    columns,
    at,
    k,
    padded,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``sums`` plus the products of 128 columns from ``at``, 64 after 64."""
    TYPE: tl.constexpr = x_rows.dtype.element_ty
    inside = tl.arange(0, HALF)
    for half in tl.static_range(2):
        first = at + half * HALF
        if KIND == "int4":
            packed = tl.load(w_rows[:, None] + (at // 2 + inside)[None, :])
        else:
            packed = tl.load(w_rows[:, None] + (first + inside)[None, :])
        w = weights_of(
            packed,
            scales,
            points,
            columns,
            first,
            padded,
            half == 1,
            KIND,
            BLOCK_N,
            GROUP_SIZE,
            TYPE,
        )
        ks = first + inside
        if EVEN:
            x = tl.load(x_rows[None, :] + ks[:, None])
        else:
            x = tl.load(x_rows[None, :] + ks[:, None], mask=(ks < k)[:, None], other=0.0)
        sums = tl.dot(w, x, sums, input_precision="ieee")
    return sums


@triton.jit
def packed_sum_of(
    x_rows,
    w_rows,
    scales,
    points,
    columns,
    begin,
    end,
    k,
    padded,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The chain from ``begin`` to ``end``: [BLOCK_N, BLOCK_M]."""
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for at in range(begin, end, 2 * HALF):
        sums = two_halves(
            sums,
            x_rows,
            w_rows,
            scales,
            points,
            columns,
            at,
            k,
            padded,
            KIND,
            GROUP_SIZE,
            BLOCK_N,
            EVEN,
        )
    return sums


@triton.jit(do_not_specialize=["m"])
def packed_product(
    x,
    w,
    scales,
    points,
    bias,
    out,
    partials,
    m,
    n,
    k,
    x_stride,
    w_stride,
    padded,
    part_size,
    PARTS: tl.constexpr,
    SPREAD: tl.constexpr,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
):
    """See ``matmul.product``.

    w is [rows, w_stride] in bytes, scales [groups, padded] (fp8: [padded]), points as above; with
    ``GATED`` there are 2n rows. ``EVEN``: k is a multiple of 128; w is padded to that anyway.
    """
    tile_n, tile_m = place_of(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.cdiv(m, BLOCK_M), GROUP)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    x_rows = x + (rows % m).to(tl.int64) * x_stride
    w_rows = w + (columns % n).to(tl.int64) * w_stride
    if GATED:
        of_v = columns + n
        v_rows = w_rows + n.to(tl.int64) * w_stride
        first = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        second = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for at in range(0, k, 2 * HALF):
            first = two_halves(
                first,
                x_rows,
                w_rows,
                scales,
                points,
                columns,
                at,
                k,
                padded,
                KIND,
                GROUP_SIZE,
                BLOCK_N,
                EVEN,
            )
            second = two_halves(
                second,
                x_rows,
                v_rows,
                scales,
                points,
                of_v,
                at,
                k,
                padded,
                KIND,
                GROUP_SIZE,
                BLOCK_N,
                EVEN,
            )
        if KIND == "fp8":
            first *= tl.load(scales + columns)[:, None]
            second *= tl.load(scales + of_v)[:, None]
        keep(out, first, second, bias, columns, rows, m, n, HAS_BIAS, ACTIVATION, GATED)
    else:
        part = tl.program_id(1)  # 0 where parts are not spread
        begin = part * part_size
        end = tl.minimum(begin + part_size, k)
        sums = packed_sum_of(
            x_rows,
            w_rows,
            scales,
            points,
            columns,
            begin,
            end,
            k,
            padded,
            KIND,
            GROUP_SIZE,
            BLOCK_N,
            BLOCK_M,
            EVEN,
        )
        if SPREAD:
            keep_part(partials, sums, part, columns, rows, m, n)
        else:
            for later in range(1, PARTS):
                begin = later * part_size
                end = tl.minimum(begin + part_size, k)
                sums += packed_sum_of(
                    x_rows,
                    w_rows,
                    scales,
                    points,
                    columns,
                    begin,
                    end,
                    k,
                    padded,
                    KIND,
                    GROUP_SIZE,
                    BLOCK_N,
                    BLOCK_M,
                    EVEN,
                )
            if KIND == "fp8":
                sums *= tl.load(scales + columns)[:, None]
            keep(out, sums, sums, bias, columns, rows, m, n, HAS_BIAS, ACTIVATION, GATED)

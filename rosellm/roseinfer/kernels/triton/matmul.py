"""Products of rows with weights on tensor cores: a row's bits do not depend on its batch.

Every output is one chain over K: products of 16 columns after 16 columns are added to an fp32
accumulator, ``BLOCK_K`` at a time, from the start of a *part* of K to its end; then the parts'
sums are added in their order. Where parts begin is decided from the weight's shape alone
(``tiles.parts``). A tile's height, how many tiles there are, and whether parts are computed by one
program or by several, change who computes an output, not what is added to what.

The weight is the left operand, so that even one row fills the instructions that large batches use
(on Hopper wgmma, whose left side is 64 high, the right one from 8 wide): with rows on the left,
few rows would need another instruction than many, whose rounding may differ. What this rests on is
that an instruction treats all columns of its right side alike, whatever their number. No vendor
promises that; ``Products.agree`` tries it on the card at start-up.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of(index, tiles_n, tiles_m, GROUP: tl.constexpr):
    """The tile that a program computes: ``GROUP`` tiles of the weight stay in the L2 cache while
    rows go by."""
    in_group = GROUP * tiles_m
    first = index // in_group * GROUP
    size = tl.minimum(tiles_n - first, GROUP)
    within = index % in_group
    return first + within % size, within // size


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def gelu_tanh(x):
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def activated(first, second, KIND: tl.constexpr):
    """See ``reference.ACTIVATIONS``; fp32 in and out."""
    if KIND == "silu_mul":
        return first / (1.0 + tl.exp(-first)) * second
    elif KIND == "gelu_tanh_mul":
        return gelu_tanh(first) * second
    elif KIND == "gelu_tanh":
        return gelu_tanh(first)
    elif KIND == "gelu_erf":
        return first * 0.5 * (1.0 + tl.erf(first * 0.7071067811865476))
    else:
        return first


@triton.jit
def with_bias(sums, bias, columns, n, HAS_BIAS: tl.constexpr, KIND: tl.constexpr):
    """Sums [n, m] of these columns plus their bias, rounded to the result's type ``KIND``."""
    if HAS_BIAS:
        sums += tl.load(bias + columns, mask=columns < n, other=0.0)[:, None]
    return sums.to(KIND).to(tl.float32)


@triton.jit
def keep(
    out,
    first,
    second,
    bias,
    columns,
    rows,
    m,
    n,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
):
    """Finish sums [columns, rows] and store them in out [m, n]; ``second`` belongs to a gate."""
    kind = out.dtype.element_ty
    first = with_bias(first, bias, columns, n, HAS_BIAS, kind)
    if GATED:
        second = with_bias(second, bias + n, columns, n, HAS_BIAS, kind)
    result = activated(first, second, ACTIVATION)
    inside = (rows < m)[None, :] & (columns < n)[:, None]
    places = out + rows.to(tl.int64)[None, :] * n + columns[:, None]
    tl.store(places, result.to(kind), mask=inside)


@triton.jit
def keep_part(partials, sums, part, columns, rows, m, n):
    """Store one part's sums in partials [parts, m, n]."""
    inside = (rows < m)[None, :] & (columns < n)[:, None]
    first = part.to(tl.int64) * m * n
    tl.store(
        partials + first + rows.to(tl.int64)[None, :] * n + columns[:, None], sums, mask=inside
    )


@triton.jit
def sum_of(
    x_rows,
    w_rows,
    begin,
    end,
    k,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The chain from ``begin`` to ``end``: [BLOCK_N, BLOCK_M]."""
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for at in range(begin, end, BLOCK_K):
        ks = at + tl.arange(0, BLOCK_K)
        if EVEN:
            w = tl.load(w_rows[:, None] + ks[None, :])
            x = tl.load(x_rows[None, :] + ks[:, None])
        else:
            w = tl.load(w_rows[:, None] + ks[None, :], mask=(ks < k)[None, :], other=0.0)
            x = tl.load(x_rows[None, :] + ks[:, None], mask=(ks < k)[:, None], other=0.0)
        sums = tl.dot(w, x, sums, input_precision="ieee")
    return sums


@triton.jit
def sum_of_two(
    x_rows,
    w_rows,
    v_rows,
    k,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Two chains over all of K, of the rows of a gate and of what it is multiplied with."""
    first = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for at in range(0, k, BLOCK_K):
        ks = at + tl.arange(0, BLOCK_K)
        if EVEN:
            w = tl.load(w_rows[:, None] + ks[None, :])
            v = tl.load(v_rows[:, None] + ks[None, :])
            x = tl.load(x_rows[None, :] + ks[:, None])
        else:
            w = tl.load(w_rows[:, None] + ks[None, :], mask=(ks < k)[None, :], other=0.0)
            v = tl.load(v_rows[:, None] + ks[None, :], mask=(ks < k)[None, :], other=0.0)
            x = tl.load(x_rows[None, :] + ks[:, None], mask=(ks < k)[:, None], other=0.0)
        first = tl.dot(w, x, first, input_precision="ieee")
        second = tl.dot(v, x, second, input_precision="ieee")
    return first, second


@triton.jit(do_not_specialize=["m"])
def product(
    x,
    w,
    bias,
    out,
    partials,
    m,
    n,
    k,
    x_stride,
    part_size,
    PARTS: tl.constexpr,
    SPREAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
):
    """out [m, n] = x [m, k] times w [n, k] transposed, plus bias; or an activation of that.

    Grid: tiles, and with ``SPREAD`` parts as the second dimension, whose sums go to ``partials``.
    With ``GATED`` w is [2n, k], and PARTS is 1. ``EVEN``: k is a multiple of ``BLOCK_K``.
    """
    tile_n, tile_m = place_of(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.cdiv(m, BLOCK_M), GROUP)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    # what is beyond the edge repeats other rows and is not stored: no masks while loading
    x_rows = x + (rows % m).to(tl.int64) * x_stride
    w_rows = w + (columns % n).to(tl.int64) * k
    if GATED:
        v_rows = w_rows + n.to(tl.int64) * k
        first, second = sum_of_two(x_rows, w_rows, v_rows, k, BLOCK_N, BLOCK_M, BLOCK_K, EVEN)
        keep(out, first, second, bias, columns, rows, m, n, HAS_BIAS, ACTIVATION, GATED)
    else:
        part = tl.program_id(1)  # 0 where parts are not spread
        begin = part * part_size
        end = tl.minimum(begin + part_size, k)
        sums = sum_of(x_rows, w_rows, begin, end, k, BLOCK_N, BLOCK_M, BLOCK_K, EVEN)
        if SPREAD:
            keep_part(partials, sums, part, columns, rows, m, n)
        else:
            for later in range(1, PARTS):
                begin = later * part_size
                end = tl.minimum(begin + part_size, k)
                sums += sum_of(x_rows, w_rows, begin, end, k, BLOCK_N, BLOCK_M, BLOCK_K, EVEN)
            keep(out, sums, sums, bias, columns, rows, m, n, HAS_BIAS, ACTIVATION, GATED)


@triton.jit(do_not_specialize=["m"])
def finish(
    partials,
    bias,
    out,
    scales,
    m,
    n,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the parts' sums [PARTS, m, n] in their order, and finish them. Grid: (columns, rows)."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    inside = columns < n
    size = m.to(tl.int64) * n
    places = partials + row.to(tl.int64) * n + columns
    sums = tl.load(places, mask=inside, other=0.0)
    for part in range(1, PARTS):
        sums += tl.load(places + part * size, mask=inside, other=0.0)
    if SCALED:
        sums *= tl.load(scales + columns, mask=inside, other=0.0)
    sums = sums[:, None]
    keep(out, sums, sums, bias, columns, row + tl.arange(0, 1), m, n, HAS_BIAS, ACTIVATION, False)

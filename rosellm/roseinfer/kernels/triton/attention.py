"""Paged attention for any mix of prompts, chunks and single tokens in one launch.

A program takes a tile of ``ROWS`` query rows of one sequence that share a KV head: consecutive
positions, and for each all the heads of the group. It walks the KV cache in tiles of ``TILE``
positions with an online softmax (arXiv:1805.02867). ``TILES`` such tiles are a split: the softmax
starts anew at each multiple of so many positions, and what a split comes to is then merged into
what those before it have come to. A tile of few rows is divided among programs, one a split
(arXiv:2311.01282), and ``merge_kernel`` does the merging; a tile of a long chunk does all of it
in one program.

Why a row's bits depend on the row alone:

* There is one kernel with one tile shape for decoding and for prefill, so one sequence of matrix
  instructions, of which a row of a tile sees its own operands only.
* Splits and KV tiles begin at fixed positions, and are merged in their order, whoever does it. The
  arithmetic of merging is written once (``_merged``) and compiled without contracting products
  and sums into one rounding, so both kernels round alike.
* A KV tile or a split that a row cannot see leaves its state as it was: times exp2(0), plus zeros.

It does not know what wrote the cache, nor which backend shall be used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rosellm.roseinfer.attention.tiles import ITEM, MERGE

_ITEM = tl.constexpr(ITEM)
_MERGE = tl.constexpr(MERGE)
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _merged(maximum, total, output, new_maximum, new_total, new_output, widen: tl.constexpr):
    """The state of an online softmax with another one's, which comes later, taken in."""
    both = tl.maximum(maximum, new_maximum)
    safe = tl.maximum(both, _LOWEST)  # where nothing was seen yet, inf - inf would be no number
    old = tl.exp2(maximum - safe)
    new = tl.exp2(new_maximum - safe)
    total = total * old + new_total * new
    if widen:
        output = output * old[:, None] + new_output * new[:, None]
    else:
        output = output * old + new_output * new
    return both, total, output


@triton.jit
def _operand(x, like: tl.constexpr):
    """Stored numbers in the type that they are multiplied in; codes go through fp32."""
    if x.dtype == tl.int8:
        x = x.to(tl.float32)
    return x.to(like)


@triton.jit(do_not_specialize=["window", "table_width"])
def attention_kernel(
    q,
    out,
    keys,
    values,
    key_scales,
    value_scales,
    parts,
    states,
    items,
    tables,
    scale,
    softcap,
    window,
    table_width,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    VALUE_TYPE: tl.constexpr,
):
    """Grid: items, KV heads * GROUP_BLOCKS. q, out [T, KV_HEADS * GROUP, DIM]; ``scale`` and
    ``softcap`` are those of scores in powers of two."""
    item = items + tl.program_id(0) * _ITEM
    count = tl.load(item + 3)
    if count == 0:  # padding
        return
    sequence = tl.load(item)
    batch_row = tl.load(item + 1)
    position = tl.load(item + 2)
    end = tl.load(item + 4)
    first_split = tl.load(item + 5)
    last_split = tl.load(item + 6)
    part = tl.load(item + 7)

    in_group: tl.constexpr = (GROUP + GROUP_BLOCKS - 1) // GROUP_BLOCKS
    kv_head = tl.program_id(1) // GROUP_BLOCKS
    row = tl.arange(0, ROWS)
    token = row // in_group
    of_group = (tl.program_id(1) % GROUP_BLOCKS) * in_group + row % in_group
    used = (token < count) & (of_group < GROUP)
    head = kv_head * GROUP + of_group
    dim = tl.arange(0, DIM_PADDED)
    real = dim < DIM

    place = ((batch_row + token).to(tl.int64) * (KV_HEADS * GROUP) + head)[:, None] * DIM
    place += dim[None, :]
    stored = used[:, None] & real[None, :]
    query = tl.load(q + place, mask=stored, other=0.0)

    own = position + token
    if CAUSAL:
        limit = own + 1
        reach = tl.minimum(position + count, end)
    else:
        limit = own * 0 + end
        reach = end
    table = tables + sequence.to(tl.int64) * table_width

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, DIM_PADDED], tl.float32)
    for split in range(first_split, last_split):
        first = split * TILES
        last = tl.minimum(first + TILES, (reach + TILE - 1) // TILE)
        if WINDOW:
            first = tl.maximum(first, tl.maximum(position - window + 1, 0) // TILE)
        m = tl.full([ROWS], float("-inf"), tl.float32)
        s = tl.zeros([ROWS], tl.float32)
        o = tl.zeros([ROWS, DIM_PADDED], tl.float32)
        for tile in range(first, last):
            kv = tile * TILE + tl.arange(0, TILE)
            inside = kv < reach
            block = tl.load(table + kv // BLOCK_SIZE, mask=inside, other=0)
            slot = block.to(tl.int64) * BLOCK_SIZE + kv % BLOCK_SIZE
            at = slot * KV_HEADS + kv_head
            k = tl.load(
                keys + at[None, :] * DIM + dim[:, None],
                mask=real[:, None] & inside[None, :],
                other=0.0,
            )
            scores = tl.dot(query, _operand(k, query.dtype), input_precision="ieee") * scale
            if key_scales is not None:
                scores *= tl.load(key_scales + at, mask=inside, other=0.0)[None, :]
            if SOFTCAP:  # softcap * tanh(scores / softcap), which 1 - 2 / (e^2x + 1) is
                grown = tl.exp2(scores * (2.0 / softcap))
                scores = (1.0 - 2.0 / (grown + 1.0)) * (softcap * 1.4426950408889634)
            seen = kv[None, :] < limit[:, None]
            if WINDOW:
                seen = seen & (kv[None, :] > own[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(m, tl.max(scores, 1))
            safe = tl.maximum(higher, _LOWEST)
            weights = tl.exp2(scores - safe[:, None])
            decay = tl.exp2(m - safe)
            s = s * decay + tl.sum(weights, 1)
            if value_scales is not None:
                weights *= tl.load(value_scales + at, mask=inside, other=0.0)[None, :]
                weights = tl.where(seen, weights, 0.0)
            v = tl.load(
                values + at[:, None] * DIM + dim[None, :],
                mask=inside[:, None] & real[None, :],
                other=0.0,
            )
            o = o * decay[:, None]
            o = tl.dot(weights.to(VALUE_TYPE), _operand(v, VALUE_TYPE), o, input_precision="ieee")
            m = higher
        maximum, total, output = _merged(maximum, total, output, m, s, o, True)

    if part < 0:
        inverse = 1.0 / total
        result = output * inverse[:, None]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=stored)
    else:
        where = (part + token).to(tl.int64) * (KV_HEADS * GROUP) + head
        tl.store(parts + where[:, None] * DIM + dim[None, :], output, mask=stored)
        tl.store(states + where * 2, maximum, mask=used)
        tl.store(states + where * 2 + 1, total, mask=used)


@triton.jit
def merge_kernel(
    parts,
    states,
    out,
    merges,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
):
    """Grid: rows to merge, heads. Splits in the order of their positions."""
    merge = merges + tl.program_id(0) * _MERGE
    count = tl.load(merge + 3)
    if count == 0:  # padding
        return
    batch_row = tl.load(merge)
    first = tl.load(merge + 1)
    distance = tl.load(merge + 2)
    head = tl.program_id(1)
    dim = tl.arange(0, DIM_PADDED)
    real = dim < DIM
    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    output = tl.zeros([DIM_PADDED], tl.float32)
    for index in range(count):
        where = (first + index * distance).to(tl.int64) * HEADS + head
        o = tl.load(parts + where * DIM + dim, mask=real, other=0.0)
        m = tl.load(states + where * 2 + tl.arange(0, 1))
        s = tl.load(states + where * 2 + 1 + tl.arange(0, 1))
        maximum, total, output = _merged(maximum, total, output, m, s, o, False)
    inverse = 1.0 / total
    result = (output * inverse).to(out.dtype.element_ty)
    tl.store(out + (batch_row.to(tl.int64) * HEADS + head) * DIM + dim, result, mask=real)

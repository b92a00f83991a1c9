"""From a fused projection to queries, and to keys and values in the cache, in one pass.

A program takes some heads of one token: it normalises queries and keys (RMS, each head by
itself), rotates them, writes queries out and keys and values to their slot, in the cache's type.
Rounding to the rows' type between the steps is the reference's.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads
from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.triton.launch import EXACT, launch

_HEADS = 4
"""In one program."""

_ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2^23: added and taken away again, it rounds to whole numbers, halves to even."""


@triton.jit
def _gained(x, at, scale, q_weight, k_weight, is_q, is_k):
    """Heads x times their scale and the weight at ``at``, rounded to the weight's user's type."""
    gain = tl.load(q_weight + at, mask=is_q, other=0.0).to(tl.float32)
    gain += tl.load(k_weight + at, mask=is_k, other=0.0).to(tl.float32)
    return tl.where(is_q | is_k, x * scale[:, None] * gain, x)


@triton.jit
def _stored(cache, scales, at, slot_heads, x, mask, head_mask):
    """Heads x [heads, dim] into the cache, as codes where it has scales."""
    if scales is None:
        tl.store(cache + at, x.to(cache.dtype.element_ty), mask=mask)
    else:
        largest = tl.max(tl.abs(x), 1)
        none = tl.max((x != x).to(tl.int32), 1) > 0
        largest = tl.where(none, float("nan"), largest)
        is_float: tl.constexpr = cache.dtype.element_ty != tl.int8
        most: tl.constexpr = 448.0 if is_float else 127.0
        scale = tl.div_rn(largest, tl.full(largest.shape, most, tl.float32))
        one = tl.full(largest.shape, 1.0, tl.float32)
        normal = scale >= 1.1754943508222875e-38
        inverse = tl.where(normal, tl.div_rn(one, tl.where(normal, scale, 1.0)), 0.0)
        product = x * inverse[:, None]
        product = tl.where(product == product, product, 0.0)
        if is_float:
            code = tl.minimum(tl.maximum(product, -most), most)
        else:
            code = (product + _ROUNDER) - _ROUNDER
        tl.store(cache + at, code.to(cache.dtype.element_ty), mask=mask)
        tl.store(scales + slot_heads, scale, mask=head_mask)


@triton.jit
def heads_kernel(
    qkv,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    q_weight,
    k_weight,
    cos,
    sin,
    stride,
    eps,
    Q: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Grid: tokens, all heads by HEADS. qkv: rows ``stride`` apart; q [T, Q * DIM]; cos, sin
    [T, HALF]. A token whose slot is negative is not written to the cache."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dim = tl.arange(0, DIM_PADDED)
    real = (head < Q + 2 * KV)[:, None] & (dim < DIM)[None, :]
    is_q = (head < Q)[:, None] & real
    is_k = ((head >= Q) & (head < Q + KV))[:, None] & real
    source = qkv + token * stride + head[:, None] * DIM
    raw = tl.load(source + dim[None, :], mask=real, other=0.0)
    x = raw.to(tl.float32)
    scale = tl.full([HEADS], 1.0, tl.float32)
    if q_weight is not None:
        scale = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)
        at = dim[None, :] + head[:, None] * 0
        x = _gained(x, at, scale, q_weight, k_weight, is_q, is_k).to(raw.dtype).to(tl.float32)
    if cos is not None:
        turned = dim < 2 * HALF
        other = tl.where(turned, tl.where(dim < HALF, dim + HALF, dim - HALF), dim)
        y = tl.load(source + other[None, :], mask=real, other=0.0).to(tl.float32)
        if q_weight is not None:
            at = other[None, :] + head[:, None] * 0
            y = _gained(y, at, scale, q_weight, k_weight, is_q, is_k).to(raw.dtype).to(tl.float32)
        angle = token * HALF + tl.where(dim < HALF, dim, dim - HALF)
        c = tl.load(cos + angle, mask=turned, other=1.0)
        s = tl.load(sin + angle, mask=turned, other=0.0)
        s = tl.where(dim < HALF, -s, s)
        rotated = (x * c[None, :] + y * s[None, :]).to(raw.dtype).to(tl.float32)
        x = tl.where((is_q | is_k) & turned[None, :], rotated, x)
    tl.store(
        q + token * (Q * DIM) + head[:, None] * DIM + dim[None, :],
        x.to(q.dtype.element_ty),
        mask=is_q,
    )

    slot = tl.load(slots + token)
    owned = (slot + head * 0) >= 0
    k_head = (slot * KV + head - Q).to(tl.int64)
    own_k = (head >= Q) & (head < Q + KV) & owned
    place = k_head[:, None] * DIM + dim[None, :]
    _stored(keys, key_scales, place, k_head, x, own_k[:, None] & real, own_k)
    v_head = (slot * KV + head - Q - KV).to(tl.int64)
    own_v = (head >= Q + KV) & (head < Q + 2 * KV) & owned
    place = v_head[:, None] * DIM + dim[None, :]
    _stored(values, value_scales, place, v_head, x, own_v[:, None] & real, own_v)


def to_cache(
    qkv: Tensor,
    heads: Heads,
    norms: HeadNorms | None,
    angles: tuple[Tensor, Tensor] | None,
    cache: tuple[KVTensor, KVTensor],
    slots: Tensor,
) -> Tensor:
    """Store the keys and values of rows [T, (heads + 2 * kv heads) * D]; queries [T, heads, D].

    Args:
        norms: each as wide as one head.
        angles: cos and sin, each [T, R / 2] in fp32.
    """
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    keys, values = cache
    q = qkv.new_empty(len(qkv), heads.heads, heads.head_dim)
    cos, sin = angles if angles is not None else (None, None)
    padded = triton.next_power_of_2(heads.head_dim)
    launch(
        heads_kernel,
        (len(qkv), -(-(heads.heads + 2 * heads.kv_heads) // _HEADS)),
        *(qkv, q, keys.data, values.data, keys.scales, values.scales, slots),
        *((None, None) if norms is None else (norms.q, norms.k)),
        *(cos, sin, qkv.stride(0), 0.0 if norms is None else norms.eps),
        Q=heads.heads,
        KV=heads.kv_heads,
        DIM=heads.head_dim,
        DIM_PADDED=padded,
        HALF=0 if cos is None else cos.shape[1],
        HEADS=_HEADS,
        num_warps=1 if padded <= 64 else 4,
        **EXACT,
    )
    return q

"""Operations on each row alone: norms, activations, lookups.

A norm has a program for each row, which holds all of it; the order of its sums depends on the
width only. The others are elementwise.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.triton.launch import EXACT, launch
from rosellm.roseinfer.kernels.triton.matmul import activated

_COLUMNS = 1024
"""In one program of an elementwise kernel."""


@triton.jit
def norm_kernel(
    x,
    added,
    total,
    out,
    weight,
    bias,
    x_stride,
    width,
    eps,
    WIDTH_PADDED: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """Grid: rows. Normalise x, or x + added, which is stored as ``total``; all but x are
    contiguous."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH_PADDED)
    real = column < width
    wide = tl.load(x + row * x_stride + column, mask=real, other=0.0).to(tl.float32)
    if added is not None:
        wide += tl.load(added + row * width + column, mask=real, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=real)
        wide = rounded.to(tl.float32)
    if CENTRED:
        mean = tl.sum(wide, 0) / width
        wide = tl.where(real, wide - mean, 0.0)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    gain = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    result = wide * scale * gain
    if bias is not None:
        result += tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def activation_kernel(x, out, width, KIND: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid: rows, columns of ``out`` [T, width] by COLUMNS; contiguous."""
    gated: tl.constexpr = KIND == "silu_mul" or KIND == "gelu_tanh_mul"
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    at = x + row * (2 * width if gated else width) + column
    wide = tl.load(at, mask=real, other=0.0).to(tl.float32)
    second = wide
    if gated:
        second = tl.load(at + width, mask=real, other=0.0).to(tl.float32)
    result = activated(wide, second, KIND)
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def lookup_kernel(ids, table, out, stride, width, COLUMNS: tl.constexpr):
    """Grid: ids, columns by COLUMNS. Rows of ``table``, ``stride`` apart: out [T, width]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    source = tl.load(ids + row).to(tl.int64) * stride
    tl.store(out + row * width + column, tl.load(table + source + column, mask=real), mask=real)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, None, weight, None, eps, centred=False)[1]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _norm(x, None, weight, bias, eps, centred=True)[1]


def sum_norm(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x + added, rounded to their type, and the norm of that: a layer norm if there is a bias."""
    return _norm(x, added.contiguous(), weight, bias, eps, centred=bias is not None)


def _norm(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    rows = x.flatten(0, -2)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    width = rows.shape[1]
    out = rows.new_empty(rows.shape)
    total = out if added is None else torch.empty_like(out)
    padded = triton.next_power_of_2(width)
    launch(
        norm_kernel,
        (len(rows),),
        *(rows, added, total, out, weight, bias, rows.stride(0), width, eps),
        WIDTH_PADDED=padded,
        CENTRED=centred,
        num_warps=min(max(padded // 512, 1), 16),
        **EXACT,
    )
    return total.view(x.shape), out.view(x.shape)


def activate(x: Tensor, kind: Activation) -> Tensor:
    """The activation of rows [T, F], or [T, 2F] of one of two inputs: [T, F]."""
    x = x.contiguous()
    width = x.shape[1] // 2 if kind.endswith("_mul") else x.shape[1]
    out = x.new_empty(len(x), width)
    options: dict[str, Any] = {"KIND": kind, "COLUMNS": _COLUMNS, **EXACT}
    launch(activation_kernel, (len(x), -(-width // _COLUMNS)), x, out, width, **options)
    return out


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table [n, width]: [T, width]."""
    width = table.shape[1]
    out = table.new_empty(len(ids), width)
    grid = (len(ids), -(-width // _COLUMNS))
    launch(lookup_kernel, grid, ids, table, out, table.stride(0), width, COLUMNS=_COLUMNS)
    return out

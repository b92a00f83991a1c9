"""Triton's interpreter for tests without a card: import this before any kernel.

Its own products are BLAS's, which sum as they like, and not of bf16; here a product is one chain
over K, as on tensor cores, so that bits can be compared. And it cuts what does not fit into bf16
off, where a card rounds to nearest.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
# Triton decides when a function is defined, its own ones too: so it is imported anew.
for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
    if not name.startswith("triton._C"):
        del sys.modules[name]
os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

del os.environ["TRITON_INTERPRET"]
triton.knobs.runtime.interpret = True


def _wide(handle: Any) -> np.ndarray:
    data = handle.data
    if handle.dtype.scalar.is_bf16():
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)


def _dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    left, right = _wide(a), _wide(b)
    sums = np.array(d.data, dtype=np.float32)
    for k in range(left.shape[1]):
        sums += left[:, k, None] * right[None, k, :]
    return interpreter.TensorHandle(sums, d.dtype.scalar)


def _rounded(data: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    nearest = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), nearest)


def _cast(
    self: Any, source: Any, target: Any, _cast: Any = interpreter.InterpreterBuilder.cast_impl
) -> Any:
    if source.dtype.scalar.is_fp32() and target.scalar.is_bf16():
        return interpreter.TensorHandle(_rounded(source.data), target.scalar)
    return _cast(self, source, target)


interpreter.InterpreterBuilder.create_dot = _dot
interpreter.InterpreterBuilder.cast_impl = _cast

"""The structs that cross the C ABI; ``kernels.h`` says what they mean.

Fields named as pointers hold addresses: who fills a struct keeps alive what it points to.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rosellm.roseinfer.cache.storage import KVTensor

KV_TYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3}
"""A cache's type, by the name that torch has for it."""

MAX_HEAD_DIM = 256


class Activations(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("stride", c_int64),
        ("count", c_int64),
        ("width", c_int64),
    )

    @classmethod
    def of(cls, rows: Tensor) -> Activations:
        """fp32 rows [T, width], each contiguous."""
        return cls(rows.data_ptr(), rows.stride(0), *rows.shape)


class Logits(Structure):
    _fields_ = (("values", Activations), ("tops", c_void_p), ("sound", c_void_p))


class Sequences(Structure):
    _fields_ = (
        ("count", c_int64),
        ("rows", c_void_p),
        ("positions", c_void_p),
        ("tables", c_void_p),
        ("begins", c_void_p),
        ("block_size", c_int32),
        ("causal", c_int32),
        ("window", c_int64),
    )


class KvCache(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("type", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
    )

    @classmethod
    def of(cls, keys: KVTensor, values: KVTensor) -> KvCache:
        """A layer's cache."""
        _, kv_heads, dim = keys.data.shape
        pointers = keys.data, values.data, keys.scales, values.scales
        addresses = (None if part is None else part.data_ptr() for part in pointers)
        kind = KV_TYPES[str(keys.data.dtype).removeprefix("torch.")]
        return cls(*addresses, kind, kv_heads, dim)


class QkvToCache(Structure):
    _fields_ = (
        ("qkv", Activations),
        ("q", Activations),
        ("heads", c_int64),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("q_norm_width", c_int32),
        ("k_norm_width", c_int32),
        ("eps", c_float),
        ("rotary", c_int32),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
    )


class Attention(Structure):
    _fields_ = (
        ("q", Activations),
        ("out", Activations),
        ("heads", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


class Matrix(Structure):
    _fields_ = (
        ("format", c_int32),
        ("group", c_int32),
        ("gated", c_int32),
        ("reserved", c_int32),
        ("n", c_int64),
        ("k", c_int64),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class Rows(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("stride", c_int64),
        ("count", c_int64),
        ("index", c_void_p),
    )


class Plain(Structure):
    _fields_ = (
        ("format", c_int32),
        ("reserved", c_int32),
        ("data", c_void_p),
        ("stride", c_int64),
    )


class Codes(Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("steps", c_void_p),
        ("offsets", c_void_p),
    )


class Sampling(Structure):
    _fields_ = (
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("reserved", c_int32),
        ("top_k", c_int64),
        ("seed", c_int64),
        ("choice", c_int64),
        ("position", c_int64),
    )


class Allowed(Structure):
    _fields_ = (("bits", c_void_p), ("stride", c_int64))


class Likeliest(Structure):
    _fields_ = (("width", c_int64), ("ids", c_void_p), ("values", c_void_p))


class Searched(Structure):
    _fields_ = (
        ("n", c_int64),
        ("k", c_int64),
        ("group", c_int64),
        ("scales", c_void_p),
        ("steps", c_void_p),
        ("offsets", c_void_p),
        ("codes", c_void_p),
    )

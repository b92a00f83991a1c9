"""The operations of ``table.Ops`` on the native kernels.

Activations are fp32 whatever the weights are. Given ``trace.Rows`` instead of tensors, an operation
writes itself down to be run as part of a program; that is how a step usually runs. Given tensors it
runs at once, for what cannot be traced: encoders, mixtures of experts, logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import byref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.cpu.matrix import Codes, Finish, Format, Matrix, Shape
from rosellm.roseinfer.kernels.cpu.packing import Packing, shape_of
from rosellm.roseinfer.kernels.cpu.program import Program
from rosellm.roseinfer.kernels.forward import Forward
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.trace import (
    Attend,
    Ids,
    Lookup,
    Norm,
    Rows,
    UntraceableError,
    listed,
    traced,
)
from rosellm.roseinfer.layers.rope import RopeSpec, RopeTable
from rosellm.roseinfer.quant.formats import Format as QuantizedFormat
from rosellm.roseinfer.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from rosellm.roseinfer.models.skeleton import Model

FORMATS: dict[torch.dtype, Format] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}

_ROWS = 4096

Size = tuple[int, int]


@dataclass(frozen=True)
class Weight:
    """A packed weight, and what becomes of a product with it."""

    matrix: Matrix
    finish: Finish


class NativeOps:
    """See ``table.Ops``, whose signatures these are."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._c = library.c
        self._packing = Packing(library)

    def pack_linear(
        self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None
    ) -> Weight:
        n, k = weight.shape
        shape = Shape(FORMATS[weight.dtype], n, k, gated=_is_gated(activation))
        wide = None if bias is None else bias.float()
        return Weight(Matrix.of(self._library, shape, weight, wide), activation or "store")

    def pack_quantized(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        activation: Activation | None,
        _dtype: torch.dtype,
    ) -> Weight:
        wide = None if bias is None else bias.float()
        shape = shape_of(weight.format, *weight.shape, _is_gated(activation))
        matrix = Matrix.empty(self._library, shape, wide)
        for first in range(0, weight.shape[0], _ROWS):  # so that few codes are spread at a time
            rows = weight.rows(slice(first, first + _ROWS))
            codes = Codes(rows.codes(), rows.scales.float(), rows.steps, rows.offsets)
            matrix.pack_codes(codes, first)
        return Weight(matrix, activation or "store")

    def held_bytes(
        self,
        shape: Size,
        dtype: torch.dtype,
        form: QuantizedFormat | None,
        activation: Activation | None,
    ) -> int:
        if form is not None:
            return self.packed_bytes(form, shape, activation)
        plain = Shape(FORMATS[dtype], *shape, gated=_is_gated(activation))
        return self._packing.num_bytes(plain)

    def packed_bytes(
        self, form: QuantizedFormat, shape: Size, activation: Activation | None
    ) -> int:
        return self._packing.num_bytes(shape_of(form, *shape, _is_gated(activation)))

    def packed_data(self, weight: Weight) -> Tensor:
        return weight.matrix.data

    def from_packed(
        self,
        data: Tensor,
        form: QuantizedFormat,
        shape: Size,
        bias: Tensor | None,
        activation: Activation | None,
    ) -> Weight:
        matrix = self._packing.of(data, shape_of(form, *shape, _is_gated(activation)), bias)
        return Weight(matrix, activation or "store")

    def layout(self) -> str:
        return self._packing.layout

    def linear(self, x: Any, weight: Weight) -> Any:
        if isinstance(x, Rows):
            return x.trace.add("linear", weight.matrix.columns, (x,), weight)
        return weight.matrix.linear(_fp32(x), weight.finish)

    def logits(self, x: Tensor, weight: Weight) -> Logits:
        return weight.matrix.logits(_fp32(x))

    def embedding(self, ids: Any, weight: Weight) -> Any:
        if isinstance(ids, Ids):
            what = Lookup(weight.matrix, ids.source)
            return ids.trace.add("lookup", weight.matrix.shape.k, (), what)
        return weight.matrix.lookup(ids)

    def rms_norm(self, x: Any, weight: Tensor, eps: float) -> Any:
        if isinstance(x, Rows):
            return x.trace.add("norm", x.width, (x,), Norm(weight, None, eps))
        wide = weight.float()
        call: Callable[..., None] = self._c.rose_rms_norm
        return _each_row(x, lambda rows, out: call(rows, out, wide.data_ptr(), eps, None))

    def layer_norm(self, x: Any, weight: Tensor, bias: Tensor, eps: float) -> Any:
        if isinstance(x, Rows):
            return x.trace.add("norm", x.width, (x,), Norm(weight, bias, eps))
        parts = weight.float(), bias.float()
        addresses = [part.data_ptr() for part in parts]
        call: Callable[..., None] = self._c.rose_layer_norm
        return _each_row(x, lambda rows, out: call(rows, out, *addresses, eps))

    def attend(self, qkv: Any, heads: Heads, norms: HeadNorms | None, step: Step) -> Any:
        width = heads.heads * heads.head_dim
        if isinstance(qkv, Rows):
            return qkv.trace.add("attend", width, (qkv,), Attend(heads, norms))
        return self._attend_at_once(qkv, heads, norms, step)

    def route(self, scores: Any, count: int, normalise: bool) -> tuple[Tensor, Tensor]:
        if isinstance(scores, Rows):
            raise UntraceableError
        return reference.route(scores, count, normalise)

    def forward(
        self, model: Model, storage: KVStorage, ropes: Mapping[RopeSpec, RopeTable]
    ) -> Forward:
        """The model as a program, or as it is where it cannot be traced."""
        found = traced(model)
        if found is None:
            return Forward(model)
        head = None if model.plain_head is None else model.plain_head.packed.matrix
        program = Program(self._library, listed(*found), storage, ropes.items(), head)
        return Forward(program, None if head is None else program.sampled)

    def _attend_at_once(
        self, qkv: Tensor, heads: Heads, norms: HeadNorms | None, step: Step
    ) -> Tensor:
        qkv = _fp32(qkv)
        width = heads.heads * heads.head_dim
        q, out = qkv[:, :width], qkv.new_empty(len(qkv), width)
        keys, values = step.storage.layer(heads.layer)
        cache = structs.KvCache.of(keys, values)
        slots = step.backend.slots(step.metas[heads.group])
        split = structs.QkvToCache(
            qkv=structs.Activations.of(qkv),
            q=structs.Activations.of(q),
            heads=heads.heads,
            slots=slots.data_ptr(),
        )
        kept: list[Tensor] = [slots]
        if heads.rope is not None:
            cos, sin = step.ropes[heads.rope]
            split.rotary, split.cos, split.sin = heads.rope.dim, cos.data_ptr(), sin.data_ptr()
        if norms is not None:
            weights = [part.float().contiguous() for part in (norms.q, norms.k)]
            split.q_norm, split.k_norm = (part.data_ptr() for part in weights)
            split.q_norm_width, split.k_norm_width = map(len, weights)
            split.eps = norms.eps
            kept += weights
        self._c.rose_qkv_to_cache(byref(split), byref(cache))
        attention = structs.Attention(
            structs.Activations.of(q),
            structs.Activations.of(out),
            heads.heads,
            heads.scale,
            heads.softcap or 0.0,
        )
        meta: Any = step.metas[heads.group]
        self._c.rose_attention(byref(attention), byref(meta.sequences), byref(cache))
        return out


def _is_gated(activation: Activation | None) -> bool:
    return activation is not None and activation.endswith("_mul")


def _fp32(x: Tensor) -> Tensor:
    """Rows in fp32, each of them contiguous."""
    wide = x.float()
    return wide if wide.stride(-1) == 1 else wide.contiguous()


def _each_row(x: Tensor, call: Callable[[Any, Any], None]) -> Tensor:
    rows = _fp32(x).flatten(0, -2)
    out = torch.empty_like(rows)
    call(byref(structs.Activations.of(rows)), byref(structs.Activations.of(out)))
    return out.view(x.shape)

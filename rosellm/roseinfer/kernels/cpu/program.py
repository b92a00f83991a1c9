"""A traced model as the kernels run it: operations, their weights, and what a step brings along.

One call of ``Program`` is one native call, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ctypes import Array, Structure, addressof, byref, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Step
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library, address
from rosellm.roseinfer.kernels.cpu.matrix import FINISHES, Matrix
from rosellm.roseinfer.kernels.trace import Attend, Listing, Lookup, Norm, Operation
from rosellm.roseinfer.layers.rope import RopeSpec, RopeTable

OPS = ("lookup", "rms_norm", "layer_norm", "linear", "attend", "sum", "scale")


class CLayer(Structure):
    _fields_ = (
        ("cache", structs.KvCache),
        ("heads", c_int64),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("q_norm_width", c_int32),
        ("k_norm_width", c_int32),
        ("eps", c_float),
        ("scale", c_float),
        ("softcap", c_float),
        ("group", c_int32),
        ("rope", c_int32),
        ("rotary", c_int32),
    )


class COperation(Structure):
    _fields_ = (
        ("op", c_int32),
        ("target", c_int32),
        ("source", c_int32),
        ("other", c_int32),
        ("finish", c_int32),
        ("number", c_float),
        ("matrix", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("layer", c_void_p),
    )


class CProgram(Structure):
    _fields_ = (
        ("count", c_int64),
        ("operations", c_void_p),
        ("buffers", c_int64),
        ("widths", c_void_p),
    )


class CGroup(Structure):
    _fields_ = (("sequences", structs.Sequences), ("slots", c_void_p))


class CRope(Structure):
    _fields_ = (("cos", c_void_p), ("sin", c_void_p))


class CStep(Structure):
    _fields_ = (
        ("count", c_int64),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("groups", c_void_p),
        ("ropes", c_void_p),
        ("out", c_void_p),
        ("nanoseconds", c_void_p),
    )


class CTail(Structure):
    _fields_ = (
        ("head", c_void_p),
        ("rows", c_void_p),
        ("logits", structs.Logits),
        ("wanted", c_void_p),
        ("tokens", c_void_p),
    )


class Program:
    """A model's forward, ready to run: token ids [T] and a step to hidden states [T, width].

    Args:
        listing: what the model does, and in which buffers.
        storage: keys and values of all layers.
        ropes: every rotary embedding that the model uses.
        head: the product that logits are, if ``sampled`` is to be called.
    """

    def __init__(
        self,
        library: Library,
        listing: Listing,
        storage: KVStorage,
        ropes: Iterable[tuple[RopeSpec, RopeTable]],
        head: Matrix | None = None,
    ) -> None:
        self._run = library.c.rose_run
        self._width = listing.widths[-1]
        self._head = head
        self._kept: list[Any] = []
        pairs = dict(ropes)
        self._ropes = self._array(CRope, [self._rope(table) for table in pairs.values()])
        self._numbers = {spec: number for number, spec in enumerate(pairs)}
        self._listing = listing
        self._times: Array[c_int64] | None = None
        operations = [self._operation(each, storage) for each in listing.operations]
        made = self._array(COperation, operations)
        widths = self._array(c_int64, listing.widths)
        self._program = CProgram(
            len(operations), addressof(made), len(listing.widths), addressof(widths)
        )

    def __call__(self, ids: Tensor, step: Step) -> Tensor:
        return self._run_with(ids, step, None)

    def sampled(
        self, ids: Tensor, step: Step, rows: Tensor | None, wanted: Array[structs.Sampling]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Forward``: all of a step in one native call."""
        assert self._head is not None
        (*kept, finite), target = self._head.room_for_logits(len(wanted))
        tokens = torch.empty(len(wanted), dtype=torch.int64)
        tail = CTail(
            addressof(self._head.struct),
            address(rows),
            target,
            addressof(wanted),
            tokens.data_ptr(),
        )
        hidden = self._run_with(ids, step, tail)
        del kept  # which were read until here
        return hidden, tokens, finite

    def _run_with(self, ids: Tensor, step: Step, tail: CTail | None) -> Tensor:
        groups = [CGroup(meta.sequences, meta.slots.buffer_info()[0]) for meta in step.metas]
        out = torch.empty(len(ids), self._width)
        kept = (CGroup * len(groups))(*groups)
        c_step = CStep(
            len(ids),
            ids.data_ptr(),
            step.positions.data_ptr(),
            addressof(kept),
            addressof(self._ropes),
            out.data_ptr(),
            addressof(self._times) if self._times else None,
        )
        self._run(byref(self._program), byref(c_step), None if tail is None else byref(tail))
        return out

    def time_operations(self) -> None:
        """Measure from now on what each operation takes; for benchmarks."""
        self._times = (c_int64 * (len(self._listing.operations) + 2))()

    def times(self) -> dict[str, float]:
        """Seconds since then, by kind of operation; products by their matrix [N, K]."""
        names = [_name(operation) for operation in self._listing.operations]
        names += ["head", "drawing"]
        found = dict.fromkeys(names, 0.0)
        for name, time in zip(names, self._times or (), strict=True):
            found[name] += time / 1e9
        return found

    def _array(self, kind: Any, values: Sequence[Any]) -> Array[Any]:
        made: Array[Any] = (kind * len(values))(*values)
        self._kept.append(made)
        return made

    def _rope(self, table: RopeTable) -> CRope:
        self._kept.append(table)
        return CRope(table.cos.data_ptr(), table.sin.data_ptr())

    def _operation(self, operation: Operation, storage: KVStorage) -> COperation:
        self._kept.append(operation.what)
        made = COperation(target=operation.target)
        made.source, made.other = (*operation.sources, 0, 0)[:2]
        fill: Callable[[COperation, Operation, KVStorage], str] = getattr(self, f"_{operation.op}")
        made.op = OPS.index(fill(made, operation, storage))
        return made

    def _lookup(self, made: COperation, operation: Operation, _storage: KVStorage) -> str:
        lookup: Lookup = operation.what
        made.source = ("ids", "positions").index(lookup.source)
        made.matrix = addressof(lookup.table.struct)
        return "lookup"

    def _norm(self, made: COperation, operation: Operation, _storage: KVStorage) -> str:
        norm: Norm = operation.what
        made.weight, made.bias = self._fp32(norm.weight), self._fp32(norm.bias)
        made.number = norm.eps
        return "rms_norm" if norm.bias is None else "layer_norm"

    def _linear(self, made: COperation, operation: Operation, _storage: KVStorage) -> str:
        weight = operation.what
        made.matrix = addressof(weight.matrix.struct)
        made.finish = FINISHES["add" if operation.adds else weight.finish]
        return "linear"

    def _attend(self, made: COperation, operation: Operation, storage: KVStorage) -> str:
        attend: Attend = operation.what
        heads = attend.heads
        layer = CLayer(
            cache=structs.KvCache.of(*storage.layer(heads.layer)),
            heads=heads.heads,
            scale=heads.scale,
            softcap=heads.softcap or 0.0,
            group=heads.group,
            rope=-1 if heads.rope is None else self._numbers[heads.rope],
            rotary=0 if heads.rope is None else heads.rope.dim,
        )
        if attend.norms is not None:
            self._set_norms(layer, attend.norms)
        self._kept.append(layer)
        made.layer = addressof(layer)
        return "attend"

    def _set_norms(self, layer: CLayer, norms: HeadNorms) -> None:
        layer.q_norm, layer.k_norm = self._fp32(norms.q), self._fp32(norms.k)
        layer.q_norm_width, layer.k_norm_width = len(norms.q), len(norms.k)
        layer.eps = norms.eps

    def _sum(self, _made: COperation, _operation: Operation, _storage: KVStorage) -> str:
        return "sum"

    def _scale(self, made: COperation, operation: Operation, _storage: KVStorage) -> str:
        made.number = operation.what
        return "scale"

    def _fp32(self, weight: Tensor | None) -> int | None:
        """Address of a small weight in fp32; a norm's are."""
        if weight is None:
            return None
        wide = weight.float().contiguous()
        self._kept.append(wide)
        return address(wide)


def _name(operation: Operation) -> str:
    if operation.op != "linear":
        return operation.op
    shape = operation.what.matrix.shape
    return f"linear {shape.n} x {shape.k}"

"""The operations of ``table.Ops`` in Triton, but for the products, which are handed in.

Given ``trace.Rows`` instead of tensors, an operation writes itself down to be run as part of a
program, which fuses a sum with the norm that follows it; widths are left out, since tensors will
know theirs. Given tensors it runs at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.forward import Forward
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.trace import (
    Attend,
    Ids,
    Lookup,
    Norm,
    Rows,
    UntraceableError,
    traced,
)
from rosellm.roseinfer.kernels.triton import heads as head_kernels
from rosellm.roseinfer.kernels.triton import rows
from rosellm.roseinfer.kernels.triton.products import Products
from rosellm.roseinfer.kernels.triton.program import Program
from rosellm.roseinfer.layers.rope import RopeSpec, RopeTable

if TYPE_CHECKING:
    from rosellm.roseinfer.models.skeleton import Model


class TritonOps:
    """See ``table.Ops``, whose signatures these are."""

    def __init__(self, products: Products) -> None:
        self._products = products

    def linear(self, x: Any, weight: Any) -> Any:
        if isinstance(x, Rows):
            return x.trace.add("linear", 0, (x,), weight)
        return self._products.linear(x, weight)

    def logits(self, x: Tensor, weight: Any) -> Logits:
        return Logits(self._products.linear(x, weight).float())

    def embedding(self, ids: Any, weight: Any) -> Any:
        if isinstance(ids, Ids):
            return ids.trace.add("lookup", 0, (), Lookup(weight, ids.source))
        return self._products.embedding(ids, weight)

    def rms_norm(self, x: Any, weight: Tensor, eps: float) -> Any:
        if isinstance(x, Rows):
            return x.trace.add("norm", 0, (x,), Norm(weight, None, eps))
        return rows.rms_norm(x, weight, eps)

    def layer_norm(self, x: Any, weight: Tensor, bias: Tensor, eps: float) -> Any:
        if isinstance(x, Rows):
            return x.trace.add("norm", 0, (x,), Norm(weight, bias, eps))
        return rows.layer_norm(x, weight, bias, eps)

    def attend(self, qkv: Any, heads: Heads, norms: HeadNorms | None, step: Step) -> Any:
        if isinstance(qkv, Rows):
            return qkv.trace.add("attend", 0, (qkv,), Attend(heads, norms))
        return attend(qkv, heads, norms, step)

    def route(self, scores: Any, count: int, normalise: bool) -> tuple[Tensor, Tensor]:
        if isinstance(scores, Rows):
            raise UntraceableError
        return reference.route(scores, count, normalise)

    def forward(
        self, model: Model, _storage: KVStorage, _ropes: Mapping[RopeSpec, RopeTable]
    ) -> Forward:
        """The model as a program, or as it is where it cannot be traced."""
        found = traced(model)
        if found is None:
            return Forward(model)
        trace, result = found
        return Forward(Program(trace.operations, result.number, self._products, attend))


def attend(qkv: Tensor, heads: Heads, norms: HeadNorms | None, step: Step) -> Tensor:
    """See ``attention.by_parts.attend``."""
    if norms is not None and not _by_head(norms, heads):
        qkv, norms = _normed(qkv, heads, norms), None
    meta, backend = step.metas[heads.group], step.backend
    angles = None if heads.rope is None else step.ropes[heads.rope]
    cache = step.storage.layer(heads.layer)
    q = head_kernels.to_cache(qkv, heads, norms, angles, cache, backend.slots(meta))
    return backend.run(q, *cache, heads.scale, meta, heads.softcap).flatten(1)


def _by_head(norms: HeadNorms, heads: Heads) -> bool:
    return len(norms.q) == len(norms.k) == heads.head_dim


def _normed(qkv: Tensor, heads: Heads, norms: HeadNorms) -> Tensor:
    """Queries and keys normalised over as much as the weights are wide."""
    widths = [count * heads.head_dim for count in (heads.heads, heads.kv_heads, heads.kv_heads)]
    q, k, v = qkv.split(widths, dim=1)
    parts = [
        rows.rms_norm(part.reshape(len(part), -1, len(weight)), weight, norms.eps).flatten(1)
        for part, weight in ((q, norms.q), (k, norms.k))
    ]
    return torch.cat([*parts, v], dim=1)

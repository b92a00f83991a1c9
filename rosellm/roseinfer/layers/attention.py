"""Self-attention as most decoders have it: fused projection, rope if any, paged KV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.linear import Linear
from rosellm.roseinfer.layers.norm import RMSNorm
from rosellm.roseinfer.layers.rope import RopeSpec


@dataclass(frozen=True)
class Step:
    """What the layers of one forward share. Passed explicitly; there is no global context.

    Attributes:
        positions: [T] position of each token.
        ropes: per rotary embedding in use, cos and sin of those positions.
        backend: how attention is computed.
        metas: per KV group, the backend's description of this step.
        storage: keys and values of all layers.
    """

    positions: Tensor
    ropes: Mapping[RopeSpec, tuple[Tensor, Tensor]]
    backend: AttentionBackend
    metas: tuple[Any, ...]
    storage: KVStorage


class Attention(nn.Module):
    """Multi-head attention with grouped KV heads (arXiv:2305.13245).

    Args:
        layer, group: which layer of which KV group this is.
        rope: rotary embedding, or None.
        bias, out_bias: whether the qkv and the output projection have one.
        scale: multiplies the scores; None is head_dim ** -0.5.
        softcap: bounds the scores, see ``AttentionBackend.run``.
        qk_norms: of queries and of keys before they are rotated, each as wide as one head or
            as all of them together.
    """

    def __init__(
        self,
        ops: Ops,
        *,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        layer: int,
        group: int,
        rope: RopeSpec | None,
        bias: bool,
        out_bias: bool,
        scale: float | None = None,
        softcap: float | None = None,
        qk_norms: tuple[RMSNorm, RMSNorm] | None = None,
    ) -> None:
        super().__init__()
        self._ops = ops
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim
        self._layer, self._group = layer, group
        self._rope = rope
        self._scale = head_dim**-0.5 if scale is None else scale
        self._softcap = softcap
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if qk_norms is not None:
            self.q_norm, self.k_norm = qk_norms
        q, kv = heads * head_dim, kv_heads * head_dim
        self.qkv = Linear(ops, hidden_size, {"q": q, "k": kv, "v": kv}, bias=bias)
        self.out = Linear(ops, q, {"out": hidden_size}, bias=out_bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        heads = [self._heads, self._kv_heads, self._kv_heads]
        qkv = self.qkv(x).unflatten(-1, (sum(heads), self._head_dim))
        q, k, v = qkv.split(heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = _normed(q, self.q_norm), _normed(k, self.k_norm)
        if self._rope is not None:
            q, k = (self._ops.rope(part, *step.ropes[self._rope]) for part in (q, k))
        meta = step.metas[self._group]
        keys, values = step.storage.layer(self._layer)
        slots = step.backend.slots(meta)
        self._ops.write_kv(keys, slots, k)
        self._ops.write_kv(values, slots, v)
        attended = step.backend.run(q, keys, values, self._scale, meta, self._softcap)
        return self.out(attended.flatten(1))  # type: ignore[no-any-return]


def _normed(heads: Tensor, norm: RMSNorm) -> Tensor:
    """[T, heads, D], normalised over as much as the norm is wide."""
    rows: Tensor = norm(heads.reshape(len(heads), -1, norm.weight.shape[0]))
    return rows.view(heads.shape)

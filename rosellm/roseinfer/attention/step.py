"""What the layers of one forward share, and what a layer's attention is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.layers.rope import Angles, RopeSpec


@dataclass(frozen=True)
class Step:
    """One forward. Passed explicitly; there is no global context.

    Attributes:
        positions: [T] position of each token.
        ropes: the rotary embeddings in use, at those positions.
        backend: how attention is computed.
        metas: per KV group, the backend's description of this step.
        storage: keys and values of all layers.
    """

    positions: Tensor
    ropes: Angles
    backend: AttentionBackend
    metas: tuple[Any, ...]
    storage: KVStorage


@dataclass(frozen=True)
class Heads:
    """The shape of one layer's attention (grouped KV heads: arXiv:2305.13245).

    Attributes:
        layer, group: which layer of which KV group it is.
        rope: rotary embedding, or None.
        scale: multiplies the scores.
        softcap: bounds the scores, see ``AttentionBackend.run``.
    """

    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    group: int
    rope: RopeSpec | None
    scale: float
    softcap: float | None


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms of queries and of keys before they are rotated.

    Attributes:
        q, k: weights, each as wide as one head or as all of them together.
    """

    q: Tensor
    k: Tensor
    eps: float

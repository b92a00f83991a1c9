"""From fused projections to attended values, one operation after the other: the specification."""

from __future__ import annotations

from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.kernels import reference


def attend(qkv: Tensor, heads: Heads, norms: HeadNorms | None, step: Step) -> Tensor:
    """Normalise, rotate, store keys and values, attend.

    Args:
        qkv: [T, (heads + 2 * kv heads) * D], queries first, then keys and values.

    Returns:
        [T, heads * D].
    """
    counts = [heads.heads, heads.kv_heads, heads.kv_heads]
    q, k, v = qkv.unflatten(-1, (sum(counts), heads.head_dim)).split(counts, dim=1)
    if norms is not None:
        q, k = _normed(q, norms.q, norms.eps), _normed(k, norms.k, norms.eps)
    if heads.rope is not None:
        q, k = (reference.rope(part, *step.ropes[heads.rope]) for part in (q, k))
    meta = step.metas[heads.group]
    keys, values = step.storage.layer(heads.layer)
    slots = step.backend.slots(meta)
    reference.write_kv(keys, slots, k)
    reference.write_kv(values, slots, v)
    attended = step.backend.run(q, keys, values, heads.scale, meta, heads.softcap)
    return attended.flatten(1)


def _normed(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, heads, D], normalised over as much as the weight is wide."""
    rows = heads.reshape(len(heads), -1, weight.shape[0])
    return reference.rms_norm(rows, weight, eps).view(heads.shape)

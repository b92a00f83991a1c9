"""Self-attention as most decoders have it: fused projection, rope if any, paged KV."""

from __future__ import annotations

from torch import Tensor, nn

from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.linear import Linear
from rosellm.roseinfer.layers.norm import RMSNorm


class Attention(nn.Module):
    """Multi-head attention between its two projections.

    Args:
        bias, out_bias: whether the qkv and the output projection have one.
        qk_norms: of queries and of keys.
    """

    def __init__(
        self,
        ops: Ops,
        heads: Heads,
        hidden_size: int,
        *,
        bias: bool,
        out_bias: bool,
        qk_norms: tuple[RMSNorm, RMSNorm] | None = None,
    ) -> None:
        super().__init__()
        self._ops = ops
        self._heads = heads
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if qk_norms is not None:
            self.q_norm, self.k_norm = qk_norms
        q, kv = heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim
        self.qkv = Linear(ops, hidden_size, {"q": q, "k": kv, "v": kv}, bias=bias)
        self.out = Linear(ops, q, {"out": hidden_size}, bias=out_bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        attended = self._ops.attend(self.qkv(x), self._heads, self._norms(), step)
        return self.out(attended)  # type: ignore[no-any-return]

    def _norms(self) -> HeadNorms | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)

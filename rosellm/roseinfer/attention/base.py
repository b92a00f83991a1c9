"""What every attention backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from rosellm.roseinfer.cache.storage import KVTensor


class AttentionBackend(Protocol):
    """Attention for any mix of prompts, chunks and single tokens in one call.

    ``prepare`` is called once a step and KV group; its result is passed to ``run`` for
    every layer of the group.
    """

    name: str
    invariant: bool

    def prepare(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        null_block: int,
        window: int | None = None,
        causal: bool = True,
    ) -> Any:
        """Describe the step's sequences.

        Args:
            starts: per sequence, the position of its first query token.
            lengths: per sequence, how many query tokens it has (consecutive in the batch).
            tables: per sequence, the block table covering starts + lengths positions; with
                a window, blocks that no query here can see may be the null block.
            null_block: the block of the cache that is all zeros and never written.
            window: a query sees this many latest positions, itself included; None sees all.
            causal: whether a query sees only positions up to its own; otherwise it sees all
                of its sequence, which is then whole in this step.
        """

    def slots(self, meta: Any) -> Tensor:
        """Where each query token's key and value belong: [T]."""

    def run(
        self,
        q: Tensor,
        keys: KVTensor,
        values: KVTensor,
        scale: float,
        meta: Any,
        softcap: float | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            q: [T, heads, D].
            keys, values: the layer's cache, the step's own tokens already written.
            scale: multiplies the scores.
            softcap: then they become softcap * tanh(scores / softcap).

        Returns:
            [T, heads, D] in q's dtype.
        """

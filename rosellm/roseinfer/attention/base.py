"""What every attention backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.upload import Upload


class AttentionBackend(Protocol):
    """Attention for any mix of prompts, chunks and single tokens in one call.

    ``prepare`` is called once a step and KV group; its result is passed to ``run`` for
    every layer of the group.

    Attributes:
        capturable: whether it can run in a CUDA graph, see ``prepare``.
    """

    name: str
    invariant: bool
    capturable: bool

    def prepare(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        null_block: int,
        window: int | None = None,
        causal: bool = True,
        upload: Upload | None = None,
        blocks: int | None = None,
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
            upload: how what is described here gets to the device; None: at once.
            blocks: only where ``capturable``, and each sequence has one token: the kernels run
                again on whatever later descriptions upload to the same places. Shapes and launches
                depend on the number of sequences and on this alone, as if each had so many
                blocks; all tensors of the result are uploads.
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

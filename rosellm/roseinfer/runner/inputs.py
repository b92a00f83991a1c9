"""What the model is run on, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor

from rosellm.roseinfer.kernels.upload import Upload
from rosellm.roseinfer.step import StepPlan


@dataclass(frozen=True)
class StepInputs:
    """One forward's inputs; sequences are concatenated.

    Attributes:
        ids, positions: [T].
        starts, lengths: per sequence, position of its first token and how many it has.
        tables: per KV group and sequence, the block table.
    """

    ids: Tensor
    positions: Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: tuple[tuple[Sequence[int], ...], ...]


def build_inputs(plan: StepPlan, upload: Upload) -> StepInputs:
    """Lay the work of a plan out, in its order."""
    work = plan.work
    tokens = chain.from_iterable(each.tokens for each in work)
    positions = (range(each.start, each.start + len(each.tokens)) for each in work)
    count = plan.num_tokens
    return StepInputs(
        ids=upload(np.fromiter(tokens, np.int64, count)),
        positions=upload(np.fromiter(chain.from_iterable(positions), np.int64, count)),
        starts=tuple(each.start for each in work),
        lengths=tuple(len(each.tokens) for each in work),
        tables=tuple(zip(*(each.tables for each in work), strict=True)),
    )

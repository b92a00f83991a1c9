"""A step plan as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.step import LogitRow, StepPlan


@dataclass(frozen=True)
class StepInputs:
    """One forward's inputs; sequences are concatenated, nothing is padded.

    Attributes:
        ids, positions: [T].
        rows: [R] index of each logit row among the T tokens.
        logits: what each of those rows wants.
        starts, lengths: per sequence, position of its first token and how many it has.
        tables: per KV group and sequence, the block table.
    """

    ids: Tensor
    positions: Tensor
    rows: Tensor
    logits: tuple[LogitRow, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: tuple[tuple[tuple[int, ...], ...], ...]


def build_inputs(plan: StepPlan, device: torch.device) -> StepInputs:
    """Lay the work of a plan out, in its order."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    for work in plan.work:
        rows.extend(len(ids) + logit.offset for logit in work.logits)
        ids.extend(work.tokens)
        positions.extend(range(work.start, work.start + len(work.tokens)))
    packed = torch.tensor([*ids, *positions, *rows], dtype=torch.int64).to(device)
    count = len(ids)
    return StepInputs(
        ids=packed[:count],
        positions=packed[count : 2 * count],
        rows=packed[2 * count :],
        logits=tuple(logit for work in plan.work for logit in work.logits),
        starts=tuple(work.start for work in plan.work),
        lengths=tuple(len(work.tokens) for work in plan.work),
        tables=tuple(zip(*(work.tables for work in plan.work), strict=True)),
    )

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
        scored: [S] index of each position to score.
        targets: [S] the token that follows it.
        tops: how many likeliest tokens each of them reports.
        starts, lengths: per sequence, position of its first token and how many it has.
        tables: per KV group and sequence, the block table.
    """

    ids: Tensor
    positions: Tensor
    rows: Tensor
    logits: tuple[LogitRow, ...]
    scored: Tensor
    targets: Tensor
    tops: tuple[int, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: tuple[tuple[tuple[int, ...], ...], ...]


def build_inputs(plan: StepPlan, device: torch.device) -> StepInputs:
    """Lay the work of a plan out, in its order."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    scored: list[int] = []
    targets: list[int] = []
    tops: list[int] = []
    for work in plan.work:
        rows.extend(len(ids) + logit.offset for logit in work.logits)
        if work.scoring is not None:
            first, count = len(ids) + work.scoring.offset, len(work.scoring.targets)
            scored.extend(range(first, first + count))
            targets.extend(work.scoring.targets)
            tops.extend([work.scoring.top] * count)
        ids.extend(work.tokens)
        positions.extend(range(work.start, work.start + len(work.tokens)))
    parts = (ids, positions, rows, scored, targets)
    packed = torch.tensor([i for part in parts for i in part], dtype=torch.int64).to(device)
    tensors = packed.split([len(part) for part in parts])
    return StepInputs(
        ids=tensors[0],
        positions=tensors[1],
        rows=tensors[2],
        scored=tensors[3],
        targets=tensors[4],
        tops=tuple(tops),
        logits=tuple(logit for work in plan.work for logit in work.logits),
        starts=tuple(work.start for work in plan.work),
        lengths=tuple(len(work.tokens) for work in plan.work),
        tables=tuple(zip(*(work.tables for work in plan.work), strict=True)),
    )

"""How likely the model finds tokens that are known already: a prompt's.

Works through a few rows at a time, so that memory is bounded by rows x vocabulary of
one tile and not of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.reference import tile_rows
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.runner.rows import RowInputs


def to_logprobs(tops: Sequence[int], parts: Sequence[Tensor]) -> list[Logprobs]:
    """An entry for each scored position.

    Args:
        tops: how many of the likeliest tokens each of them wants.
        parts: what ``score`` returned, on the host.
    """
    if not tops:
        return []
    columns = [part.tolist() for part in parts]
    return [
        Logprobs(chosen, ids[:top], values[:top])
        for chosen, ids, values, top in zip(*columns, tops, strict=True)
    ]


def score(
    logits: Callable[[Tensor], Logits], hidden: Tensor, inputs: RowInputs, ops: Ops
) -> list[Tensor]:
    """Score the step's scored positions.

    Args:
        logits: hidden states [R, H] to logits in fp32.
        hidden: [T, H] of the whole step.

    Returns:
        On the device: [S] log-probability of each target; ids of the likeliest tokens and their
        log-probabilities, both [S, most that a position wants]. Nothing where nothing is scored.
    """
    if inputs.scored is None or inputs.targets is None:
        return []
    count, width = len(inputs.tops), max(inputs.tops)
    # Made beforehand: small results left between a tile's large buffers would split the heap,
    # and every next tile would take new memory.
    scores = [
        hidden.new_empty(count, dtype=torch.float32),
        hidden.new_empty((count, width), dtype=torch.int64),
        hidden.new_empty((count, width), dtype=torch.float32),
    ]
    height = tile_rows(hidden.device)
    for start in range(0, count, height):
        rows = slice(start, start + height)
        raw = logits(hidden[inputs.scored[rows]]).values
        found = ops.logprobs_of(raw, inputs.targets[rows], width)
        for whole, part in zip(scores, found, strict=True):
            whole[rows] = part
    return scores

"""How likely the model finds tokens that are known already: a prompt's.

Works through a few rows at a time, so that memory is bounded by rows x vocabulary of
one tile and not of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rosellm.roseinfer.kernels.reference import tile_rows
from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.runner.inputs import StepInputs
from rosellm.roseinfer.runner.logprobs import logprobs_of


@dataclass(frozen=True)
class Scores:
    """Result on the device: tiles as ``logprobs_of`` returns them."""

    tiles: tuple[tuple[Tensor, Tensor, Tensor], ...]
    tops: tuple[int, ...]

    def to_logprobs(self) -> list[Logprobs]:
        """Wait for the device; one entry a scored position."""
        rows = [row for tile in self.tiles for row in zip(*(x.tolist() for x in tile), strict=True)]
        return [
            Logprobs(chosen, ids[:top], values[:top])
            for (chosen, ids, values), top in zip(rows, self.tops, strict=True)
        ]


def score(logits: Callable[[Tensor], Tensor], hidden: Tensor, inputs: StepInputs) -> Scores:
    """Score the step's scored positions.

    Args:
        logits: hidden states [R, H] to logits [R, vocabulary] in fp32.
        hidden: [T, H] of the whole step.
    """
    height = tile_rows(hidden.device)
    width = max(inputs.tops, default=0)
    pairs = zip(inputs.scored.split(height), inputs.targets.split(height), strict=True)
    tiles = (logprobs_of(logits(hidden[rows]), ids, width) for rows, ids in pairs if len(rows))
    return Scores(tuple(tiles), inputs.tops)

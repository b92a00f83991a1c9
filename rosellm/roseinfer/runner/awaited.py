"""Tokens that only the device knows: what the step before sampled, put where this one needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rosellm.roseinfer.kernels.upload import Upload
from rosellm.roseinfer.runner.rows import Penalties
from rosellm.roseinfer.step import StepPlan


@dataclass(frozen=True)
class Awaited:
    """K tokens, of which penalties look at H.

    Attributes:
        rows: [K] the step before's logit rows that sample them.
        places: [K] where they stand among this step's T tokens.
        penalised: [H] which of the K.
        outputs: [H] where those stand in ``Penalties.outputs``.
    """

    rows: Tensor
    places: Tensor
    penalised: Tensor | None
    outputs: Tensor | None

    def fill(self, sampled: Tensor, ids: Tensor, penalties: Penalties | None) -> None:
        """Write them into a step's inputs. The host does not wait for them.

        Args:
            sampled: a token for each logit row of the step before.
            ids: [T] of this step.
        """
        tokens = sampled.index_select(0, self.rows)
        ids.index_copy_(0, self.places, tokens)
        if self.penalised is not None and self.outputs is not None:
            assert penalties is not None
            # in front of the token stands its row's multiple of the vocabulary
            penalties.outputs.index_add_(0, self.outputs, tokens.index_select(0, self.penalised))


def lay_out_awaited(plan: StepPlan, upload: Upload) -> Awaited | None:
    """Where a plan's awaited tokens come from, and where they go; None if there are none."""
    rows: list[int] = []
    places: list[int] = []
    penalised: list[int] = []
    outputs: list[int] = []
    first = seen = 0
    for work in plan.work:
        for logit in work.logits:
            seen += max(0, len(logit.history) - logit.prompt_len)
            if work.awaits is not None and logit.history:
                penalised.append(len(rows))
                outputs.append(seen - 1)
        if work.awaits is not None:
            rows.append(work.awaits)
            places.append(first)
        first += len(work.tokens)
    if not rows:
        return None
    return Awaited(
        rows=upload(np.array(rows, np.int64)),
        places=upload(np.array(places, np.int64)),
        penalised=upload(np.array(penalised, np.int64)) if penalised else None,
        outputs=upload(np.array(outputs, np.int64)) if penalised else None,
    )

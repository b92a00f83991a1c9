"""How a step runs a model, whichever kernels do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rosellm.roseinfer.attention.step import Step

Hidden = Callable[[Tensor, Step], Tensor]
Sampled = Callable[[Tensor, Step, Tensor | None, Any], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Forward:
    """A model, ready to run.

    Attributes:
        hidden: token ids [T] and a step to hidden states [T, H].
        sampled: the same, and at once a token for each of R rows, where kernels can go on by
            themselves: ids, the step, which of the T rows are sampled ([R]; None: all of them),
            and what ``Ops.lay_out`` returned of these, to whose logits nothing else is done. It
            returns hidden states, tokens [R], and whether the rows' logits were numbers [R].
    """

    hidden: Hidden
    sampled: Sampled | None = None

"""From the hidden states of one sequence to its vector of unit length."""

from __future__ import annotations

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.reference import tree_sum
from rosellm.roseinfer.messages import Pooling


def pool(hidden: Tensor, kind: Pooling) -> Tensor:
    """One sequence's vector; its bits depend on nothing but this sequence.

    Args:
        hidden: [n, H], all n tokens of the sequence; for "last", its end suffices.
        kind: "mean" over the tokens, the first one's ("cls") or the last one's.

    Returns:
        [H] in fp32, of length 1 (zeros, if it is all zeros).
    """
    vector = _combine(hidden.float(), kind)
    length = tree_sum(vector * vector).sqrt()
    return vector / length.clamp(min=torch.finfo(torch.float32).tiny)


def _combine(hidden: Tensor, kind: Pooling) -> Tensor:
    if kind == "mean":
        return tree_sum(hidden.t())[:, 0] / len(hidden)
    return hidden[0 if kind == "cls" else -1]

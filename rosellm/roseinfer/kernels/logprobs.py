"""Log-probabilities of rows of logits, each row's bits its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def aligned(logits: Tensor) -> Tensor:
    """Columns of -inf up to a multiple of 16: a row that starts elsewhere than on a vector's
    boundary would be summed in another order."""
    return F.pad(logits, (0, -logits.shape[1] % 16), value=-torch.inf)


def logprobs_of(raw: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural-log probabilities under logits ``raw`` [L, vocabulary] in fp32.

    Returns:
        Those of ``tokens`` [L]; the ``width`` likeliest ids [L, width]; and theirs.
    """
    logprobs = aligned(raw).log_softmax(-1)
    ids = _likeliest(raw, min(width, raw.shape[1]))
    return logprobs.gather(1, tokens[:, None])[:, 0], ids, logprobs.gather(1, ids)


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """Ids of the largest logits, equal ones by id: [L, count].

    ``topk`` alone would leave it to its algorithm which of several equals it takes, and other
    rows decide on the algorithm. So all that equal the last one are looked at.
    """
    if count == 0:
        return logits.new_empty((len(logits), 0), dtype=torch.int64)
    least = logits.topk(count).values[:, -1:]
    width = int((logits >= least).sum(-1).max())
    values, ids = logits.topk(max(width, count))
    order = _sort_keys(values, ids).topk(count).indices
    return ids.gather(1, order)


def _sort_keys(values: Tensor, ids: Tensor) -> Tensor:
    """Integers that order as the floats do, and where these are equal, smaller ids first.

    A float's bits, read as an integer, order as the float does (once negative ones are
    flipped); below them there is room for the id.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes 0.0 of -0.0
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) << 32
    return keys + (0xFFFFFFFF - ids)

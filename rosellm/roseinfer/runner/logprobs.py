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

    ``topk`` alone would order equals as its algorithm for that count happens to, and other
    rows decide the count. A float's bits, read as an integer, order as the float does
    (once negative ones are flipped); below them there is room for the id.
    """
    bits = (logits + 0.0).view(torch.int32)  # + 0.0 makes 0.0 of -0.0
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) << 32
    last = logits.shape[1] - 1
    keys += torch.arange(last, -1, -1, device=logits.device)
    return last - (keys.topk(count).values & 0xFFFFFFFF)

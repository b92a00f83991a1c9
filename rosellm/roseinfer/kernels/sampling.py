"""Choose one token of each row of logits: the specification that ``Ops.draw`` is held to.

Order: allowed tokens, temperature, min-p, top-k, top-p, then the likeliest after adding Gumbel
noise, which samples from what is left. At temperature 0 it is the likeliest, and no noise.

Filters are thresholds: tokens as likely as the last one kept are kept too, so the outcome does not
depend on how a sort breaks ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.logprobs import aligned
from rosellm.roseinfer.kernels.noise import gumbel
from rosellm.roseinfer.kernels.reference import prefix_sum
from rosellm.roseinfer.step import LogitRow

CANDIDATES = 1024
"""Most filters keep fewer tokens than this; only rows that keep more are sorted in full."""


def sound(logits: Tensor) -> Tensor:
    """Which rows are numbers, that is, have a largest one and no NaN: bool [R]."""
    return logits.amax(dim=1).isfinite()  # NaN is the largest


def draw(logits: Tensor, rows: Sequence[LogitRow], allowed: Tensor | None) -> Tensor:
    """The token of each row, [R].

    Args:
        logits: [R, vocabulary] in fp32, whatever changes them already applied.
        rows: what each row wants, R of them.
        allowed: a bit for each token that may be chosen, the lowest of a word first: int32
            [R, ceil(vocabulary / 32)]. None allows all.
    """
    if allowed is not None:
        logits = logits.masked_fill(~_unpacked(allowed, logits.shape[1]), -torch.inf)
    tokens = logits.argmax(dim=-1)
    random = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if random:
        index = _ints(random, logits)
        tokens[index] = _draw(logits[index], [rows[i] for i in random])
    return tokens


def _unpacked(bits: Tensor, count: int) -> Tensor:
    """The first bits of each row's words: bool [R, count]."""
    each = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> each) & 1).flatten(1)[:, :count] == 1


def _floats(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def _ints(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _draw(logits: Tensor, rows: Sequence[LogitRow]) -> Tensor:
    """Sample each row from its tempered, filtered distribution."""
    temperature = _floats([row.params.temperature for row in rows], logits)[:, None]
    # With the largest at 0, no temperature, however small, makes an infinity of it.
    logits = logits - logits.amax(-1, keepdim=True)
    logits /= temperature.clamp(min=torch.finfo(torch.float32).tiny)
    filtered = [i for i, row in enumerate(rows) if _has_filter(row)]
    if filtered:
        index = _ints(filtered, logits)
        chosen = logits[index]
        probabilities = aligned(chosen).softmax(-1)[:, : chosen.shape[1]]
        threshold = _threshold(probabilities, [rows[i] for i in filtered])
        logits[index] = chosen.masked_fill_(probabilities < threshold, -torch.inf)
    noise = gumbel(
        _ints([row.params.seed for row in rows], logits),
        _ints([row.choice for row in rows], logits),
        _ints([row.position for row in rows], logits),
        logits.shape[1],
    )
    return (logits + noise).argmax(dim=-1)


def _has_filter(row: LogitRow) -> bool:
    return row.params.top_k > 0 or row.params.top_p < 1 or row.params.min_p > 0


def _threshold(probabilities: Tensor, rows: Sequence[LogitRow]) -> Tensor:
    """The least probability that each row keeps: [R, 1].

    The likeliest ``CANDIDATES`` suffice unless a row keeps more; those rows are sorted in
    full. Both ways look at the same sorted values, so they agree to the bit.
    """
    vocab_size = probabilities.shape[1]
    likeliest = probabilities.topk(min(CANDIDATES, vocab_size)).values
    threshold, certain = _threshold_among(likeliest, rows, vocab_size)
    rest = torch.nonzero(~certain)[:, 0]
    if len(rest):
        full = probabilities[rest].sort(dim=-1, descending=True).values
        chosen = [rows[i] for i in rest.tolist()]
        threshold[rest] = _threshold_among(full, chosen, vocab_size)[0]
    return threshold


def _threshold_among(
    ordered: Tensor, rows: Sequence[LogitRow], vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Threshold [R, 1] found among the largest probabilities, and whether it is certain [R].

    Top-p is taken over what min-p and top-k leave, so the mass of that must be known: either
    they cut within ``ordered``, or they cut nowhere.
    """
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    top_k = _ints([row.params.top_k or vocab_size for row in rows], ordered)[:, None]
    top_p = _floats([row.params.top_p for row in rows], ordered)[:, None]
    min_p = _floats([row.params.min_p for row in rows], ordered)[:, None]
    keep = (ordered >= min_p * ordered[:, :1]) & (rank < top_k)
    cut = ~keep[:, -1:]
    mass = prefix_sum(ordered * keep)
    total = torch.where(cut, mass[:, -1:], 1.0)
    before = mass - ordered * keep
    # Nothing is lost to rounding of the running sum where top_p is 1.
    keep &= (before < top_p * total) | (top_p >= 1)
    last = (keep.sum(-1, keepdim=True) - 1).clamp(min=0)  # a row of NaN keeps nothing
    uncut = (min_p == 0) & (top_k >= vocab_size)
    certain = cut | (uncut & (last < ordered.shape[1] - 1))
    return ordered.gather(1, last), certain[:, 0]

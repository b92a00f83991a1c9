"""Choose one token of each row of logits: the specification that ``Ops.draw`` is held to.

Order: allowed tokens, temperature, min-p, top-k, top-p, then the likeliest after adding Gumbel
noise, which samples from what is left. At temperature 0 it is the likeliest, and no noise.

Filters are thresholds: tokens as likely as the last one kept are kept too, so the outcome does not
depend on how a sort breaks ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rosellm.roseinfer.kernels.logprobs import aligned
from rosellm.roseinfer.kernels.noise import gumbel
from rosellm.roseinfer.kernels.reference import prefix_sum
from rosellm.roseinfer.kernels.upload import Upload, at_once
from rosellm.roseinfer.step import LogitRow

CANDIDATES = 1024
"""Most filters keep fewer tokens than this; only rows that keep more are sorted in full."""


def sound(logits: Tensor) -> Tensor:
    """Which rows are numbers, that is, have a largest one and no NaN: bool [R]."""
    return logits.amax(dim=1).isfinite()  # NaN is the largest


@dataclass(frozen=True)
class Filters:
    """Of the D rows that have a filter: each [D, 1].

    Attributes:
        rows: [D] which of the sampled rows they are.
        top_k: the size of the vocabulary where all tokens may stay.
    """

    rows: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def of(self, some: Tensor) -> Filters:
        """Those of some of them."""
        parts = (self.rows, self.top_k, self.top_p, self.min_p)
        return Filters(*(part[some] for part in parts))


@dataclass(frozen=True)
class Drawing:
    """What rows want of ``draw``, on the device. S of them are sampled.

    Attributes:
        sampled: [S] which they are.
        temperature: [S, 1].
        seeds, choices, positions: [S], keys of their noise.
        filters: of those that have any.
    """

    sampled: Tensor
    temperature: Tensor
    seeds: Tensor
    choices: Tensor
    positions: Tensor
    filters: Filters | None


def lay_out(rows: Sequence[LogitRow], vocab_size: int, upload: Upload) -> Drawing | None:
    """What ``draw`` has to know of the rows; None where it takes the likeliest of each."""
    sampled = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if not sampled:
        return None
    chosen = [rows[i] for i in sampled]
    return Drawing(
        sampled=upload(np.array(sampled, np.int64)),
        temperature=upload(_floats(chosen, lambda row: row.params.temperature)),
        seeds=upload(np.array([row.params.seed for row in chosen], np.int64)),
        choices=upload(np.array([row.choice for row in chosen], np.int64)),
        positions=upload(np.array([row.position for row in chosen], np.int64)),
        filters=_filters(chosen, vocab_size, upload),
    )


def _filters(rows: Sequence[LogitRow], vocab_size: int, upload: Upload) -> Filters | None:
    filtered = [i for i, row in enumerate(rows) if _has_filter(row)]
    if not filtered:
        return None
    chosen = [rows[i] for i in filtered]
    return Filters(
        rows=upload(np.array(filtered, np.int64)),
        top_k=upload(np.array([[row.params.top_k or vocab_size] for row in chosen], np.int64)),
        top_p=upload(_floats(chosen, lambda row: row.params.top_p)),
        min_p=upload(_floats(chosen, lambda row: row.params.min_p)),
    )


def _floats(rows: Sequence[LogitRow], value: Callable[[LogitRow], float]) -> np.ndarray:
    return np.array([[value(row)] for row in rows], np.float32)


def _has_filter(row: LogitRow) -> bool:
    return row.params.top_k > 0 or row.params.top_p < 1 or row.params.min_p > 0


def draw(
    logits: Tensor,
    rows: Sequence[LogitRow],
    allowed: Tensor | None,
    drawing: Drawing | None = None,
    _tops: None = None,
) -> Tensor:
    """The token of each row, [R].

    Args:
        logits: [R, vocabulary] in fp32, whatever changes them already applied.
        rows: what each row wants, R of them.
        allowed: a bit for each token that may be chosen, the lowest of a word first: int32
            [R, ceil(vocabulary / 32)]. None allows all.
        drawing: what ``lay_out`` made of the rows, if it was called for them.
        _tops: of ``Logits``, for those who have such, and only if nothing was changed.
    """
    drawing = drawing or lay_out(rows, logits.shape[1], at_once(logits.device))
    if allowed is not None:
        logits = logits.masked_fill(~_unpacked(allowed, logits.shape[1]), -torch.inf)
    tokens = logits.argmax(dim=-1)
    if drawing is not None:
        tokens[drawing.sampled] = _draw(logits[drawing.sampled], drawing)
    return tokens


def _unpacked(bits: Tensor, count: int) -> Tensor:
    """The first bits of each row's words: bool [R, count]."""
    each = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> each) & 1).flatten(1)[:, :count] == 1


def _draw(logits: Tensor, drawing: Drawing) -> Tensor:
    """Sample each row from its tempered, filtered distribution."""
    # With the largest at 0, no temperature, however small, makes an infinity of it.
    logits = logits - logits.amax(-1, keepdim=True)
    logits /= drawing.temperature.clamp(min=torch.finfo(torch.float32).tiny)
    filters = drawing.filters
    if filters is not None:
        chosen = logits[filters.rows]
        probabilities = aligned(chosen).softmax(-1)[:, : chosen.shape[1]]
        threshold = _threshold(probabilities, filters)
        logits[filters.rows] = chosen.masked_fill_(probabilities < threshold, -torch.inf)
    noise = gumbel(drawing.seeds, drawing.choices, drawing.positions, logits.shape[1])
    return (logits + noise).argmax(dim=-1)


def _threshold(probabilities: Tensor, filters: Filters) -> Tensor:
    """The least probability that each row keeps: [D, 1].

    The likeliest ``CANDIDATES`` suffice unless a row keeps more; those rows are sorted in
    full. Both ways look at the same sorted values, so they agree to the bit.
    """
    vocab_size = probabilities.shape[1]
    likeliest = probabilities.topk(min(CANDIDATES, vocab_size)).values
    threshold, certain = _threshold_among(likeliest, filters, vocab_size)
    rest = torch.nonzero(~certain)[:, 0]
    if len(rest):
        full = probabilities[rest].sort(dim=-1, descending=True).values
        threshold[rest] = _threshold_among(full, filters.of(rest), vocab_size)[0]
    return threshold


def _threshold_among(ordered: Tensor, filters: Filters, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Threshold [D, 1] found among the largest probabilities, and whether it is certain [D].

    Top-p is taken over what min-p and top-k leave, so the mass of that must be known: either
    they cut within ``ordered``, or they cut nowhere.
    """
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    top_k, top_p, min_p = filters.top_k, filters.top_p, filters.min_p
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

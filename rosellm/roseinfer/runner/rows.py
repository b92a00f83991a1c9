"""What is to be made of a step's hidden states, laid out for the device before the forward starts.

So that all of it goes there together, and sampling waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.kernels.upload import Upload
from rosellm.roseinfer.step import LogitRow, StepPlan


@dataclass(frozen=True)
class Penalties:
    """Of the P rows that have any.

    Attributes:
        rows: [P] which they are.
        outputs, prompts: tokens of their answers and of their prompts so far, each as
            place among the P rows * vocabulary + token.
        repetition, frequency, presence: [P, 1].
    """

    rows: Tensor
    outputs: Tensor
    prompts: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor


@dataclass(frozen=True)
class Wishes:
    """What R logit rows want.

    Attributes:
        drawing: for ``Ops.draw``.
        bias: rows, tokens, and what is added to their logits.
        early: rows and their stop tokens, which cannot be chosen yet.
        told: [L] for each token whose log-probabilities are reported, its row.
        spares: where among the L stand rows' spare tokens, and which they are.
        width: most likeliest tokens that are reported beside one.
    """

    rows: Sequence[LogitRow]
    drawing: Any
    bias: tuple[Tensor, Tensor, Tensor] | None = None
    early: tuple[Tensor, Tensor] | None = None
    penalties: Penalties | None = None
    told: Tensor | None = None
    spares: tuple[Tensor, Tensor] | None = None
    width: int = 0

    @property
    def only_draw(self) -> bool:
        """Whether there is something to draw, and nothing else to do."""
        return bool(self.rows) and self.told is None and not self.change_logits

    @property
    def change_logits(self) -> bool:
        """Whether anything is done to the logits before a token is drawn."""
        return any(part is not None for part in (self.bias, self.early, self.penalties))

    @classmethod
    def of(cls, rows: Sequence[LogitRow], vocab_size: int, ops: Ops, upload: Upload) -> Wishes:
        drawing = ops.lay_out(rows, vocab_size, upload)
        if all(row.params.only_drawn for row in rows):
            return cls(rows, drawing)
        told = [i for i, row in enumerate(rows) for _ in range(num_told(row))]
        second = [i for i in range(1, len(told)) if told[i] == told[i - 1]]
        spares = [rows[told[i]].spare for i in second]
        return cls(
            rows=rows,
            drawing=drawing,
            bias=_bias(rows, upload),
            early=_early(rows, upload),
            penalties=_penalties(rows, vocab_size, upload),
            told=upload(_ints(told)) if told else None,
            spares=(upload(_ints(second)), upload(_ints(spares))) if second else None,
            width=max((rows[i].params.logprobs or 0 for i in told), default=0),
        )


@dataclass(frozen=True)
class RowInputs:
    """Which hidden states are looked at, and for what.

    Attributes:
        rows: [R] index of each logit row among the T tokens; None if they are these, one by one.
        wishes: what those rows want.
        scored: [S] index of each position to score; None if there is none.
        targets: [S] the token that follows it; None if there is none.
        tops: how many likeliest tokens each of them reports.
    """

    rows: Tensor | None
    wishes: Wishes
    scored: Tensor | None
    targets: Tensor | None
    tops: tuple[int, ...]


def lay_out_rows(plan: StepPlan, vocab_size: int, ops: Ops, upload: Upload) -> RowInputs:
    """Everything of a plan that comes after its forward."""
    rows: list[int] = []
    scored: list[int] = []
    targets: list[int] = []
    tops: list[int] = []
    first = 0
    for work in plan.work:
        rows.extend(first + logit.offset for logit in work.logits)
        if work.scoring is not None:
            begin, count = first + work.scoring.offset, len(work.scoring.targets)
            scored.extend(range(begin, begin + count))
            targets.extend(work.scoring.targets)
            tops.extend([work.scoring.top] * count)
        first += len(work.tokens)
    logits = tuple(logit for work in plan.work for logit in work.logits)
    return RowInputs(
        rows=None if rows == list(range(first)) else upload(_ints(rows)),
        wishes=Wishes.of(logits, vocab_size, ops, upload),
        scored=upload(_ints(scored)) if scored else None,
        targets=upload(_ints(targets)) if scored else None,
        tops=tuple(tops),
    )


def num_told(row: LogitRow) -> int:
    """How many tokens' log-probabilities a row reports: its own, and then its spare one's."""
    if row.params.logprobs is None:
        return 0
    return 1 if row.spare is None else 2


def _bias(rows: Sequence[LogitRow], upload: Upload) -> tuple[Tensor, Tensor, Tensor] | None:
    entries = [(i, t, b) for i, row in enumerate(rows) for t, b in row.params.logit_bias]
    if not entries:
        return None
    index, tokens, biases = zip(*entries, strict=True)
    return upload(_ints(index)), upload(_ints(tokens)), upload(np.array(biases, np.float32))


def _early(rows: Sequence[LogitRow], upload: Upload) -> tuple[Tensor, Tensor] | None:
    """Before ``min_tokens`` no stop token can be chosen."""
    entries = [
        (i, token)
        for i, row in enumerate(rows)
        if row.position < row.params.min_tokens
        for token in row.params.stop_token_ids
    ]
    if not entries:
        return None
    index, tokens = zip(*entries, strict=True)
    return upload(_ints(index)), upload(_ints(tokens))


def _penalties(rows: Sequence[LogitRow], vocab_size: int, upload: Upload) -> Penalties | None:
    index = [i for i, row in enumerate(rows) if row.params.needs_history]
    if not index:
        return None
    chosen = [rows[i] for i in index]
    outputs = [row.history[row.prompt_len :] for row in chosen]
    prompts = [row.history[: row.prompt_len] for row in chosen]
    params = [row.params for row in chosen]
    factors = [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params]
    repetition, frequency, presence = np.array(factors, np.float32).T[..., None]
    return Penalties(
        rows=upload(_ints(index)),
        outputs=upload(_flat(outputs, vocab_size)),
        prompts=upload(_flat(prompts, vocab_size)),
        repetition=upload(repetition),
        frequency=upload(frequency),
        presence=upload(presence),
    )


def _flat(tokens: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    """Tokens of each row, as place * vocabulary + token."""
    lengths = [len(ids) for ids in tokens]
    ids = np.fromiter(chain.from_iterable(tokens), np.int64, sum(lengths))
    return ids + vocab_size * np.repeat(np.arange(len(tokens)), lengths)


def _ints(values: Sequence[int | None]) -> np.ndarray:
    return np.array(values, np.int64)

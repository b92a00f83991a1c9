"""Choose the next token of every logit row of a step, all rows at once.

Order: logit bias, minimum length, penalties, then what ``Ops.draw`` does. Reported
log-probabilities are the model's own, before any of it. Nothing here waits for a GPU; operations
may, where there are no kernels for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.kernels import sampling
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.runner.rows import Penalties, Wishes, num_told
from rosellm.roseinfer.step import LogitRow, Sample


@dataclass(frozen=True)
class Chosen:
    """Result on the device.

    Attributes:
        tokens: [R].
        finite: [R], whether a row's logits were numbers, so that its token means something.
        logprobs: of the L tokens of which they are wanted: each row's own, if it wants any, and
            then its spare one: [L], and ids and log-probabilities of the likeliest tokens [L, most
            that a row wants].
    """

    tokens: Tensor
    finite: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, as ``to_samples`` takes it back."""
        return [self.tokens, self.finite, *(self.logprobs or ())]


def to_samples(rows: Sequence[LogitRow], parts: Sequence[Tensor]) -> list[Sample]:
    """A Sample for each row.

    Args:
        parts: ``Chosen.tensors``, on the host.
    """
    tokens, finite, *wanted = [part.tolist() for part in parts]
    if not wanted:
        return [Sample(*each) for each in zip(tokens, finite, strict=True)]
    logprobs = zip(*wanted, strict=True)
    samples = []
    for row, token, sound in zip(rows, tokens, finite, strict=True):
        told = [Logprobs(*_cut(row, *next(logprobs))) for _ in range(num_told(row))]
        chosen, spare, *_ = *told, None, None
        samples.append(Sample(token, sound, chosen, spare))
    return samples


def _cut(
    row: LogitRow, chosen: float, ids: list[int], values: list[float]
) -> tuple[float, list[int], list[float]]:
    count = row.params.logprobs
    return chosen, ids[:count], values[:count]


def sample(scores: Logits, wishes: Wishes, ops: Ops, allowed: Tensor | None = None) -> Chosen:
    """Choose a token for each row.

    Args:
        scores: of R rows, in fp32; not kept.
        wishes: what each row wants, R of them.
        allowed: see ``Ops.draw``.
    """
    logits, tops = scores.values, scores.tops
    finite = _sound(scores)
    raw = None if wishes.told is None else logits[wishes.told]
    if wishes.bias is not None:
        *where, biases = wishes.bias
        logits.index_put_(tuple(where), biases, accumulate=True)
    if wishes.early is not None:
        logits.index_put_(wishes.early, logits.new_full((), -torch.inf))
    if wishes.penalties is not None:
        _penalise(logits, wishes.penalties)
    if wishes.change_logits:
        tops = None
    tokens = ops.draw(logits, wishes.rows, allowed, wishes.drawing, tops)
    if raw is None:
        return Chosen(tokens, finite)
    return Chosen(tokens, finite, ops.logprobs_of(raw, _told_tokens(wishes, tokens), wishes.width))


def _sound(scores: Logits) -> Tensor:
    """Which rows are numbers: [R]. The others are zeroed: no kernel has to draw from them."""
    finite = sampling.sound(scores.values) if scores.finite is None else scores.finite
    # A GPU is not waited for. (Of a few numbers `all` takes five times as long as a list of them.)
    if finite.device.type != "cpu" or not all(finite.tolist()):
        scores.values.masked_fill_(~finite[:, None], 0.0)
    return finite


def _told_tokens(wishes: Wishes, tokens: Tensor) -> Tensor:
    told = tokens[wishes.told]
    if wishes.spares is not None:
        where, spares = wishes.spares
        told[where] = spares
    return told


def _penalise(logits: Tensor, wanted: Penalties) -> None:
    scores = logits[wanted.rows]
    outputs = _counts(wanted.outputs, scores)
    seen = (outputs > 0) | (_counts(wanted.prompts, scores) > 0)
    repetition = wanted.repetition
    repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
    scores = torch.where(seen, repeated, scores)
    scores = scores - wanted.frequency * outputs - wanted.presence * (outputs > 0)
    logits[wanted.rows] = scores


def _counts(flat: Tensor, like: Tensor) -> Tensor:
    """How often each token occurs: [rows, vocabulary]. (``bincount`` would wait for a GPU.)"""
    counts = torch.zeros(like.numel(), dtype=torch.int64, device=like.device)
    return counts.index_add_(0, flat, torch.ones_like(flat)).view(like.shape)

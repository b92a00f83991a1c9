"""Choose the next token of every logit row of a step, all rows at once.

Order: logit bias, minimum length, penalties, then what ``Ops.draw`` does. Reported
log-probabilities are the model's own, before any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.messages import Logprobs
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

    def to_samples(self, rows: Sequence[LogitRow]) -> list[Sample]:
        """Wait for the device and hand out one Sample a row."""
        tokens, finite = self.tokens.tolist(), self.finite.tolist()
        wanted = [] if self.logprobs is None else [part.tolist() for part in self.logprobs]
        logprobs = zip(*wanted, strict=True)
        samples = []
        for row, token, sound in zip(rows, tokens, finite, strict=True):
            told = [Logprobs(*_cut(row, *next(logprobs))) for _ in _told(row, token)]
            chosen, spare, *_ = *told, None, None
            samples.append(Sample(token, chosen, spare, finite=sound))
        return samples


def _told(row: LogitRow, token: int) -> list[int]:
    """Tokens whose log-probabilities a row reports."""
    if row.params.logprobs is None:
        return []
    return [token] if row.spare is None else [token, row.spare]


def _cut(
    row: LogitRow, chosen: float, ids: list[int], values: list[float]
) -> tuple[float, list[int], list[float]]:
    count = row.params.logprobs
    return chosen, ids[:count], values[:count]


def sample(
    logits: Tensor, rows: Sequence[LogitRow], ops: Ops, allowed: Tensor | None = None
) -> Chosen:
    """Choose a token for each row.

    Args:
        logits: [R, vocabulary] in fp32; not kept.
        rows: what each row wants, R of them.
        allowed: see ``Ops.draw``.
    """
    finite = _sound(logits, ops)
    telling = [i for i, row in enumerate(rows) for _ in _told(row, 0)]
    raw = logits[_ints(telling, logits)] if telling else None
    _add_bias(logits, rows)
    _forbid_stops(logits, rows)
    _penalise(logits, rows)
    tokens = ops.draw(logits, rows, None if allowed is None else allowed.to(logits.device))
    if raw is None:
        return Chosen(tokens, finite)
    width = max(rows[i].params.logprobs or 0 for i in telling)
    return Chosen(tokens, finite, ops.logprobs_of(raw, _told_tokens(rows, tokens, telling), width))


def _sound(logits: Tensor, ops: Ops) -> Tensor:
    """Which rows are numbers: [R]. The others are zeroed: no kernel has to draw from them."""
    finite = ops.sound(logits)
    if logits.is_cuda or not finite.all():  # a GPU is not waited for
        logits.masked_fill_(~finite[:, None], 0.0)
    return finite


def _told_tokens(rows: Sequence[LogitRow], tokens: Tensor, telling: Sequence[int]) -> Tensor:
    told = tokens[_ints(telling, tokens)]
    second = [i for i in range(1, len(telling)) if telling[i] == telling[i - 1]]
    if second:
        spares = [rows[telling[i]].spare or 0 for i in second]
        told[_ints(second, tokens)] = _ints(spares, tokens)
    return told


def _floats(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def _ints(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _add_bias(logits: Tensor, rows: Sequence[LogitRow]) -> None:
    entries = [(i, t, b) for i, row in enumerate(rows) for t, b in row.params.logit_bias]
    if entries:
        index, tokens, biases = zip(*entries, strict=True)
        where = (_ints(index, logits), _ints(tokens, logits))
        logits.index_put_(where, _floats(biases, logits), accumulate=True)


def _forbid_stops(logits: Tensor, rows: Sequence[LogitRow]) -> None:
    """Before ``min_tokens`` no stop token can be chosen."""
    early = [
        (i, token)
        for i, row in enumerate(rows)
        if row.position < row.params.min_tokens
        for token in row.params.stop_token_ids
    ]
    if early:
        index, tokens = zip(*early, strict=True)
        logits[_ints(index, logits), _ints(tokens, logits)] = -torch.inf


def _penalise(logits: Tensor, rows: Sequence[LogitRow]) -> None:
    index = [i for i, row in enumerate(rows) if row.params.needs_history]
    if not index:
        return
    chosen = [rows[i] for i in index]
    where = _ints(index, logits)
    scores = logits[where]
    outputs = _counts([row.history[row.prompt_len :] for row in chosen], scores)
    seen = (outputs > 0) | (_counts([r.history[: r.prompt_len] for r in chosen], scores) > 0)
    repetition = _floats([r.params.repetition_penalty for r in chosen], logits)[:, None]
    frequency = _floats([r.params.frequency_penalty for r in chosen], logits)[:, None]
    presence = _floats([r.params.presence_penalty for r in chosen], logits)[:, None]
    repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
    scores = torch.where(seen, repeated, scores)
    scores = scores - frequency * outputs - presence * (outputs > 0)
    logits[where] = scores


def _counts(tokens: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """How often each token occurs: [rows, vocabulary]."""
    vocab_size = like.shape[1]
    flat = [row * vocab_size + token for row, ids in enumerate(tokens) for token in ids]
    counts = torch.bincount(_ints(flat, like), minlength=len(tokens) * vocab_size)
    return counts.view(len(tokens), vocab_size)

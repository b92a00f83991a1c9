"""Choose the next token of every logit row of a step, all rows at once.

Order: logit bias, minimum length, penalties, temperature, min-p, top-k, top-p, then
the likeliest after adding Gumbel noise, which samples from what is left. Reported
log-probabilities are the model's own, before any of it.

Filters are thresholds: tokens as likely as the last one kept are kept too, so the
outcome does not depend on how a sort breaks ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.reference import prefix_sum
from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.runner.logprobs import aligned, logprobs_of
from rosellm.roseinfer.runner.noise import gumbel
from rosellm.roseinfer.step import LogitRow, Sample

CANDIDATES = 1024
"""Most filters keep fewer tokens than this; only rows that keep more are sorted in full."""


@dataclass(frozen=True)
class Chosen:
    """Result on the device.

    Attributes:
        tokens: [R].
        logprobs: of the L rows that want any: those of their tokens [L], and ids and
            log-probabilities of the likeliest tokens [L, most that a row wants].
    """

    tokens: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor] | None = None

    def to_samples(self, rows: Sequence[LogitRow]) -> list[Sample]:
        """Wait for the device and hand out one Sample a row."""
        tokens = self.tokens.tolist()
        wanted = [] if self.logprobs is None else [part.tolist() for part in self.logprobs]
        logprobs = zip(*wanted, strict=True)
        samples = []
        for row, token in zip(rows, tokens, strict=True):
            count = row.params.logprobs
            if count is None:
                samples.append(Sample(token))
            else:
                chosen, ids, values = next(logprobs)
                samples.append(Sample(token, Logprobs(chosen, ids[:count], values[:count])))
        return samples


def sample(logits: Tensor, rows: Sequence[LogitRow]) -> Chosen:
    """Choose a token for each row.

    Args:
        logits: [R, vocabulary] in fp32; not kept.
        rows: what each row wants, R of them.
    """
    telling = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    raw = logits[_ints(telling, logits)] if telling else None
    _add_bias(logits, rows)
    _forbid_stops(logits, rows)
    _penalise(logits, rows)
    tokens = logits.argmax(dim=-1)
    random = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if random:
        index = _ints(random, logits)
        tokens[index] = _draw(logits[index], [rows[i] for i in random])
    if raw is None:
        return Chosen(tokens)
    width = max(rows[i].params.logprobs or 0 for i in telling)
    return Chosen(tokens, logprobs_of(raw, tokens[_ints(telling, logits)], width))


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

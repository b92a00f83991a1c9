"""A sequence's part of a step, as the runner is told it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from rosellm.roseinfer.grammar.constraint import Constraint
from rosellm.roseinfer.grammar.masks import Masked
from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.step import UNKNOWN, LogitRow, Scoring, Work


def work_of(sequence: Sequence, count: int, drafts: tuple[int, ...]) -> Work:
    """Its next ``count`` tokens, and drafts behind them."""
    start = sequence.num_scheduled
    last = count == sequence.pending
    awaits = sequence.awaited if start == len(sequence.tokens) else None
    known = (UNKNOWN,) if awaits is not None else sequence.tokens[start : start + count]
    return Work(
        sequence=sequence.number,
        start=start,
        tokens=(*known, *drafts),
        tables=tuple(tuple(table) for table in sequence.kv.tables),
        logits=_rows(sequence, start, count, drafts) if last and sequence.samples else (),
        scoring=_scoring(sequence, start, count),
        pool=last and sequence.want == "pooled",
        awaits=awaits,
    )


def settled(sequence: Sequence, work: Work) -> Work:
    """The same when what it awaits has come back. What has ended meanwhile may compute anything."""
    if work.awaits is None:
        return work
    came = work.start < len(sequence.tokens)
    token = sequence.tokens[work.start] if came else UNKNOWN
    rows = tuple(
        msgspec.structs.replace(row, history=(*row.history[:-1], token) if row.history else ())
        for row in work.logits
    )
    return msgspec.structs.replace(work, tokens=(token,), logits=rows, awaits=None)


def masked(sequence: Sequence, work: Work, row: int) -> Iterator[Masked]:
    """A sequence's logit rows, if a grammar constrains them; the first is the step's ``row``-th."""
    if sequence.constraint is None:
        return
    first = work.logits[0].offset + 1 if work.logits else 0
    for index, logit in enumerate(work.logits):
        drafts = work.tokens[first : logit.offset + 1]
        may_stop = logit.position >= sequence.params.min_tokens
        yield Masked(row + index, sequence.constraint, drafts, may_stop)


def _rows(
    sequence: Sequence, start: int, count: int, drafts: tuple[int, ...]
) -> tuple[LogitRow, ...]:
    """Those behind its last known token, or the one that is awaited, and behind each draft."""
    end = start + count
    known = _history(sequence, end) if sequence.params.needs_history else None
    return tuple(
        LogitRow(
            offset=count - 1 + index,
            params=sequence.params,
            choice=sequence.choice,
            position=end - sequence.prompt_len + index,
            history=() if known is None else (*known, *drafts[:index]),
            prompt_len=sequence.prompt_len,
            spare=_spare(sequence, sequence.constraint),
        )
        for index in range(1 + len(drafts))
    )


def _history(sequence: Sequence, end: int) -> list[int]:
    """Its tokens; one that is awaited is not known."""
    return [*sequence.tokens, *[UNKNOWN] * (end - len(sequence.tokens))]


def _spare(sequence: Sequence, constraint: Constraint | None) -> int | None:
    """A token whose score may be told in the place of the sampled one's."""
    if constraint is None or not sequence.tells_spares:
        return None
    return constraint.spare(sequence.room)


def _scoring(sequence: Sequence, start: int, count: int) -> Scoring | None:
    """The chunk's prompt positions that have not been reported yet."""
    if not sequence.unscored:
        return None
    first = max(start, sequence.num_scored)
    targets = sequence.tokens[first + 1 : min(start + count + 1, sequence.prompt_len)]
    top = sequence.params.prompt_logprobs or 0
    return Scoring(first - start, tuple(targets), top) if targets else None

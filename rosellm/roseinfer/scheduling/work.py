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
    known = [*sequence.tokens, *([] if awaits is None else [UNKNOWN])]
    rows = range(1 + len(drafts)) if last and sequence.samples else ()
    return Work(
        sequence=sequence.number,
        start=start,
        tokens=(*known[start : start + count], *drafts),
        tables=tuple(tuple(table) for table in sequence.kv.tables),
        logits=tuple(_row(sequence, known, count - 1, drafts[:index]) for index in rows),
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


def _row(sequence: Sequence, known: list[int], last: int, drafts: tuple[int, ...]) -> LogitRow:
    """The row after these drafts, which stand behind the work item's ``last`` known token."""
    params = sequence.params
    return LogitRow(
        offset=last + len(drafts),
        params=params,
        choice=sequence.choice,
        position=len(known) - sequence.prompt_len + len(drafts),
        history=(*known, *drafts) if params.needs_history else (),
        prompt_len=sequence.prompt_len,
        spare=_spare(sequence, sequence.constraint),
    )


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

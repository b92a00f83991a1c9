"""The deltas of one job, put together into what the library returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from rosellm.roseinfer.llm.results import Choice, Completion, FinishReason, TokenLogprob
from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.server.delta import Delta, TokenLogprobs
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.spelling import Spelling, text_of
from rosellm.roseinfer.text.tokenizer import Tokenizer


@dataclass
class _Parts:
    """What one choice has come to so far."""

    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason = "length"


class Gathered:
    """Takes deltas in; gives the whole when the last one is there.

    Attributes:
        prompt: log-probabilities of the prompt's tokens from the second on, if asked for.
        vector: if asked for, see ``Delta``.
    """

    def __init__(self, job: Job) -> None:
        self.prompt: list[Logprobs] = []
        self.vector = b""
        self.tokens = 0
        self._job = job
        self._cached = 0
        self._choices = [_Parts() for _ in range(job.n)]

    @property
    def job(self) -> Job:
        return self._job

    def add(self, delta: Delta) -> None:
        parts = self._choices[delta.index]
        parts.text.append(delta.text)
        parts.ids += delta.ids
        parts.scores += delta.logprobs
        if delta.finish is not None:
            parts.finish = cast(FinishReason, delta.finish)  # the others are raised as errors
        self.prompt += delta.prompt
        self.vector += delta.vector or b""
        self.tokens += len(delta.ids)
        self._cached += delta.cached

    def completion(self, tokenizer: Tokenizer) -> Completion:
        job = self._job
        tokenizer = job.reader(tokenizer)
        return Completion(
            prompt_token_ids=tuple(job.prompt),
            cached_tokens=self._cached,
            choices=tuple(self._choice(parts, tokenizer) for parts in self._choices),
            prompt_logprobs=None
            if job.params.prompt_logprobs is None
            else prompt_logprobs(tokenizer, job.prompt, self.prompt),
        )

    def _choice(self, parts: _Parts, tokenizer: Tokenizer) -> Choice:
        job = self._job
        spelling = Spelling(tokenizer, job.prompt if job.continues else ())
        return Choice(
            text="".join(parts.text),
            token_ids=tuple(parts.ids),
            finish_reason=parts.finish,
            logprobs=None
            if job.params.logprobs is None
            else _scored(spelling, ((entry.id, entry.scores) for entry in parts.scores)),
        )


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], scores: Sequence[Logprobs]
) -> tuple[TokenLogprob, ...]:
    """Of the tokens from the second on."""
    return _scored(Spelling(tokenizer, prompt[:1]), zip(prompt[1:], scores, strict=True))


def spelt(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's own text; together they are that of all."""
    spelling = Spelling(tokenizer)
    out = []
    for id in ids:
        out.append(text_of(spelling.bytes(id)))
        spelling.advance(id)
    return tuple(out)


def _scored(spelling: Spelling, tokens: Iterable[tuple[int, Logprobs]]) -> tuple[TokenLogprob, ...]:
    out = []
    for id, scores in tokens:
        likeliest = zip(scores.top_ids, scores.top, strict=True)
        top = tuple(_one(spelling, each, logprob) for each, logprob in likeliest)
        out.append(_one(spelling, id, scores.chosen, top))
        spelling.advance(id)
    return tuple(out)


def _one(
    spelling: Spelling, id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    own = spelling.bytes(id)
    return TokenLogprob(id, text_of(own), own, logprob, top)

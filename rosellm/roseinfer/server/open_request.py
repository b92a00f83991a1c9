"""One request in flight: the engine's rows become deltas, and another engine is told where it is.

Knows rows and text, and neither HTTP nor response shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.messages import Add, Output, RowError
from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.answer_reader import AnswerReader
from rosellm.roseinfer.server.delta import Delta, Finish, TokenLogprobs
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.speculation.prediction import Alignment
from rosellm.roseinfer.text.parts import Parts
from rosellm.roseinfer.text.tokenizer import Tokenizer


class OpenRequest:
    """What is known of one request in flight."""

    def __init__(
        self, id: int, job: Job, first_index: int, answer: Answer, tokenizer: Tokenizer
    ) -> None:
        self.answer = answer
        self._id = id
        self.job = job
        self._sent = False
        self._begun = False
        self._scored = 0  # prompt positions that have been told
        self._skip = 0  # those of them that a new engine tells once more
        reader = job.reader(tokenizer)
        self._choices = [_OpenChoice(job, first_index + choice, reader) for choice in range(job.n)]

    @property
    def finished(self) -> bool:
        return all(choice.finish for choice in self._choices)

    @property
    def progress(self) -> int:
        """What has come of it so far: tokens, and scored positions of the prompt."""
        return self._scored + sum(len(choice.tokens) for choice in self._choices)

    def message(self) -> Add:
        """What an engine that does not know this request is told, answered so far or not."""
        resumed, self._sent = self._sent, True
        job, self._skip = self.job, self._scored
        open = [index for index, choice in enumerate(self._choices) if not choice.finish]
        begun = any(choice.tokens for choice in self._choices)
        params = replace(job.params, prompt_logprobs=None) if begun else job.params
        return Add(
            id=self._id,
            prompt=job.prompt,
            params=params,
            n=job.n,
            generated=[[] if choice.finish else list(choice.tokens) for choice in self._choices]
            if begun
            else [],
            tenant=job.tenant,
            share=job.share,
            priority=job.priority,
            cache_salt=job.cache_salt,
            want=job.want,
            grammar=job.grammar,
            prediction=job.prediction,
            deadline=job.deadline,
            choices=open if len(open) < job.n else [],
            resumed=resumed,
        )

    def take(self, row: Output) -> None:
        """Turn a row into a delta, or raise what it says."""
        if row.error is not None or row.finish in ("error", "abort"):
            raise refusal(row.error or RowError("the engine ended this request", 503))
        self._take_scores(row)
        choice = self._choices[row.choice]
        if choice.finish is None:
            self.answer.put(choice.feed(row, cached=0 if self._begun else row.cached))
        self._begun = True
        if row.last and not self.finished:
            raise RequestError("the engine left an answer unfinished", status=500)

    def _take_scores(self, row: Output) -> None:
        """Count the prompt's scores, and leave out those that have been told before."""
        scores = row.prompt_logprobs or []
        again = min(self._skip, len(scores))
        self._skip -= again
        self._scored += len(scores) - again
        row.prompt_logprobs = scores[again:]


class _OpenChoice:
    """Rows of one choice on their way to deltas."""

    def __init__(self, job: Job, index: int, tokenizer: Tokenizer) -> None:
        self.finish: Finish | None = None
        self.tokens: list[int] = []
        self._index = index
        self._reasoning_tokens = 0
        self._include_stop = job.include_stop
        self._alignment = Alignment(job.prediction)
        self._reader: AnswerReader[TokenLogprobs] = AnswerReader(
            tokenizer,
            context=job.prompt if job.continues else (),
            stop=job.stop,
            min_tokens=job.params.min_tokens,
            format=job.format,
            include_stop=job.include_stop,
        )

    def feed(self, row: Output, cached: int) -> Delta:
        self.tokens += row.tokens
        parts, taken = self._read(row)
        self.finish = self._finish(row)
        ids = tuple(row.tokens[:taken])
        return Delta(
            self._index,
            parts.content,
            cached,
            self.finish,
            ids=ids,
            logprobs=tuple(self._reader.notes()),
            prompt=tuple(row.prompt_logprobs or ()),
            vector=None if row.pooled is None else row.pooled.data,
            reasoning=parts.reasoning,
            calls=parts.calls,
            reasoning_tokens=self._newly_reasoning(),
            logprob=sum(each.chosen for each in (row.logprobs or ())[:taken]),
            accepted=self._newly_accepted(ids),
            rejected=self._alignment.rejected if self.finish else 0,
            timings=row.timings,
        )

    def _finish(self, row: Output) -> Finish | None:
        ended = "stop" if self._reader.ended else row.finish
        calls = self._reader.called and self._reader.calls_are_whole
        return "tool_calls" if ended is not None and calls else ended

    def _newly_reasoning(self) -> int:
        before, self._reasoning_tokens = self._reasoning_tokens, self._reader.reasoning_tokens
        return self._reasoning_tokens - before

    def _newly_accepted(self, ids: Sequence[int]) -> int:
        before = self._alignment.accepted
        self._alignment.follow(ids)
        return self._alignment.accepted - before

    def _read(self, row: Output) -> tuple[Parts, int]:
        """The row's text, and how many of its tokens it took: none after the answer's end."""
        parts = Parts()
        # The stop token itself is counted, and shown only if asked for, even where it has a text.
        by_token = row.finish == "stop" and not row.complete
        shown = len(row.tokens) - (by_token and not self._include_stop)
        for position, token in enumerate(row.tokens[: max(0, shown)]):
            scores = TokenLogprobs(token, row.logprobs[position]) if row.logprobs else None
            parts += self._reader.read(token, scores)
            if self._reader.ended:
                return parts, position + 1
        if row.finish is not None:
            parts += self._reader.finish()
        return parts, len(row.tokens)


def refusal(error: RowError) -> RequestError:
    """What a client is told of an error that the engine told."""
    return RequestError(error.message, status=error.status, code=error.code, param=error.param)

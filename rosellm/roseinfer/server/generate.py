"""The one generate path: prompts in, an async iterator of ``Delta`` out.

Every route uses it, streaming or not. It knows engine rows and text, and neither
HTTP nor response shapes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol

from msgspec.structs import replace

from rosellm.roseinfer.engine.client import EngineClient
from rosellm.roseinfer.errors import EngineDeadError, RequestError
from rosellm.roseinfer.messages import (
    TIMED_OUT,
    Abort,
    Add,
    FinishReason,
    Logprobs,
    Output,
    Outputs,
    Progress,
    Ready,
    RowError,
    Stats,
    Timings,
    Want,
)
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server.answer_reader import AnswerReader
from rosellm.roseinfer.server.readmission import Readmission
from rosellm.roseinfer.speculation.prediction import Alignment
from rosellm.roseinfer.text.answer_parser import PLAIN, AnswerFormat
from rosellm.roseinfer.text.parts import Call, Parts
from rosellm.roseinfer.text.shown_specials import ShownSpecials
from rosellm.roseinfer.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LONGEST_TIMER_S = 1e7  # longer ones are not told from none by event loops

Finish = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True)
class Job:
    """One prompt and what to make of it.

    Attributes:
        prompt: token ids, at least one.
        n: number of choices.
        stop: strings that end a choice; the text before the match is its answer.
        continues: whether the text goes on where the prompt's ends (completions), or is an
            answer that starts anew (chat).
        want: new tokens, or the prompt's vector (then only ``prompt`` counts).
        skip_special_tokens: whether special tokens give no text.
        format: what its answers hold beside text.
        include_stop: show the stop string, or the stop token's text, that ended the answer.
        grammar: what the answer must match, see ``Add``.
        prediction: token ids that its answers may turn out to be.
        tenant: who asks, see ``Add``.
        deadline: see ``Add``.
    """

    prompt: list[int]
    params: SamplingParams
    n: int = 1
    stop: tuple[str, ...] = ()
    continues: bool = False
    priority: int = 0
    cache_salt: str = ""
    want: Want = "tokens"
    skip_special_tokens: bool = True
    format: AnswerFormat = PLAIN
    include_stop: bool = False
    grammar: str = ""
    prediction: list[int] = field(default_factory=list)
    tenant: str = ""
    deadline: float | None = None

    def reader(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer as it reads this job's tokens."""
        if not self.skip_special_tokens:
            return ShownSpecials(tokenizer)
        markers = {tokenizer.token_to_id(marker) for marker in self.format.markers}
        shown = tokenizer.special_ids.intersection(id for id in markers if id is not None)
        return ShownSpecials(tokenizer, shown) if shown else tokenizer


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token of an answer, and how likely the model found it and others in its place."""

    id: int
    scores: Logprobs


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one choice.

    Attributes:
        index: of the choice among those of all jobs, job by job.
        text: may be empty while bytes or a possible stop string are held back.
        cached: prompt tokens found in the prefix cache.
        finish: why the choice ended, or None.
        ids: the tokens that it took, the one that stopped it included.
        logprobs: of the tokens whose text is out by now, if asked for.
        prompt: the next prompt positions' log-probabilities, if asked for.
        reasoning: what comes of the reasoning.
        calls: of tools, each complete.
        reasoning_tokens: how many tokens have turned out to be reasoning.
        vector: of a request that wants one, see ``Pooled``.
        logprob: of all its ``ids`` together, if log-probabilities are asked for.
        accepted: tokens of the prediction that are among the ``ids``.
        rejected: with ``finish``, those that the choice does not have.
        timings: what the engine told of them with this news.
    """

    index: int
    text: str
    cached: int = 0
    finish: Finish | None = None
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt: tuple[Logprobs, ...] = ()
    vector: bytes | None = None
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    reasoning_tokens: int = 0
    logprob: float = 0.0
    accepted: int = 0
    rejected: int = 0
    timings: Timings | None = None


class Watcher(Protocol):
    """Sees all that an answer is made of, as it comes."""

    def see(self, item: Delta | Exception) -> None: ...
    def end(self) -> None:
        """Nothing more will come."""


class Pipeline:
    """Sends requests to the engine and turns its rows into text.

    All methods run on the event loop's thread.
    """

    def __init__(self, client: EngineClient, tokenizer: Tokenizer) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._ids = itertools.count(1)
        self._open: dict[int, _Request] = {}
        self._closed: Exception | None = None
        self.stats = Stats()
        self.dead = asyncio.Event()
        self.death = ""
        self.restarts = 0
        self._readmission = Readmission(self._send_again)

    async def start(self, on_progress: Callable[[Progress], None] = lambda _: None) -> Ready:
        """Wait until the engine serves.

        Raises:
            ModelError, ConfigError: it cannot.
        """
        return await self._client.start(
            on_progress=on_progress,
            on_outputs=self.on_outputs,
            on_death=self.on_death,
            on_restart=self.on_restart,
        )

    @property
    def trouble(self) -> str:
        """Why requests should go elsewhere for now; empty if there is no reason to."""
        return self.death or self._client.trouble

    async def stop(self) -> None:
        await self._client.stop()

    @property
    def engine_pid(self) -> int | None:
        """The engine's process, if it has one of its own."""
        return getattr(self._client, "pid", None)

    def generate(self, jobs: Sequence[Job], watchers: Sequence[Watcher] = ()) -> Answer:
        """Begin to answer these jobs together: if one fails, all do.

        Args:
            watchers: see what the answer is made of.

        Raises:
            EngineDeadError, RequestError: nothing can be generated any more.
        """
        if self._closed is not None:
            raise self._closed
        answer = Answer(self, sum(job.n for job in jobs), watchers)
        first = 0
        for job in jobs:
            answer.ids.append(self._add(job, first, answer))
            first += job.n
        answer.expires(min((j.deadline for j in jobs if j.deadline is not None), default=None))
        return answer

    def drop(self, ids: Sequence[int]) -> None:
        """Forget these requests and abort those that still run."""
        running = [id for id in ids if self._open.pop(id, None)]
        self._readmission.heard(running)
        if running and not self.dead.is_set():
            self._client.send(Abort(running))

    def expire(self, answer: Answer) -> None:
        """End what the engine still owes an answer, in case it does not see the time itself."""
        if any(id in self._open for id in answer.ids):
            answer.put(_refusal(TIMED_OUT))
            self.drop(answer.ids)

    def on_outputs(self, outputs: Outputs) -> None:
        """Hand each row to the request it belongs to; rows of dropped requests are ignored."""
        self.stats = outputs.stats
        for row in outputs.rows:
            request = self._open.get(row.id)
            if request is not None:
                self._take(request, row)
        self._readmission.heard({row.id for row in outputs.rows})

    def on_restart(self) -> None:
        """Give a new engine every open request, with what the one before it has answered."""
        self.restarts += 1
        fault = self._readmission.restart(self._open)
        if fault is not None:
            message = "the engine has died over this request, more than once"
            error = RequestError(message, status=500, code="engine_error")
            self._open.pop(fault).answer.put(error)

    def _send_again(self, id: int) -> None:
        self._client.send(self._open[id].message(resumed=True))

    def on_death(self, reason: str) -> None:
        """End every open request with an error, and refuse all later ones."""
        self.death = reason
        self.dead.set()
        self.close(EngineDeadError(reason))

    def close(self, error: Exception) -> None:
        """End every open request with this error, and refuse all later ones with it."""
        self._closed = error
        for request in list(self._open.values()):
            request.answer.put(error)
        self.drop(list(self._open))

    def _add(self, job: Job, first_index: int, answer: Answer) -> int:
        id = next(self._ids)
        request = _Request(id, job, first_index, answer, self._tokenizer)
        self._open[id] = request
        self._client.send(request.message())
        return id

    def _take(self, request: _Request, row: Output) -> None:
        try:
            request.take(row)
            ended = request.finished
        except Exception as error:  # of this request alone: its neighbours go on
            request.answer.put(error)
            ended = True
        if row.last:
            self._open.pop(row.id, None)
        elif ended:
            self.drop([row.id])


class Answer:
    """The deltas of one ``generate`` call. Close it: what is unfinished then is aborted."""

    def __init__(self, pipeline: Pipeline, choices: int, watchers: Sequence[Watcher] = ()) -> None:
        self.ids: list[int] = []
        self.choices = choices
        self._pipeline = pipeline
        self._unfinished = choices
        self._queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._peeked: Delta | None = None
        self._watchers = watchers
        self._timer: asyncio.TimerHandle | None = None

    def expires(self, deadline: float | None) -> None:
        """End it with an error at this time, by ``time.monotonic``."""
        if deadline is not None:
            delay = min(max(0.0, deadline - time.monotonic()), LONGEST_TIMER_S)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay, self._pipeline.expire, self)

    @property
    def unfinished(self) -> int:
        """Choices whose end has not been taken from here."""
        return self._unfinished

    def put(self, item: Delta | Exception) -> None:
        self._queue.put_nowait(item)
        for watcher in self._watchers:
            watcher.see(item)

    async def begin(self) -> None:
        """Wait for the first news, so that an error known by then can be raised here."""
        try:
            self._peeked = await self.__anext__()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pipeline.drop(self.ids)
        watchers, self._watchers = self._watchers, ()
        for watcher in watchers:
            watcher.end()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delta:
        if self._peeked is not None:
            delta, self._peeked = self._peeked, None
            return delta
        if not self._unfinished:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._unfinished -= item.finish is not None
        return item

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


class _Request:
    """What is known of one request in flight."""

    def __init__(
        self, id: int, job: Job, first_index: int, answer: Answer, tokenizer: Tokenizer
    ) -> None:
        self.answer = answer
        self._id = id
        self._job = job
        self._begun = False
        self._scored = 0  # prompt positions that have been told
        self._skip = 0  # those of them that a new engine tells once more
        reader = job.reader(tokenizer)
        self._choices = [_Choice(job, first_index + choice, reader) for choice in range(job.n)]

    @property
    def finished(self) -> bool:
        return all(choice.finish for choice in self._choices)

    def message(self, resumed: bool = False) -> Add:
        """What an engine that does not know this request is told, answered so far or not."""
        job, self._skip = self._job, self._scored
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
            raise _refusal(row.error or RowError("the engine ended this request", 503))
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


class _Choice:
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
        return "tool_calls" if ended is not None and self._reader.called else ended

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


def _refusal(error: RowError) -> RequestError:
    return RequestError(error.message, status=error.status, code=error.code, param=error.param)

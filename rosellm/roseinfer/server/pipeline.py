"""The one generate path: jobs in, an async iterator of ``Delta`` out.

Every route uses it, streaming or not. It numbers requests, sends them to the engine, hands its rows
to them, and gives them to another engine when the first one dies. It knows neither HTTP nor text.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence

import msgspec

from rosellm.roseinfer.engine.client import EngineClient
from rosellm.roseinfer.engine.listener import EngineListener, OnProgress
from rosellm.roseinfer.errors import EngineDeadError
from rosellm.roseinfer.messages import (
    TIMED_OUT,
    Abort,
    Output,
    Outputs,
    Progress,
    Ready,
    Stats,
)
from rosellm.roseinfer.server.answer import Answer, Watcher
from rosellm.roseinfer.server.convicts import Convicts, at_fault
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.off_loop import Slices
from rosellm.roseinfer.server.open_request import OpenRequest, refusal
from rosellm.roseinfer.server.readmission import Readmission
from rosellm.roseinfer.server.step_sizes import StepSizes
from rosellm.roseinfer.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Pipeline(EngineListener):
    """Sends requests to the engine and turns its rows into text.

    All methods run on the event loop's thread.
    """

    def __init__(self, client: EngineClient, tokenizer: Tokenizer) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._ids = itertools.count(1)
        self._open: dict[int, OpenRequest] = {}
        self._closed: Exception | None = None
        self.stats = Stats()
        self.step_sizes = StepSizes()
        self.dead = asyncio.Event()
        self.death = ""
        self.restarts = 0
        self._readmission = Readmission(self._send, lambda id: self._open[id].progress)
        self._convicts = Convicts()

    async def start(self, on_progress: OnProgress = lambda _: None) -> Ready:
        """Wait until the engine serves.

        Raises:
            ModelError, ConfigError: it cannot.
        """
        self._report = on_progress
        return await self._client.start(self)

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

    async def generate(self, jobs: Sequence[Job], watchers: Sequence[Watcher] = ()) -> Answer:
        """Begin to answer these jobs together: if one fails, all do.

        Of very many, the first ones may be answered before the last ones are begun.

        Args:
            watchers: see what the answer is made of.

        Raises:
            EngineDeadError, RequestError: nothing can be generated any more.
        """
        self._check_open()
        if any(job in self._convicts for job in jobs):
            raise at_fault()
        answer = Answer(self, sum(job.n for job in jobs), watchers)
        answer.expires(min((j.deadline for j in jobs if j.deadline is not None), default=None))
        try:
            await self._begin(jobs, answer)
        except BaseException:
            answer.close()
            raise
        return answer

    async def _begin(self, jobs: Sequence[Job], answer: Answer) -> None:
        first, slices = 0, Slices()
        for job in jobs:
            self._check_open()
            answer.ids.append(self._add(job, first, answer))
            first += job.n
            await slices.pause()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def drop(self, ids: Sequence[int]) -> None:
        """Forget these requests and abort those that still run."""
        running = [id for id in ids if self._open.pop(id, None)]
        self._readmission.gone(running)
        if running and not self.dead.is_set():
            self._client.send(Abort(running))

    def expire(self, answer: Answer) -> None:
        """End what the engine still owes an answer, in case it does not see the time itself."""
        if any(id in self._open for id in answer.ids):
            answer.put(refusal(TIMED_OUT))
            self.drop(answer.ids)

    def on_progress(self, progress: Progress) -> None:
        self._report(progress)

    def on_outputs(self, outputs: Outputs) -> None:
        """Hand each row to the request it belongs to; rows of dropped requests are ignored."""
        self.stats = outputs.stats
        self.step_sizes.see(outputs.stats)
        for row in outputs.rows:
            request = self._open.get(row.id)
            if request is not None:
                self._take(request, row)
        self._readmission.heard()

    def on_loss(self) -> int:
        """See who was at fault, if anybody was, and end that request with an error."""
        fault, explained = self._readmission.lost()
        if fault is not None:
            request = self._open.pop(fault)
            self._convicts.add(request.job)
            request.answer.put(at_fault())
            log.error("the engine died over one request, which has ended with an error")
        self.stats = self._between_engines()
        return explained

    def _between_engines(self) -> Stats:
        """Whatever is open waits, no block is in use; counts stay until there are new ones."""
        jobs = [request.job for request in self._open.values()]
        return msgspec.structs.replace(
            self.stats,
            running=0,
            waiting=sum(job.n for job in jobs),
            waiting_tokens=sum(len(job.prompt) for job in jobs),
            waiting_grammar=0,
            blocks_free=self.stats.blocks_total,
            blocks_used=0,
            blocks_cached=0,
        )

    def on_restart(self) -> None:
        """Give a new engine every open request, with what the one before it has answered."""
        self.restarts += 1
        self._readmission.restart()

    def _send(self, id: int) -> None:
        self._client.send(self._open[id].message())

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
        request = OpenRequest(id, job, first_index, answer, self._tokenizer)
        self._open[id] = request
        self._readmission.admit(id)
        return id

    def _take(self, request: OpenRequest, row: Output) -> None:
        try:
            request.take(row)
            ended = request.finished
        except Exception as error:  # of this request alone: its neighbours go on
            request.answer.put(error)
            ended = True
        if row.last:
            if self._open.pop(row.id, None) is not None:
                self._readmission.gone([row.id])
        elif ended:
            self.drop([row.id])

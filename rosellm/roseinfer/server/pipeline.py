"""The one generate path: jobs in, an async iterator of ``Delta`` out.

Every route uses it, streaming or not. It numbers requests, sends them to the engine, hands its rows
to them, and gives them to another engine when the first one dies. It knows neither HTTP nor text.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from rosellm.roseinfer.engine.client import EngineClient
from rosellm.roseinfer.engine.listener import EngineListener, OnProgress
from rosellm.roseinfer.errors import EngineDeadError, RequestError
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
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.open_request import OpenRequest, refusal
from rosellm.roseinfer.server.readmission import Readmission
from rosellm.roseinfer.text.tokenizer import Tokenizer


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
        self.dead = asyncio.Event()
        self.death = ""
        self.restarts = 0
        self._readmission = Readmission(self._send_again)

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
            answer.put(refusal(TIMED_OUT))
            self.drop(answer.ids)

    def on_progress(self, progress: Progress) -> None:
        self._report(progress)

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
        request = OpenRequest(id, job, first_index, answer, self._tokenizer)
        self._open[id] = request
        self._client.send(request.message())
        return id

    def _take(self, request: OpenRequest, row: Output) -> None:
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

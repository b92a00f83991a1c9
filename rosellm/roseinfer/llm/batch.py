"""Many jobs through the one pipeline, as many at a time as keep the engine busy."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.llm.gather import Gathered
from rosellm.roseinfer.llm.progress_bar import OnCount
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.pipeline import Pipeline


class Window:
    """How many choices may be in flight; the rest wait here, first come, first served.

    The engine's queue is bounded and refuses what is beyond it. Lives on one loop.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, choices: int) -> None:
        """Wait for room. One with more choices than the window has places gets it alone."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((choices, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came in just now
                self.leave(choices)
            raise

    def leave(self, choices: int) -> None:
        self._used -= choices
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            choices, turn = self._waiting[0]
            if not turn.cancelled():
                if self._used and self._used + choices > self._size:
                    return
                self._used += choices
                turn.set_result(None)
            self._waiting.popleft()


async def run_all(
    pipeline: Pipeline, window: Window, jobs: Sequence[Job], count: OnCount
) -> list[Gathered]:
    """Every job's deltas, in the order of the jobs. If one fails, all are aborted.

    Raises:
        RequestError: the engine refused one; the message says which.
        EngineDeadError: it has ended.
    """
    done = [Gathered(job) for job in jobs]
    try:
        async with asyncio.TaskGroup() as group:
            for index, gathered in enumerate(done):
                await window.enter(gathered.job.n)
                task = group.create_task(_run(pipeline, gathered, index, len(jobs), count))
                # Not in the task itself, which may be cancelled before it has begun.
                task.add_done_callback(partial(_leave, window, gathered.job.n))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return done


async def _run(
    pipeline: Pipeline, gathered: Gathered, index: int, total: int, count: OnCount
) -> None:
    try:
        with await pipeline.generate([gathered.job]) as answer:
            read = len(gathered.job.prompt)
            async for delta in answer:
                gathered.add(delta)
                count(0, read, len(delta.ids))
                read = 0
        count(1, 0, 0)
    except RequestError as error:
        raise located(error, index, total) from error


def _leave(window: Window, choices: int, _: asyncio.Task[None]) -> None:
    window.leave(choices)


def located(error: RequestError, index: int, total: int) -> RequestError:
    """The same refusal, which says which of several prompts it is about."""
    if total == 1:
        return error
    return RequestError(
        f"prompt {index}: {error}", status=error.status, param=error.param, code=error.code
    )

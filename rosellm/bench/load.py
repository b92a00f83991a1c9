"""Sends requests and times their answers.

Closed loop: so many requests are open at any time, each answered one makes room for the next.
Open loop: requests are sent when they are due, however many are open; the only way to see what
a server does under more load than it can take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rosellm.bench.exchange import ExchangeError, Server, exchange
from rosellm.bench.record import Recorder, error_message


@dataclass(frozen=True)
class Prepared:
    """A request ready to be sent, so that making it costs no time while others are timed.

    Attributes:
        arrival: when it is due, in seconds after the start; None in a closed loop.
    """

    path: str
    body: bytes
    arrival: float | None = None


@dataclass(frozen=True)
class Outcome:
    """One request as it went. Times are ``time.perf_counter()``, in seconds.

    Attributes:
        started: before its connection was opened.
        first, end: arrival of the first text and of the end.
        gaps: between neighbouring chunks of text.
        counted: whether the token counts are the server's; else chunks were counted.
        late: how long after it was due it was sent.
        error: why it failed; the other figures are then not to be used.
    """

    started: float
    connected: float = 0.0
    first: float = 0.0
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    counted: bool = True
    late: float = 0.0
    error: str | None = None


Ask = Callable[[Prepared, float], Awaitable[Outcome]]
"""Sends a request; the number is by how many seconds it is late."""


async def ask(
    server: Server, request: Prepared, late: float = 0.0, timeout: float = 600.0
) -> Outcome:
    """Send one request and take its stream in. Failures are outcomes too."""
    started = time.perf_counter()
    recorder = Recorder()
    try:
        async with asyncio.timeout(timeout):
            answer = await exchange(server, request.path, request.body, recorder.feed)
    except TimeoutError:
        return Outcome(started, error=f"no whole answer within {timeout:g} s")
    except ExchangeError as error:
        return Outcome(started, error=recorder.error or str(error))
    if answer.status != 200:
        return Outcome(started, error=f"HTTP {answer.status}: {error_message(answer.body)}")
    if recorder.error or recorder.end is None:
        return Outcome(started, error=recorder.error or "a stream without a finish reason")
    return _outcome(started, answer.connected, late, recorder, recorder.end)


def _outcome(
    started: float, connected: float, late: float, recorder: Recorder, end: float
) -> Outcome:
    times, usage = recorder.times, recorder.usage
    return Outcome(
        started,
        connected,
        first=times[0] if times else end,
        end=max(end, *times[-1:], end),
        gaps=[after - before for before, after in pairwise(times)],
        prompt_tokens=usage.prompt_tokens if usage else 0,
        output_tokens=usage.completion_tokens if usage else len(times),
        counted=usage is not None,
        late=late,
    )


async def closed_loop(
    requests: Iterable[Prepared], concurrency: int, send: Ask, done: Callable[[Outcome], None]
) -> None:
    """Keep ``concurrency`` requests open until all are answered."""
    source = iter(requests)

    async def work() -> None:
        for request in source:
            done(await send(request, 0.0))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())


async def open_loop(
    requests: Sequence[Prepared], send: Ask, done: Callable[[Outcome], None]
) -> None:
    """Send every request when it is due."""
    start = time.perf_counter()

    async def work(request: Prepared, late: float) -> None:
        done(await send(request, late))

    async with asyncio.TaskGroup() as group:
        for request in requests:
            due = start + (request.arrival or 0.0)
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            group.create_task(work(request, time.perf_counter() - due))

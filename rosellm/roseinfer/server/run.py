"""The life of the server process: load, serve, and end in order, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Iterator
from typing import TypeVar

import uvicorn

from rosellm.roseinfer.demo import ABOUT
from rosellm.roseinfer.engine.client import EngineClient
from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server import edge, listen, logs, report
from rosellm.roseinfer.server.app import create_app
from rosellm.roseinfer.server.flags import Options
from rosellm.roseinfer.server.generate import Pipeline
from rosellm.roseinfer.server.load import load_service
from rosellm.roseinfer.server.service import Service

log = logging.getLogger(__name__)

MOURNING_S = 3.0  # /health says 503 this long after the engine's death, for load balancers to see
GRACE_S = 5.0  # for requests in flight when told to stop

T = TypeVar("T")


def run(options: Options, sock: socket.socket, client: EngineClient) -> int:
    """Run the event loop until the server has ended. Returns the exit code."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(_live(options, sock, client))


async def _live(options: Options, sock: socket.socket, client: EngineClient) -> int:
    stop = _StopSignals()
    try:
        service = await stop.unless_told(_load(options, client))
        gc.freeze()
        gc.enable()
        return 0 if service is None else await _serve(service, sock, stop, options)
    finally:
        await client.stop()


async def _load(options: Options, client: EngineClient) -> Service:
    with report.loading() as show:
        return await load_service(options, client, show)


def _about(options: Options) -> str:
    """What there is to say of the model beside its name."""
    return f"{ABOUT}; another one: rosellm serve MODEL" if options.serves_demo else ""


async def _serve(
    service: Service, sock: socket.socket, stop: _StopSignals, options: Options
) -> int:
    key = os.environ.get(listen.KEY_VARIABLE)
    server = _server(service, key, _limits(options))
    about = _about(options)
    listen.listen(sock)
    url = listen.url(sock)
    text = report.summary(service.name, service.ready, url, needs_key=bool(key), about=about)
    logs.say(text, "serving", **report.facts(service.name, service.ready, url))
    endings = [
        asyncio.ensure_future(_end_when_told(server, service.pipeline, stop)),
        asyncio.ensure_future(_end_when_dead(server, service.pipeline)),
    ]
    with service.metrics.loop_lag.measured():
        await server.serve(sockets=[sock])
    if service.tracing is not None:
        await asyncio.to_thread(service.tracing.close)
    for ending in endings:
        ending.cancel()
    return 1 if service.pipeline.dead.is_set() else 0


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _limits(options: Options) -> edge.Limits:
    asked = options.server
    return edge.Limits(
        connections=asked.max_connections,
        receipt_s=asked.request_timeout_s,
        stall_s=asked.stall_timeout_s,
    )


def _server(service: Service, key: str | None, limits: edge.Limits) -> _Server:
    return _Server(
        uvicorn.Config(
            create_app(service, key),
            http=edge.protocol(limits, service.metrics.reject),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(GRACE_S) + 2,
        )
    )


async def _end_when_told(server: _Server, pipeline: Pipeline, stop: _StopSignals) -> None:
    """Let requests in flight finish for a while; then, or told again, end them with an error."""
    await stop.told.wait()
    server.should_exit = True
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.told_again.wait(), GRACE_S)
    pipeline.fail_all(RequestError("the server is shutting down", status=503))


async def _end_when_dead(server: _Server, pipeline: Pipeline) -> None:
    await pipeline.dead.wait()
    log.error("%s; ending in %.0f s", pipeline.death, MOURNING_S)
    await asyncio.sleep(MOURNING_S)
    server.should_exit = True


class _StopSignals:
    """SIGINT and SIGTERM as events: the first one asks, the second one insists."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.told_again = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._receive)

    def _receive(self) -> None:
        (self.told_again if self.told.is_set() else self.told).set()

    async def unless_told(self, work: Awaitable[T]) -> T | None:
        """The result of ``work``, or None when told to stop before it is there."""
        task = asyncio.ensure_future(work)
        told = asyncio.ensure_future(self.told.wait())
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

"""The life of the server process: load, serve, and end in order, whatever ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from rosellm.roseinfer import logs
from rosellm.roseinfer.demo import ABOUT
from rosellm.roseinfer.engine.client import EngineClient
from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.messages import Progress
from rosellm.roseinfer.server import listen, report
from rosellm.roseinfer.server.app import create_app
from rosellm.roseinfer.server.flags import Options
from rosellm.roseinfer.server.gate import Gate
from rosellm.roseinfer.server.limits import Accounts
from rosellm.roseinfer.server.load import load_service
from rosellm.roseinfer.server.notify import notify, watch
from rosellm.roseinfer.server.reload import keys_on_hangup
from rosellm.roseinfer.server.service import Service
from rosellm.roseinfer.server.web_server import web_server

log = logging.getLogger(__name__)

_FLUSH_S = 5.0  # for what the log of requests has still to write
MOURNING_S = 3.0  # /health says 503 this long after the engine's death, for load balancers to see

T = TypeVar("T")


def run(options: Options, sock: socket.socket, client: EngineClient) -> int:
    """Run the event loop until the server has ended. Returns the exit code."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(_live(options, sock, client))


async def _live(options: Options, sock: socket.socket, client: EngineClient) -> int:
    accounts = Accounts(options.keys)
    with keys_on_hangup(accounts, options.server.api_key_file):
        return await _listen(options, sock, client, accounts)


async def _listen(
    options: Options, sock: socket.socket, client: EngineClient, accounts: Accounts
) -> int:
    stop, gate = _StopSignals(), Gate()
    server = web_server(gate, options.server, gate.refused)
    listen.listen(sock)
    answering = asyncio.ensure_future(server.serve(sockets=[sock]))
    service: Service | None = None
    try:
        service = await stop.unless_told(_load(options, client, gate))
        gc.freeze()
        gc.enable()
        if service is None:
            return 0
        with service.metrics.loop_lag.measured():
            return await _serve(service, sock, gate, stop, options, accounts)
    finally:
        server.should_exit = True
        await answering
        if service is not None and service.tracing is not None:
            await asyncio.to_thread(service.tracing.close)
        if service is not None and service.journal is not None:
            await asyncio.to_thread(service.journal.flush, _FLUSH_S)
        await client.stop()


async def _load(options: Options, client: EngineClient, gate: Gate) -> Service:
    with report.loading() as show:

        def tell(progress: Progress) -> None:
            show(progress)
            gate.loading(report.in_words(progress))

        return await load_service(options, client, tell)


def _about(options: Options) -> str:
    """What there is to say of the model beside its name."""
    return f"{ABOUT}; another one: rosellm serve MODEL" if options.serves_demo else ""


async def _serve(
    service: Service,
    sock: socket.socket,
    gate: Gate,
    stop: _StopSignals,
    options: Options,
    accounts: Accounts,
) -> int:
    """Serve until told to stop, or until the engine is dead for good. Returns the exit code."""
    gate.open(create_app(service, accounts=accounts), service.metrics.reject)
    about, needs_key = _about(options), bool(options.keys)
    url = listen.url(sock, "https" if options.server.tls_cert else "http")
    text = report.summary(service.name, service.ready, url, needs_key=needs_key, about=about)
    logs.say(text, "serving", **report.facts(service.name, service.ready, url))
    notify(f"READY=1\nSTATUS=serves {service.name} on {url}")
    pipeline = service.pipeline
    if not await _first(pipeline.dead.wait(), stop.told.wait(), watch()):
        log.error("%s; ending in %.0f s", pipeline.death, MOURNING_S)
        await _first(stop.told.wait(), asyncio.sleep(MOURNING_S))
        return 1
    notify("STOPPING=1")
    gate.close("the server is shutting down")
    await _first(gate.empty(), stop.told_again.wait(), asyncio.sleep(options.server.drain_timeout))
    pipeline.close(RequestError("the server is shutting down", status=503))
    return 1 if pipeline.dead.is_set() else 0


async def _first(*events: Coroutine[Any, Any, object]) -> int:
    """Wait for the first of these. Returns which it is."""
    tasks = [asyncio.ensure_future(event) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    done = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    return done.index(True)


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

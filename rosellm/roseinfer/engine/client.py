"""The engine as the API side sees it: started once, fed messages, heard through a listener.

``ProcessClient`` runs it in a process of its own, ``InprocClient`` on a thread, and ``Supervisor``
(``engine/supervisor.py``) in a process that is started again when it dies. All need a running
asyncio loop, on which all listeners are called.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import rosellm
from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.engine.listener import EngineListener
from rosellm.roseinfer.errors import EngineDeadError, ModelError
from rosellm.roseinfer.messages import (
    Abort,
    Add,
    Beat,
    Failed,
    Flush,
    Framer,
    FromEngine,
    Outputs,
    Progress,
    Ready,
    Start,
    decode_from_engine,
    encode,
)

if TYPE_CHECKING:
    from rosellm.roseinfer.engine.core import EngineCore

_STOP_TIMEOUT_S = 5.0


class EngineClient(Protocol):
    """An engine, wherever it runs."""

    @property
    def trouble(self) -> str:
        """Why it does not serve at this moment; empty if it does."""

    async def start(self, listener: EngineListener) -> Ready:
        """Wait until the engine serves.

        Args:
            listener: told all that the engine does from now on.

        Raises:
            ModelError: it cannot serve what it was asked to; the message says why.
            EngineDeadError: it ended without a word.
        """

    def send(self, message: Add | Abort | Flush) -> None:
        """Pass a message on; never blocks. Messages to a dead engine are dropped."""

    async def stop(self) -> None:
        """End the engine, whatever it is doing."""


class ProcessClient:
    """An engine in a child process, over a socket pair.

    The constructor starts the process, so that it can import torch while the caller
    imports what it needs itself.
    """

    trouble = ""

    def __init__(self, config: EngineConfig) -> None:
        self._sock, child = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rosellm.roseinfer.engine.process", str(child.fileno())],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
        child.close()
        self._sock.sendall(Framer.frame(encode(Start(config))))
        self._transport: asyncio.Transport | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def heard(self) -> float:
        """When it last said anything, by the loop's clock. Once it serves it beats."""
        return self._link.heard

    @property
    def stuck(self) -> bool:
        """Whether it says that its present step hangs."""
        return self._link.stuck

    def kill(self) -> None:
        """End the process now, whatever it is doing."""
        self._process.kill()

    async def start(self, listener: EngineListener) -> Ready:
        loop = asyncio.get_running_loop()
        link = _Link(listener, self._exit_reason)
        self._link = link
        self._transport, _ = await loop.create_connection(lambda: link, sock=self._sock)
        return await link.ready

    def send(self, message: Add | Abort | Flush) -> None:
        assert self._transport is not None, "start() comes first"
        if not self._transport.is_closing():
            self._transport.write(Framer.frame(encode(message)))

    async def stop(self) -> None:
        if self._transport is not None:
            self._link.ending = True
            self._transport.close()
        else:
            self._sock.close()
        await asyncio.to_thread(self._reap)

    def _reap(self) -> None:
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _exit_reason(self) -> str:
        """How the process ended, in words. Its socket is closed, so it is about to."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the engine closed its connection"
        if code < 0:
            return f"the engine was killed by signal {-code}"
        return f"the engine ended with exit code {code}"


class _Link(asyncio.Protocol):
    """The API side's end of the socket pair."""

    def __init__(self, listener: EngineListener, exit_reason: Callable[[], str]) -> None:
        self._framer = Framer()
        self._listener = listener
        self._exit_reason = exit_reason
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.ending = False  # so that the end of the stream is no news
        self.stuck = False
        self._clock = asyncio.get_running_loop().time
        self.heard = self._clock()

    def data_received(self, data: bytes) -> None:
        self.heard = self._clock()
        for payload in self._framer.feed(data):
            self._handle(decode_from_engine(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ending:
            self._farewell = asyncio.ensure_future(self._announce_death())
        elif not self.ready.done():
            self.ready.set_exception(EngineDeadError("the engine was stopped while it was loading"))

    def _handle(self, message: FromEngine) -> None:
        if isinstance(message, Outputs):
            self._listener.on_outputs(message)
        elif isinstance(message, Beat):
            self.stuck = message.stuck
        elif isinstance(message, Progress):
            self._listener.on_progress(message)
        elif isinstance(message, Failed):
            self.ending = True
            if self.ready.done():
                self._listener.on_death(message.message)
            else:
                self.ready.set_exception(ModelError(message.message))
        elif not self.ready.done():  # whoever waited may have given up
            self.ready.set_result(message)

    async def _announce_death(self) -> None:
        reason = await asyncio.to_thread(self._exit_reason)
        if self.ready.done():
            self._listener.on_death(reason)
        else:
            self.ready.set_exception(EngineDeadError(f"{reason} while it was loading"))


class InprocClient:
    """An engine on a thread of this process, which also imports torch and builds it."""

    trouble = ""

    def __init__(self, config: EngineConfig | EngineCore) -> None:
        self._config = config
        self._inbox: queue.SimpleQueue[Add | Abort | Flush | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self, listener: EngineListener) -> Ready:
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        ready: asyncio.Future[Ready] = loop.create_future()
        there = _OnLoop(loop, listener, ready, self._ended)
        # A daemon: Python ends without waiting for it where stop() is forgotten.
        self._thread = threading.Thread(
            target=self._live, args=(there,), name="engine", daemon=True
        )
        self._thread.start()
        return await ready

    def send(self, message: Add | Abort | Flush) -> None:
        self._inbox.put(message)

    def abandon(self) -> None:
        """Tell it to end, and do not wait: it may be importing torch. From any thread."""
        self._stopping.set()
        self._inbox.put(None)

    async def stop(self) -> None:
        self.abandon()
        if self._thread is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _STOP_TIMEOUT_S)
                self._thread.join()  # it has said its last word

    def _live(self, there: _OnLoop) -> None:
        try:
            core = self._build(there)
        except Exception as error:
            there.tell(_refuse, there.ready, error)
        else:
            there.tell(_accept, there.ready, core.facts)
            self._run(core, there)
        finally:
            there.tell(there.ended.set)

    def _build(self, there: _OnLoop) -> EngineCore:
        if not isinstance(self._config, EngineConfig):
            return self._config
        from rosellm.roseinfer.engine.build import build_engine

        def report(progress: Progress) -> None:
            if self._stopping.is_set():
                raise EngineDeadError("the engine was stopped while it was loading")
            there.tell(there.listener.on_progress, progress)

        return build_engine(self._config, report)

    def _run(self, core: EngineCore, there: _OnLoop) -> None:
        from rosellm.roseinfer.engine.loop import run_engine

        def emit(outputs: Outputs) -> None:
            there.tell(there.listener.on_outputs, outputs)

        try:
            run_engine(core, self._inbox, _as_is, emit)
        except Exception as error:
            reason = f"the engine failed: {type(error).__name__}: {error}"
            there.tell(there.listener.on_death, reason)
            raise


@dataclass(frozen=True)
class _OnLoop:
    """Who is told what an engine on a thread does, and the loop that it is told on."""

    loop: asyncio.AbstractEventLoop
    listener: EngineListener
    ready: asyncio.Future[Ready]
    ended: asyncio.Event

    def tell(self, what: Callable[..., object], *news: Any) -> None:
        """Call it on the loop; a loop that is closed has nobody left to listen."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what, *news)


def _accept(ready: asyncio.Future[Ready], facts: Ready) -> None:
    if not ready.done():  # whoever waited may have given up
        ready.set_result(facts)


def _refuse(ready: asyncio.Future[Ready], error: Exception) -> None:
    if not ready.done():
        ready.set_exception(error)


def _as_is(message: Add | Abort | Flush | None) -> Add | Abort | Flush | None:
    """Nothing to decode: the message never left the process."""
    return message


def child_environment() -> dict[str, str]:
    """What the engine process inherits, and that it imports this very package.

    Its OpenMP threads spin only for a moment before they sleep. By default they spin for
    milliseconds, and on a machine with something else to do (this server's own HTTP side,
    say) they keep the cores from the threads that they wait for.
    """
    root = str(Path(rosellm.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = f"{root}:{inherited}" if inherited else root
    brief = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    chosen = {} if "OMP_WAIT_POLICY" in os.environ else brief
    return {**chosen, **os.environ, "PYTHONPATH": path}

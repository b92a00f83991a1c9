"""The engine's own process: ``python -m rosellm.roseinfer.engine.process FD``.

FD is one end of a socket pair; length-prefixed msgspec messages cross it. Two threads
move bytes and nothing else: while a thread runs Python for long, every native call of
the main thread that gave the interpreter lock away waits to get it back.

The process ends when the socket does: then there is nobody left to serve.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time

from rosellm.roseinfer import logs
from rosellm.roseinfer.engine.pace import Pace
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.messages import (
    Abort,
    Add,
    Beat,
    Failed,
    Flush,
    Framer,
    FromEngine,
    Progress,
    Start,
    ToEngine,
    decode_to_engine,
    encode,
)

log = logging.getLogger(__name__)

_CHUNK = 1 << 18
_PROGRESS_INTERVAL_S = 0.05
_OUTBOX = 1024
_BEAT_S = 0.2


class _Link:
    """The socket with a reader and a writer thread; the outbox is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._outbox: queue.Queue[bytes | None] = queue.Queue(_OUTBOX)
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()

    def send(self, message: FromEngine) -> None:
        self._outbox.put(Framer.frame(encode(message)))

    def close(self) -> None:
        """Send what is queued, then stop."""
        self._outbox.put(None)
        self._writer.join(timeout=5)

    def _read(self) -> None:
        framer = Framer()
        while data := self._receive():
            for payload in framer.feed(data):
                self.inbox.put(payload)
        os._exit(0)  # the API side is gone; nothing here is worth an orderly farewell

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(_CHUNK)
        except OSError:
            return b""

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError:
                return  # the reader sees the end of the socket too


class _ProgressReporter:
    """Passes progress on, a few times a second and whenever a phase changes."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._phase = ""
        self._sent = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        due = now - self._sent >= _PROGRESS_INTERVAL_S or progress.done == progress.total
        if due or progress.phase != self._phase:
            self._phase, self._sent = progress.phase, now
            self._link.send(progress)


def _beat(link: _Link, pace: Pace) -> None:
    """Say that this process lives, and whether its main thread gets on, until it ends."""
    while True:
        link.send(Beat(pace.stuck))
        time.sleep(_BEAT_S)


def _decode(payload: bytes) -> Add | Abort | Flush:
    message: ToEngine = decode_to_engine(payload)
    assert not isinstance(message, Start), "an engine starts once"
    return message


def main(fd: int) -> int:
    """Serve until the socket closes. Returns the exit code."""
    logs.configure_child()
    # Terminals and supervisors signal the whole group; when to stop is the API process's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    link = _Link(socket.socket(fileno=fd))
    try:
        _serve(link)
    except RosellmError as error:
        link.send(Failed(str(error), exit_code=2))
        link.close()
        return 2
    except Exception as error:
        log.exception("the engine failed")
        link.send(Failed(f"the engine failed: {type(error).__name__}: {error}", exit_code=1))
        link.close()
        return 1
    return 0


def _serve(link: _Link) -> None:
    message = decode_to_engine(link.inbox.get())
    assert isinstance(message, Start), "the first message says what to load"
    report = _ProgressReporter(link)
    report(Progress("importing torch"))
    # What is made while starting stays for good: collecting among it takes a tenth of the
    # time until the first token, and later a pause in some step.
    gc.disable()
    from rosellm.roseinfer.engine.build import build_engine
    from rosellm.roseinfer.engine.loop import run_engine

    core = build_engine(message.config, report)
    gc.freeze()
    gc.enable()
    link.send(core.facts)
    threading.Thread(target=_beat, args=(link, core.pace), name="pulse", daemon=True).start()
    run_engine(core, link.inbox, _decode, link.send)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

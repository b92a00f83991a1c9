"""The log of requests (``--log-requests``): enough of each to answer it again, to the token.

A line of JSON for each start of the server and for each request that it has answered. What decides
about tokens is logged as the engine was told it, with the seed that was drawn and the prompt's
ids; the request's own body stands beside it, for people.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.messages import Ready
from rosellm.roseinfer.server.call import Call
from rosellm.roseinfer.server.delta import Delta, Finish
from rosellm.roseinfer.server.job import Job

log = logging.getLogger(__name__)


MOST_WAITING = 64 << 20  # bytes of what waits to be written, roughly
TOKEN_BYTES = 100  # of an id, as a number in lists and as text
LINE_BYTES = 4096  # of what else there is to a request


class Build(msgspec.Struct, tag="build"):
    """What answers the requests on the lines below it."""

    fingerprint: str
    engine: EngineConfig


class Chosen(msgspec.Struct):
    """The tokens of one choice; ``finish_reason`` is null where it was cut off."""

    token_ids: list[int]
    finish_reason: Finish | None = None


class Logged(msgspec.Struct, tag="request"):
    """A request and its answer.

    Attributes:
        time: seconds since the epoch, at its start.
        jobs: what the engine was told, prompt by prompt.
        choices: job by job.
        error: what ended the answer, where it was not answered to the end.
    """

    id: str
    time: float
    path: str
    body: Any
    fingerprint: str
    jobs: list[Job]
    choices: list[Chosen]
    error: str | None = None


Line = Build | Logged
decode_line = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


class Journal:
    """A file that lines are appended to, by a thread of its own: a disk may be slow.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            # What people ask is nobody else's to read.
            self._file = os.open(Path(path).expanduser(), flags, 0o600)
        except OSError as error:
            raise ConfigError(f"--log-requests {path}: {error.strerror}") from None
        self._path = path
        self._fails = False
        self._waiting = 0  # bytes
        self._lock = threading.Lock()
        self._lines: SimpleQueue[tuple[Line, int] | threading.Event] = SimpleQueue()
        # A daemon: a disk that hangs keeps nobody from ending.
        threading.Thread(target=self._append_all, name="journal", daemon=True).start()

    def write(self, line: Line, size: int = LINE_BYTES) -> None:
        """Append a line, soon; it is lost if too much waits, as on a disk that hangs.

        Args:
            size: bytes that it takes while it waits, roughly.
        """
        with self._lock:
            full = self._waiting > 0 and self._waiting + size > MOST_WAITING
            self._waiting += 0 if full else size
        if full:
            self._tell("it takes too long")
        else:
            self._lines.put((line, size))

    def flush(self, seconds: float) -> bool:
        """Whether all of it was written in this time."""
        done = threading.Event()
        self._lines.put(done)
        return done.wait(seconds)

    def _append_all(self) -> None:
        while True:
            item = self._lines.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._append(*item)

    def _append(self, line: Line, size: int) -> None:
        written = False
        try:
            self._write(_encode(line) + b"\n")
            written = True
        except OSError as error:
            self._tell(error.strerror)
        except Exception:
            log.exception("a request could not be logged")
        with self._lock:
            self._waiting -= size
            if written and not self._waiting:  # else the next one that is lost says it again
                self._fails = False

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self._take_back(len(line) - len(rest))
            raise

    def _take_back(self, written: int) -> None:
        """Leave no half of a line: the next one would be its end, and neither could be read."""
        with contextlib.suppress(OSError):  # what cannot be cut is no file
            if written:
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)

    def _tell(self, reason: str | None) -> None:
        """The server goes on without it, and says so once."""
        if not self._fails:
            log.warning("%s: %s; requests are not logged there", self._path, reason)
        self._fails = True


class Record:
    """One request on its way into the journal; sees its answer, see ``Watcher``."""

    def __init__(self, journal: Journal, fingerprint: str, call: Call, jobs: Sequence[Job]) -> None:
        self._journal = journal
        self._logged = Logged(
            id=call.id,
            time=time.time(),
            path=call.path,
            body=call.body,
            fingerprint=fingerprint,
            jobs=list(jobs),
            choices=[Chosen([]) for job in jobs for _ in range(job.n)],
        )

    def see(self, item: Delta | Exception) -> None:
        """Remember the tokens, or what came in their place."""
        if isinstance(item, Exception):
            self._logged.error = self._logged.error or str(item)
            return
        choice = self._logged.choices[item.index]
        choice.token_ids += item.ids
        choice.finish_reason = item.finish

    def end(self) -> None:
        """Write it down."""
        prompts = sum(len(job.prompt) + len(job.prediction) for job in self._logged.jobs)
        tokens = prompts + sum(len(choice.token_ids) for choice in self._logged.choices)
        grammars = sum(len(job.grammar) for job in self._logged.jobs)
        self._journal.write(self._logged, LINE_BYTES + TOKEN_BYTES * tokens + 2 * grammars)


def build_of(config: EngineConfig, ready: Ready) -> Build:
    """How to stand up the same engine again, from any folder."""
    model = replace(
        config.model,
        model=_absolute(config.model.model),
        tokenizer=config.model.tokenizer and _absolute(config.model.tokenizer),
        chat_template=None,  # prompts are logged as token ids
        max_model_len=ready.max_model_len,
    )
    return Build(ready.fingerprint, replace(config, model=model))


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source

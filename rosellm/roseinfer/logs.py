"""Log lines on stderr: for people, or a JSON object each (``--log-format json``).

A thread writes them, so that a slow disk or a terminal that nobody reads holds nothing up. A line
that cannot be written is lost, and counted; serving goes on. What a record has beside its message
is in ``record.fields`` (``extra={"fields": {...}}``).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import msgspec

from rosellm.roseinfer.config import LogFormat

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
FAREWELL_S = 1.0
STDERR = 2
request_id: ContextVar[str] = ContextVar("request_id")
"""Of the request that is being answered; lines that are written meanwhile carry it."""
FORMAT_VARIABLE = "ROSELLM_LOG_FORMAT"


def configure(form: LogFormat, *, access: bool = True) -> None:
    """From now on all log lines of this process, and of an engine's that it starts, are so.

    Args:
        access: whether each request has one.
    """
    os.environ[FORMAT_VARIABLE] = form
    _open_standard_files()
    for each in [each for each in logging.root.handlers if isinstance(each, Writer)]:
        logging.root.removeHandler(each)
    writer = Writer(STDERR)
    writer.setFormatter(Json() if form == "json" else Text())
    logging.root.addHandler(writer)
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("rosellm").setLevel(logging.INFO)
    shown = logging.INFO if access else logging.WARNING
    logging.getLogger("rosellm.access").setLevel(shown)
    if form == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception


def configure_child() -> None:
    """The same in an engine's process, as its parent has it."""
    configure("json" if os.environ.get(FORMAT_VARIABLE) == "json" else "text")


def say(text: str, event: str, **fields: Any) -> None:
    """Tell people something on stderr, as it stands; where lines are JSON, as one of them.

    Args:
        event: what it is in a few words, with the fields that hold the facts of the text.
    """
    writer = _writer()
    if writer is None:
        print(text, file=sys.stderr, flush=True)
    elif isinstance(writer.formatter, Json):
        log.info(event, extra={"fields": fields})
    else:
        writer.put(text)


def complain(text: str) -> None:
    """Say why the process ends; where lines are JSON, in one of them."""
    if is_json():
        log.error(text)
        return
    if (writer := _writer()) is not None:
        writer.flush()  # what was said before stands before it
    with contextlib.suppress(OSError, AttributeError):  # stderr may be full, or closed
        print(text, file=sys.stderr, flush=True)


def _writer() -> Writer | None:
    return next((each for each in logging.root.handlers if isinstance(each, Writer)), None)


def is_json() -> bool:
    """Whether every line on stderr is to be JSON."""
    return any(isinstance(each.formatter, Json) for each in logging.root.handlers)


class Text(logging.Formatter):
    """The time, and the message as it is."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")


class Json(logging.Formatter):
    """A JSON object on one line: time, level, logger, message and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (id := getattr(record, "request_id", None)) is not None:
            line["request_id"] = id
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line.update({name: value for name, value in fields.items() if name not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return _to_json(line)


def _to_json(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except (TypeError, ValueError):  # such as a lone surrogate out of a file's name
        return json.dumps(line, default=str)


class Writer(logging.Handler):
    """Writes lines to a file descriptor, on a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[logging.LogRecord | str] = queue.Queue(MOST_WAITING)
        self._lost = 0
        threading.Thread(target=self._run, name="log writer", daemon=True).start()
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, or lose it if too many wait."""
        record.request_id = request_id.get(None)
        self.put(record)

    def put(self, line: logging.LogRecord | str) -> None:
        """The same; a text is written as it stands."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Wait a while for what has been taken to be written."""
        deadline = time.monotonic() + FAREWELL_S
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.001)

    def _run(self) -> None:
        while True:
            line = self._waiting.get()
            try:
                self._write(line if isinstance(line, str) else self.format(line))
                if self._lost:
                    self._tell_losses()
            except Exception:  # nothing is left to complain to
                self._lost += 1
            finally:
                self._waiting.task_done()

    def _tell_losses(self) -> None:
        lost, self._lost = self._lost, 0
        text = f"{lost} log lines could not be written and are lost"
        record = log.makeRecord(log.name, logging.WARNING, __file__, 0, text, (), None)
        try:
            self._write(self.format(record))
        except Exception:
            self._lost += lost
            raise

    def _write(self, line: str) -> None:
        rest = memoryview(line.encode(errors="backslashreplace") + b"\n")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def _open_standard_files() -> None:
    """Where one of the three is closed, open it on nothing: else a socket would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def _log_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_thread_exception(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None:
        _log_exception(caught.exc_type, caught.exc_value, caught.exc_traceback)

"""Requests over which engines have died: when one comes again, it is refused at once.

Clients send again what has failed, and it would cost everybody else several restarts once more.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import msgspec

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.job import Job

KEPT_S = 300.0
MOST = 256


class Convicts:
    """Those of the last minutes.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[bytes, float] = {}

    def add(self, job: Job) -> None:
        digest = _digest(job)
        self._since.pop(digest, None)  # so that they stand in the order of their times
        self._since[digest] = self._clock()
        if len(self._since) > MOST:
            del self._since[next(iter(self._since))]

    def __contains__(self, job: Job) -> bool:
        self._forget()
        return bool(self._since) and _digest(job) in self._since

    def _forget(self) -> None:
        """A digest takes long: of every request, it is made only while there is a reason to."""
        while self._since:
            oldest = next(iter(self._since))
            if self._clock() - self._since[oldest] < KEPT_S:
                return
            del self._since[oldest]


def at_fault() -> RequestError:
    """What whoever sends such a request is told."""
    message = "the engine has died over this request, more than once; it is not tried again"
    return RequestError(message, status=500, code="engine_error")


def _digest(job: Job) -> bytes:
    """Of what the engine is asked. A seed may have been drawn for it."""
    params = msgspec.structs.replace(job.params, seed=0)
    asked = (job.tenant, job.prompt, params, job.n, job.want, job.grammar, job.prediction)
    return hashlib.sha256(msgspec.msgpack.encode(asked)).digest()

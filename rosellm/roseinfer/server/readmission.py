"""Requests on their way to a new engine, one at a time, so that one that kills engines is found.

Each is sent when the one before has had news. An engine that dies meanwhile died, it may be, over
the one that was sent last: if the next engine does so too, that request is at fault.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable

STRIKES = 2


class Readmission:
    """The line before an engine. Requests are known by their ids.

    Args:
        send: gives one to the engine.
    """

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self._line: deque[int] = deque()
        self._latest: int | None = None
        self._strikes: Counter[int] = Counter()

    def restart(self, open: Iterable[int]) -> int | None:
        """There is a new engine: these are to be sent, in this order.

        Returns the one that is at fault, if one is by now: it is not sent.
        """
        self._line = deque(open)
        fault = None
        if self._latest is not None:
            self._strikes[self._latest] += 1
            if self._strikes[self._latest] == STRIKES:
                fault = self._latest
                self._line.remove(fault)
        self._next()
        return fault

    def heard(self, ids: Collection[int]) -> None:
        """These have had news, or are gone."""
        if self._latest is None:
            return
        for id in ids:
            self._strikes.pop(id, None)
        self._line = deque(id for id in self._line if id not in ids)
        if self._latest in ids:
            self._next()

    def _next(self) -> None:
        self._latest = self._line.popleft() if self._line else None
        if self._latest is not None:
            self._send(self._latest)

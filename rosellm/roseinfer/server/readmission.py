"""Requests on their way into an engine, so that one over which engines die is found.

After a death out of the blue they are sent one at a time, each when the one before has had news.
Those that were in two engines as these died are suspects, and the third engine is given them in
trials: a few, or one where the suspicion is strong, and the next ones only when these have got
further than it takes to kill. All others wait meanwhile. Whom an engine dies over when nobody else
is on trial, and who was in two before, is at fault.

"Further than it takes" has two readings, and a trial lasts long enough for both. What depends on
the request's own state happens again within a few tokens, since tokens do not depend on the
schedule: only those are lost that were on their way. What depends on how long an engine has had the
request happens again after as many tokens as the time before. A death that fits neither is chance.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SUSPECT = 2
"""Deaths after which a request is on trial."""
LOST = 16
"""Tokens that may be on their way from an engine when it dies."""
LONGEST_TRIAL = 512  # tokens


class Finding(NamedTuple):
    """What the death of an engine has shown.

    Attributes:
        fault: the request over which it died, if that is known by now.
        explained: how many deaths before this one it explains. None where there was nobody else
            to be suspected: whatever kills engines would look like that.
    """

    fault: int | None = None
    explained: int = 0


@dataclass
class _Standing:
    """One request's.

    Attributes:
        sent: its progress when the present engine was given it; None while that has not got it.
        deaths: of engines that had it, since it was last found innocent.
        lasted: the progress it made in the last one of them.
    """

    sent: int | None = None
    deaths: int = 0
    lasted: int = 0


class _Group(NamedTuple):
    """Those who are sent together."""

    ids: Collection[int]
    trial: bool = False


class Readmission:
    """Who is in the engine, and the line before it. Requests are known by their ids.

    Args:
        send: gives one to the engine.
        progress: how much has come of one by now, in tokens.
    """

    def __init__(self, send: Callable[[int], None], progress: Callable[[int], int]) -> None:
        self._send = send
        self._progress = progress
        self._known: dict[int, _Standing] = {}
        self._line: deque[_Group] = deque()
        self._awaited: dict[int, int] = {}  # those sent last, and the progress they are to make
        self._trial = False  # whether they are on trial
        self._down = False
        self._several = False  # whether more than one has been suspected

    def admit(self, id: int) -> None:
        """A new request: it is sent, unless it has to wait for a trial or an engine."""
        self._known[id] = _Standing()
        if self._trial or any(group.trial for group in self._line):
            self._line.append(_Group([id]))
        elif not self._down:
            self._give(id)

    def heard(self) -> None:
        """There has been progress."""
        if not self._awaited:
            return
        passed = [id for id, goal in self._awaited.items() if self._progress(id) >= goal]
        for id in passed:
            del self._awaited[id]
            if self._trial:
                self._known[id].deaths = 0
        self._go_on()

    def gone(self, ids: Iterable[int]) -> None:
        """These have ended, or are wanted no more."""
        for id in ids:
            self._known.pop(id, None)
            self._awaited.pop(id, None)
        self._go_on()

    def lost(self) -> Finding:
        """The engine has died. Whoever is at fault is not known here any more."""
        accused = list(self._awaited) if self._trial else []
        fits = len(accused) == 1 and self._fits(accused[0])
        self._stop()
        for id, standing in self._known.items():
            if standing.sent is not None:
                standing.deaths += 1
                standing.lasted = self._progress(id) - standing.sent
                standing.sent = None
        if not fits or self._known[accused[0]].deaths <= SUSPECT:
            return Finding()
        deaths = self._known.pop(accused[0]).deaths
        finding = Finding(accused[0], deaths - 1 if self._several else 0)
        self._acquit()
        return finding

    def restart(self) -> None:
        """There is a new engine, which has none of them."""
        self._down = False
        trials = list(self._trials())
        others = [id for id, standing in self._known.items() if standing.deaths < SUSPECT]
        self._line = deque([*trials, *(_Group([id]) for id in others)])
        self._several |= sum(len(group.ids) for group in trials) > 1
        self._go_on()

    def _trials(self) -> Iterator[_Group]:
        """The suspects, by suspicion.

        Who was on trial before is alone, and so is who had no news at all. The others are as many
        groups as there are in a group: one more death says which group, another one who of it.
        """
        suspects = [
            (-standing.deaths, standing.lasted, id)
            for id, standing in self._known.items()
            if standing.deaths >= SUSPECT
        ]
        rest = []
        for deaths, lasted, id in sorted(suspects):
            if -deaths > SUSPECT or not lasted:
                yield _Group([id], trial=True)
            else:
                rest.append(id)
        size = math.isqrt(max(0, len(rest) - 1)) + 1
        for start in range(0, len(rest), size):
            yield _Group(rest[start : start + size], trial=True)

    def _go_on(self) -> None:
        """Send the next ones if nobody is waited for."""
        while not self._awaited and self._line:
            group = self._line.popleft()
            if self._trial and not group.trial:
                self._acquit()
            self._trial = group.trial
            ids = [id for id in group.ids if id in self._known]
            further = self._length(ids)
            for id in ids:
                self._awaited[id] = self._progress(id) + further
                self._give(id)
        if not self._awaited and self._trial:
            self._trial = False
            self._acquit()

    def _length(self, ids: Collection[int]) -> int:
        """How far each of these has to get before the next ones are sent."""
        longest = max((self._known[id].lasted for id in ids), default=0)
        return min(longest + LOST, LONGEST_TRIAL) if self._trial else 1

    def _fits(self, id: int) -> bool:
        """Whether this death is like the last one: as soon, or after as much progress."""
        standing = self._known[id]
        lasts = self._progress(id) - (standing.sent or 0)
        if not standing.lasted:
            return not lasts
        return lasts <= LOST or abs(lasts - standing.lasted) <= LOST

    def _give(self, id: int) -> None:
        self._known[id].sent = self._progress(id)
        self._send(id)

    def _stop(self) -> None:
        self._line.clear()
        self._awaited.clear()
        self._trial = False
        self._down = True

    def _acquit(self) -> None:
        """The search is over: somebody is found, or it was chance."""
        self._several = False
        for standing in self._known.values():
            standing.deaths = 0

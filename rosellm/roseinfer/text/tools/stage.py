"""Takes tool calls out of an answer.

A call comes out when it is complete: only then is it known to be one. What looks like a call and
is none (no JSON, a tool that does not exist) is text, as it was written. White space between
calls, and between text and a call, belongs to the format.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from rosellm.roseinfer.text.markers import begun, first_of
from rosellm.roseinfer.text.parts import Call, Parts
from rosellm.roseinfer.text.tools.format import ToolFormat

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_PATIENCE = 8  # times that an answer is read anew from a marker on, which bounds the work


class ToolCalls:
    """Splits text into content and calls.

    Args:
        names: the tools there are; another name makes no call.
        most: calls after so many are dropped; None takes all.

    Attributes:
        enough: whether ``most`` has been reached.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], most: int | None = None) -> None:
        self._format = format
        self._names = frozenset(names)
        self._most = most
        self._calls = 0
        self._pending = ""
        self._opened: str | None = None  # what has begun a call, while inside of one
        self._looked = 0  # characters inside that hold no end marker
        self._gap = ""  # white space that counts if content follows
        self._said = False  # whether content that is not white space has come out
        self._patience = _PATIENCE

    @property
    def enough(self) -> bool:
        return self._most is not None and self._calls >= self._most

    def feed(self, text: str) -> Parts:
        self._pending += text
        return self._proceed(last=False)

    def flush(self) -> Parts:
        parts = self._proceed(last=True)
        gap, self._gap = self._gap, ""
        return parts if self._calls else parts + Parts(gap)

    def _proceed(self, last: bool) -> Parts:
        parts = Parts()
        while not self.enough:
            step = self._outside(last) if self._opened is None else self._inside(last)
            if step is None:
                return parts
            parts += step
        self._pending = self._gap = ""
        return parts

    # -- between calls -----------------------------------------------------------------------

    def _outside(self, last: bool) -> Parts | None:
        """One step on; None where more text has to come."""
        start, text = self._format.start, self._pending
        if self._begins_bare():
            return self._open("", 0)
        found = first_of(text, [start])
        if found is not None:
            before = self._say(text[: found[0]])
            return before + self._open(start, found[0] + len(start))
        if self._format.bare and not self._said and not text.strip() and not last:
            return None
        certain = len(text) - (0 if last else begun(text, [start]))
        self._pending = text[certain:]
        return self._say(text[:certain]) if certain else None

    def _begins_bare(self) -> bool:
        bare = self._format.bare
        at_start = bool(bare) and not self._said and not self._calls
        return at_start and self._pending.lstrip().startswith(bare)

    def _open(self, marker: str, length: int) -> Parts:
        self._opened, self._looked = marker, 0
        self._pending = self._pending[length:]
        return Parts()

    # -- inside of one -----------------------------------------------------------------------

    def _inside(self, last: bool) -> Parts | None:
        end = self._format.end
        place = self._pending.find(end, self._looked) if end else -1
        if place >= 0:
            return self._at_end(place)
        if last:
            return self._at_last()
        self._looked = max(self._looked, len(self._pending) - len(end) + 1)
        return None

    def _at_end(self, place: int) -> Parts | None:
        """At an end marker, which may be part of a string in the arguments."""
        body, length = self._pending[:place], place + len(self._format.end)
        calls = self._read(body)
        if calls is None and self._patience and _in_string(body):
            self._patience -= 1
            self._looked = length
            return Parts()
        return self._close(calls, length)

    def _at_last(self) -> Parts:
        """The text ends inside. If a call's end was taken for part of a string, it is one now."""
        calls, end = self._read(self._pending), self._format.end
        place = self._pending.find(end) if end else -1
        if calls is None and place >= 0:
            return self._close(None, place + len(end))
        return self._close(calls, len(self._pending))

    def _read(self, body: str) -> list[Call] | None:
        calls = self._format.read(body)
        if calls is None or any(call.name not in self._names for call in calls):
            return None
        return calls

    def _close(self, calls: list[Call] | None, length: int) -> Parts:
        written = (self._opened or "") + self._pending[:length]
        self._pending, self._opened = self._pending[length:], None
        if calls is None:
            return self._say(written)
        if self._most is not None:
            calls = calls[: self._most - self._calls]
        self._calls += len(calls)
        self._gap = ""
        return Parts(calls=tuple(calls))

    def _say(self, text: str) -> Parts:
        """Content, but for white space at its end."""
        text = self._gap + text
        said = text.rstrip()
        self._gap = text[len(said) :]
        self._said = self._said or bool(said)
        return Parts(said)


def _in_string(json: str) -> bool:
    """Whether a string is open at the end of a piece of JSON."""
    return _ESCAPED.sub("", json).count('"') % 2 == 1

"""Takes tool calls out of an answer, while they are written.

What looks like a call and is none (no JSON, a tool that does not exist) is text, as it was written;
what has begun as one stays one (``calls.py``). White space between calls, and between text and a
call, belongs to the format.
"""

from __future__ import annotations

from collections.abc import Collection

from rosellm.roseinfer.text.markers import begun, first_of
from rosellm.roseinfer.text.parts import Parts
from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.format import ToolFormat
from rosellm.roseinfer.text.tools.incoming import SPACE, Incoming, NoCall, Waits

_AGAIN = 50_000  # characters of an answer that are read anew at most, which bounds the work


class ToolCalls:
    """Splits text into content and calls.

    Args:
        names: the tools there are; another name makes no call.
        most: calls after so many are dropped; None takes all.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], most: int | None = None) -> None:
        self._format = format
        self._text = Incoming()
        self._calls = Calls(self._text, format.markers, names, most)
        self._reader: Waits[None] | None = None  # while inside of what may be calls
        self._marker = ""  # what has begun it
        self._made = 0  # calls before it
        self._ends = False  # whether the end marker of broken calls may still come
        self._gap = ""  # white space that counts if content follows
        self._said = False  # whether content that is not white space has come out
        self._again = _AGAIN

    @property
    def enough(self) -> bool:
        """Whether nothing that may still come counts."""
        return self._calls.enough

    @property
    def whole(self) -> bool:
        """Whether no call has come out that is broken, or was cut off, and the answer did not end
        inside of what may have become one."""
        return self._calls.whole

    def feed(self, text: str) -> Parts:
        self._text.feed(text)
        return self._proceed()

    def flush(self) -> Parts:
        self._text.last = True
        parts = self._proceed()
        return parts if self._calls.made else parts + Parts(self._gap)

    def _proceed(self) -> Parts:
        parts = Parts()
        while not self.enough:
            step = self._outside() if self._reader is None else self._inside(self._reader)
            if step is None:
                break
            parts += step
        return parts + Parts(calls=self._calls.take())

    # -- between calls -----------------------------------------------------------------------

    def _outside(self) -> Parts | None:
        """One step on; None where more text has to come."""
        start, text, last = self._format.start, self._text.rest, self._text.last
        if self._begins_bare(text):
            step = self._open("", 0)
            self._text.place += len(text) - len(text.lstrip())  # it is content if this is no call
            return step
        markers = [start, self._format.end] if self._ends else [start]
        found = first_of(text, markers)
        if found is not None and found[1] == start:
            return self._say(text[: found[0]]) + self._open(start, found[0] + len(start))
        if found is not None:
            self._text.drop(found[0] + len(found[1]))
            parts, self._ends, self._gap = self._say(text[: found[0]]), False, ""
            return parts
        if self._format.bare and not self._said and not text.strip() and not last:
            return None
        certain = len(text) - (0 if last else begun(text, markers))
        self._text.drop(certain)
        return self._say(text[:certain]) if certain else None

    def _begins_bare(self, text: str) -> bool:
        bare = self._format.bare
        at_start = bool(bare) and not self._said and not self._calls.made
        return at_start and text.lstrip().startswith(bare)

    def _open(self, marker: str, length: int) -> Parts:
        self._text.drop(length)
        self._marker, self._made, self._ends = marker, self._calls.made, False
        self._reader = self._read()
        return Parts()

    # -- inside of one -----------------------------------------------------------------------

    def _read(self) -> Waits[None]:
        yield from self._text.peek(SPACE)
        yield from self._format.read(self._text, self._calls)
        if (yield from self._text.peek(SPACE)):
            if not self._format.end:
                raise NoCall("something else")
            yield from self._text.expect(self._format.end)
        if self._calls.made == self._made:
            raise NoCall("none")

    def _inside(self, reader: Waits[None]) -> Parts | None:
        try:
            next(reader)
            return None
        except StopIteration:
            self._text.drop(0)
            return self._close()
        except NoCall:
            return self._fail()

    def _close(self) -> Parts:
        self._reader, self._gap = None, ""
        self._calls.closed()
        return Parts()

    def _fail(self) -> Parts:
        """What comes behind the calls so far is content, unless it holds others."""
        text, calls = self._text, self._calls
        unread, back = text.text[text.keep : text.place], text.keep
        if calls.open:
            calls.end(whole=False)
        if text.at_end and unread.strip():
            calls.whole = False
        some = calls.made > self._made
        if some:
            self._close()
            self._ends = bool(self._format.end)
        if self.enough:
            return Parts()
        self._reader = None
        self._said = self._said or not self._marker  # no bare one begins behind one that failed
        if (self._marker or some) and len(unread) <= self._again:
            self._again -= len(unread)
            text.place, unread = back, ""
        text.drop(0)
        return self._say(("" if some else self._marker) + unread)

    def _say(self, text: str) -> Parts:
        """Content, but for white space at its end."""
        text = self._gap + text
        said = text.rstrip()
        self._gap = text[len(said) :]
        self._said = self._said or bool(said)
        return Parts(said)

"""gpt-oss answers: messages on channels, of which a header tells channel and recipient.

``<|channel|>analysis<|message|>...<|end|>`` is reasoning, ``commentary to=functions.NAME`` a call
whose body is its arguments, everything else content.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection

from rosellm.roseinfer.text.markers import begun, first_of
from rosellm.roseinfer.text.parts import Parts
from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.incoming import SPACE, Incoming, NoCall, Waits
from rosellm.roseinfer.text.tools.json_calls import read_arguments

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)

_ENDS = (END, CALL, RETURN, START)
_RECIPIENT_SIGN = "to=functions."
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")


class Harmony:
    """A stage for reasoning and calls at once; it takes the arguments of ``ToolCalls``."""

    def __init__(self, names: Collection[str] = (), most: int | None = None) -> None:
        self._text = Incoming()
        self._calls = Calls(self._text, _ENDS, names, most)
        self._made = 0  # calls before this message
        self._reader: Waits[None] | None = None  # of a body that is a call's
        self._header: str | None = None  # of the message whose body comes now
        self._shown = False  # whether this message is content with all that is round it
        self._first = True  # whether nothing has been read, so that the prompt began the header
        self._taken = 0
        self._spans: list[tuple[int, int]] = []
        self._since = 0  # where the header of this message began

    @property
    def enough(self) -> bool:
        return self._calls.enough

    @property
    def whole(self) -> bool:
        return self._calls.whole

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where in the text so far there is reasoning, markers included."""
        open = [(self._since, self._taken)] if self._is_reasoning() else []
        return [*self._spans, *open]

    def feed(self, text: str) -> Parts:
        self._text.feed(text)
        self._taken += len(text)
        return self._proceed()

    def flush(self) -> Parts:
        self._text.last = True
        parts = self._proceed()
        if self._is_reasoning():
            self._taken = sys.maxsize
        return parts

    def _proceed(self) -> Parts:
        parts = Parts()
        while not self.enough:
            step = self._head() if self._header is None else self._body()
            if step is None:
                break
            parts += step
        return parts + Parts(calls=self._calls.take())

    def _head(self) -> Parts | None:
        """A header, or content that has none."""
        text, last = self._text.rest, self._text.last
        if not text:
            return None
        if not text.startswith((START, CHANNEL)) and not (self._first and self._names_one(text)):
            if self._first and not last and _RECIPIENT_SIGN.startswith(text.lstrip()):
                return None
            self._first = False
            return self._headless()
        found = text.find(MESSAGE)
        if found >= 0:
            self._first = False
            self._since = self._taken - len(text)
            self._text.drop(found + len(MESSAGE))
            self._begin(text[:found])
            return Parts()
        return self._take(len(text)) if last else None

    def _names_one(self, text: str) -> bool:
        """Whether a recipient comes first, as it may behind the role."""
        return text.lstrip().startswith(_RECIPIENT_SIGN)

    def _headless(self) -> Parts | None:
        text, markers = self._text.rest, [START, CHANNEL, END, RETURN]
        found = first_of(text, markers)
        if found is not None and found[0] > 0:
            return self._take(found[0])
        if found is not None:  # an end of nothing
            self._text.drop(len(found[1]))
            return Parts()
        certain = len(text) - (0 if self._text.last else begun(text, markers))
        return self._take(certain) if certain else None

    def _take(self, length: int) -> Parts:
        text = self._text.rest[:length]
        self._text.drop(length)
        return Parts(text)

    # -- messages ----------------------------------------------------------------------------

    def _begin(self, header: str) -> None:
        self._header, self._shown, self._made = header, False, self._calls.made
        if "to=" in header:
            name = _RECIPIENT.search(header)
            self._reader = self._read(name[1] if name else "")

    def _body(self) -> Parts | None:
        if self._reader is not None:
            return self._call(self._reader)
        text = self._text.rest
        length, marker = first_of(text, _ENDS) or (len(text), "")
        if not marker and not self._text.last:
            length -= begun(text, _ENDS)
        if not length and not marker:
            return None
        after = "" if marker == START else marker
        self._text.drop(length + len(after))
        body = text[:length]
        parts = Parts(reasoning=body) if self._is_reasoning() else Parts(body + after * self._shown)
        if marker:
            self._end_of_message()
        return parts

    def _end_of_message(self) -> None:
        if self._is_reasoning():
            self._spans.append((self._since, self._taken - len(self._text.rest)))
        self._header = None

    def _is_reasoning(self) -> bool:
        if self._header is None or "to=" in self._header:
            return False
        return self._header.partition(CHANNEL)[2].strip().startswith("analysis")

    # -- calls -------------------------------------------------------------------------------

    def _read(self, name: str) -> Waits[None]:
        """A body that is a call's arguments, and the marker behind it."""
        self._calls.check(name)
        if (yield from self._ends()):
            self._calls.begin(name)
            self._calls.say("{}")
            self._calls.end()
        else:
            yield from read_arguments(self._text, self._calls, name)
            if not (yield from self._ends()):
                raise NoCall("something else")
        for marker in (END, CALL, RETURN):
            yield from self._text.starts(marker)

    def _ends(self) -> Waits[bool]:
        """Whether nothing but white space stands before a marker, or before the end: the marker may
        have been the token that ended the answer, which is not shown."""
        if not (yield from self._text.peek(SPACE)):
            return True
        while not (rest := self._text.rest).startswith(_ENDS):
            if self._text.last or not any(marker.startswith(rest) for marker in _ENDS):
                return False
            yield
        return True

    def _call(self, reader: Waits[None]) -> Parts | None:
        try:
            next(reader)
            return None
        except StopIteration:
            self._end_of_message()
            shown = ""
        except NoCall:
            shown = self._fail()
        self._text.drop(0)
        self._reader = None
        self._calls.closed()
        return Parts("" if self.enough else shown)

    def _fail(self) -> str:
        """What follows the arguments is content, or all of the message is. Its header then."""
        text, calls = self._text, self._calls
        if text.at_end and text.text[text.keep :].strip():
            calls.whole = False
        text.place = text.keep
        self._shown = calls.made == self._made
        return f"{self._header}{MESSAGE}" if self._shown else ""

"""gpt-oss answers: messages on channels, of which a header tells channel and recipient.

``<|channel|>analysis<|message|>...<|end|>`` is reasoning, ``commentary to=functions.NAME`` a call
whose body is its arguments, everything else content.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection

from rosellm.roseinfer.text.markers import begun, first_of
from rosellm.roseinfer.text.parts import Call, Parts
from rosellm.roseinfer.text.tools.json_calls import arguments

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)

_ENDS = (END, CALL, RETURN, START)
_RECIPIENT_SIGN = "to=functions."
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")


class Harmony:
    """A stage for reasoning and calls at once; it takes the arguments of ``ToolCalls``.

    Attributes:
        spans: where in the text so far there is reasoning, markers included.
    """

    def __init__(self, names: Collection[str] = (), most: int | None = None) -> None:
        self._names = frozenset(names)
        self._most = most
        self._calls = 0
        self._pending = ""
        self._header: str | None = None  # of the message whose body comes now
        self._first = True  # whether nothing has been read, so that the prompt began the header
        self._taken = 0
        self._spans: list[tuple[int, int]] = []
        self._since = 0  # where the header of this message began

    @property
    def enough(self) -> bool:
        return self._most is not None and self._calls >= self._most

    @property
    def spans(self) -> list[tuple[int, int]]:
        open = [(self._since, self._taken)] if self._is_reasoning() else []
        return [*self._spans, *open]

    def feed(self, text: str) -> Parts:
        self._pending += text
        self._taken += len(text)
        return self._proceed(last=False)

    def flush(self) -> Parts:
        parts = self._proceed(last=True)
        if self._is_reasoning():
            self._taken = sys.maxsize
        return parts

    def _proceed(self, last: bool) -> Parts:
        parts = Parts()
        while not self.enough:
            step = self._head(last) if self._header is None else self._body(last)
            if step is None:
                break
            parts += step
        return parts

    def _head(self, last: bool) -> Parts | None:
        """A header, or content that has none."""
        text = self._pending
        if not text:
            return None
        if not text.startswith((START, CHANNEL)) and not (self._first and self._names_one(text)):
            if self._first and not last and _RECIPIENT_SIGN.startswith(text.lstrip()):
                return None
            self._first = False
            return self._headless(last)
        found = text.find(MESSAGE)
        if found >= 0:
            self._first = False
            self._since = self._taken - len(text)
            self._header, self._pending = text[:found], text[found + len(MESSAGE) :]
            return Parts()
        if not last:
            return None
        self._pending = ""
        return Parts(text)

    def _names_one(self, text: str) -> bool:
        """Whether a recipient comes first, as it may behind the role."""
        return text.lstrip().startswith(_RECIPIENT_SIGN)

    def _headless(self, last: bool) -> Parts | None:
        text = self._pending
        found = first_of(text, [START, CHANNEL, END, RETURN])
        if found is not None and found[0] > 0:
            return self._take(found[0])
        if found is not None:  # an end of nothing
            self._pending = text[len(found[1]) :]
            return Parts()
        certain = len(text) - (0 if last else begun(text, [START, CHANNEL, END, RETURN]))
        return self._take(certain) if certain else None

    def _take(self, length: int) -> Parts:
        text, self._pending = self._pending[:length], self._pending[length:]
        return Parts(text)

    def _body(self, last: bool) -> Parts | None:
        header, text = self._header or "", self._pending
        found = first_of(text, _ENDS)
        if found is None and not last:
            return None if self._is_call() else self._stretch(len(text) - begun(text, _ENDS))
        length, marker = found or (len(text), "")
        body = text[:length]
        after = length if marker == START else length + len(marker)
        self._pending = text[after:]
        parts = self._whole(header, body, marker)
        if found is not None:
            self._end_of_message()
        elif not text:
            return None
        elif self._is_call():
            self._header = None
        return parts

    def _end_of_message(self) -> None:
        if self._is_reasoning():
            self._spans.append((self._since, self._taken - len(self._pending)))
        self._header = None

    def _stretch(self, length: int) -> Parts | None:
        if not length:
            return None
        text, self._pending = self._pending[:length], self._pending[length:]
        return Parts(reasoning=text) if self._is_reasoning() else Parts(text)

    def _whole(self, header: str, body: str, marker: str) -> Parts:
        if not self._is_call():
            return Parts(reasoning=body) if self._is_reasoning() else Parts(body)
        name = _RECIPIENT.search(header)
        try:
            if name is None or name[1] not in self._names:
                raise ValueError("no such tool")
            call = Call(name[1], arguments(body) if body.strip() else "{}")
        except (ValueError, RecursionError):
            return Parts(header + MESSAGE + body + (marker if marker != START else ""))
        self._calls += 1
        return Parts(calls=(call,))

    def _is_call(self) -> bool:
        return self._header is not None and "to=" in self._header

    def _is_reasoning(self) -> bool:
        if self._header is None or self._is_call():
            return False
        return self._header.partition(CHANNEL)[2].strip().startswith("analysis")

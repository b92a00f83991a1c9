"""JSON, read while it comes and told as it is written.

What is not told as it stands are characters in strings that JSON forbids and models write, or that
no text can carry: control characters and halves of surrogate pairs are told as escapes.
"""

from __future__ import annotations

import json
import re
from typing import Protocol

from rosellm.roseinfer.text.tools.incoming import SPACE, Incoming, NoCall, Waits

_CLOSERS = {"{": "}", "[": "]"}
_DEEPEST = 200  # of what is nested; parsers that clients have give up somewhere
_BLANK = re.compile(f"[{SPACE}]+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_SCALAR = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null", re.ASCII
)


class Sink(Protocol):
    """Is told the text of a value."""

    def say(self, text: str) -> None:
        """A stretch of it, which ends at the reader's place."""
        ...

    def sure(self) -> None:
        """What has been said is JSON; no string in it has swallowed what follows the value."""
        ...


class _Held:
    """Keeps the text together."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text

    def sure(self) -> None:
        pass


def value(text: Incoming, out: Sink) -> Waits[None]:
    """Read one value.

    Raises:
        NoCall: it is no JSON.
    """
    closers: list[str] = []
    while True:
        char = yield from _next(text, out)
        if char in _CLOSERS:
            _take(text, out)
            closers.append(_CLOSERS[char])
            if len(closers) > _DEEPEST:
                raise NoCall("nested too deeply")
            if (yield from _next(text, out)) != closers[-1]:
                if char == "{":
                    yield from _key(text, out)
                continue
        elif char == '"':
            yield from _string(text, out)
        elif not _SCALAR.fullmatch((yield from text.run(_WORD, out.say))):
            raise NoCall("no value")
        if not (yield from _follows(text, out, closers)):
            return


def held_value(text: Incoming) -> Waits[str]:
    """Read one value, all of it, without the white space before it."""
    yield from text.peek(SPACE)
    held = _Held()
    yield from value(text, held)
    return held.text


def held_string(text: Incoming) -> Waits[str]:
    """What a string says."""
    yield from text.peek(SPACE)
    held = _Held()
    yield from _string(text, held)
    said: str = json.loads(held.text)
    return said


def _follows(text: Incoming, out: Sink, closers: list[str]) -> Waits[bool]:
    """Behind a value: close what ends here. Whether there has to be another value."""
    while closers:
        char = yield from _next(text, out)
        if char not in (",", closers[-1]):
            raise NoCall("neither ended nor continued")
        _take(text, out)
        out.sure()
        if char == ",":
            if closers[-1] == "}":
                yield from _key(text, out)
            return True
        closers.pop()
    return False


def _key(text: Incoming, out: Sink) -> Waits[None]:
    yield from _next(text, out)
    yield from _string(text, out)
    if (yield from _next(text, out)) != ":":
        raise NoCall("a key without a value")
    _take(text, out)
    out.sure()


def _string(text: Incoming, out: Sink) -> Waits[None]:
    if (yield from text.peek()) != '"':
        raise NoCall("no string")
    _take(text, out)
    while True:
        yield from text.run(_PLAIN, out.say)
        char = yield from text.peek()
        if not char:
            raise NoCall("a string without end")
        if char == '"':
            _take(text, out)
            return
        if char == "\\":
            yield from _escape(text, out)
        else:
            text.place += 1
            out.say(json.dumps(char)[1:-1])


def _escape(text: Incoming, out: Sink) -> Waits[None]:
    while (found := _ESCAPE.match(text.text, text.place)) is None:
        if text.last or not _ESCAPE_BEGUN.fullmatch(text.text, text.place):
            raise NoCall("no escape")
        yield
    text.place = found.end()
    out.say(found[0])


def _next(text: Incoming, out: Sink) -> Waits[str]:
    """The next character that is no white space, which is told."""
    yield from text.run(_BLANK, out.say)
    return (yield from text.peek())


def _take(text: Incoming, out: Sink) -> None:
    text.place += 1
    out.say(text.text[text.place - 1])

"""Calls that a model has written as JSON objects with a name and arguments."""

from __future__ import annotations

import json

from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.incoming import SPACE, Incoming, NoCall, Waits
from rosellm.roseinfer.text.tools.json_text import held_string, held_value, value

_ARGUMENTS = ("arguments", "parameters")  # the latter is Llama's
_BETWEEN = SPACE + ",;"


def read_calls(text: Incoming, calls: Calls) -> Waits[None]:
    """Objects one behind the other, or a list of them.

    Raises:
        NoCall: there is none, or one is broken.
    """
    made, depth = calls.made, 0
    while True:
        char = yield from text.peek(_BETWEEN)
        if char == "{":
            yield from _call(text, calls)
        elif char == "[" and calls.made == made:
            text.place += 1
            depth += 1
        elif char == "]" and depth:
            text.place += 1
            depth -= 1
        else:
            return
        if calls.made > made:
            text.keep = text.place


def read_arguments(text: Incoming, calls: Calls, name: str) -> Waits[None]:
    """A call's arguments, which are an object as it stands or in a string.

    Raises:
        NoCall: they are not, or no such call may be made.
    """
    if (yield from text.peek(SPACE)) != "{":
        _tell(calls, name, (yield from held_value(text)))
        return
    calls.begin(name)
    try:
        yield from value(text, calls)
    except NoCall:
        if not calls.open:
            raise
        yield from calls.end_broken()
    else:
        calls.end()


def _call(text: Incoming, calls: Calls) -> Waits[None]:
    """An object. Where the name comes first, its arguments are told while they come."""
    text.place += 1
    name, arguments, told = "", "null", False
    while True:
        key = yield from held_string(text)
        yield from text.peek(SPACE)
        yield from text.expect(":")
        char = yield from text.peek(SPACE)
        if key == "name" and not told:
            name = yield from held_string(text)
            calls.check(name)
        elif key in _ARGUMENTS and char == "{" and name and not told:
            yield from read_arguments(text, calls, name)
            told = True
        else:
            other = yield from held_value(text)
            arguments = other if key in _ARGUMENTS and other != "null" else arguments
        if (yield from text.peek(SPACE)) == "}":
            break
        yield from text.expect(",")
    if not told:
        _tell(calls, name, arguments)
    text.place += 1


def _tell(calls: Calls, name: str, arguments: str) -> None:
    """A call whose arguments are there."""
    meant = _object(arguments)
    calls.begin(name)
    calls.say(meant)
    calls.end()


def _object(written: str) -> str:
    """Arguments as an object's JSON. Some models write it into a string, or nothing."""
    if written.startswith('"'):
        inner = Incoming()
        inner.feed(json.loads(written))
        inner.last = True
        reader = held_value(inner)
        try:
            next(reader)  # has all it needs, so it cannot wait
        except StopIteration as read:
            written = read.value
        if inner.rest.strip():
            raise NoCall("more than a value")
    if written == "null":
        return "{}"
    if not written.startswith("{"):
        raise NoCall("no object")
    return written

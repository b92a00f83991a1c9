"""Llama 4 and others: an answer that is a list of Python calls, ``[f(a=1), g()]``.

The list is parsed as Python and never run: only literals are taken for arguments.
"""

from __future__ import annotations

import ast
import json
import re
import warnings

from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.format import ToolFormat
from rosellm.roseinfer.text.tools.incoming import Incoming, NoCall, Waits

_START, _END = "<|python_start|>", "<|python_end|>"
_SPACE = " \t\n\r\f"
_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"\w+")
_PLAIN = re.compile(r"""[^'"()\[\]{},]+""")
_IN_STRING = re.compile(r"""[^'"\\]+""")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a pair, which no text can carry
_CLOSERS = {"(": ")", "[": "]", "{": "}"}


def read(text: Incoming, calls: Calls) -> Waits[None]:
    """The calls of a list."""
    made = calls.made
    yield from text.peek(_SPACE)
    yield from text.expect("[")
    while (yield from text.peek(_SPACE)) not in ("]", ""):
        yield from _call(text, calls)
        if (yield from text.peek(_SPACE)) not in ("]", ""):
            yield from text.expect(",")
    yield from text.starts("]")
    if calls.made > made:
        text.keep = text.place
    yield from text.peek(_SPACE)
    yield from text.starts(_END)


def _call(text: Incoming, calls: Calls) -> Waits[None]:
    """A call, an argument at a time."""
    name = yield from text.run(_NAME)
    yield from text.peek(_SPACE)
    yield from text.expect("(")
    calls.begin(name)
    given: set[str] = set()
    while (yield from text.peek(_SPACE)) != ")":
        key = yield from text.run(_KEY)
        yield from text.peek(_SPACE)
        yield from text.expect("=")
        if not key or key in given:
            raise NoCall("no name, or there twice")
        expression = yield from _expression(text)
        end = yield from text.peek()
        written = _as_json(expression if end else "")
        calls.say(f"{', ' if given else '{'}{json.dumps(key, ensure_ascii=False)}: {written}")
        given.add(key)
        text.place += end == ","
        calls.sure()
    text.place += 1
    calls.say("}" if given else "{}")
    calls.end()


def _as_json(expression: str) -> str:
    """The value of a literal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is odd in the model's strings
            value = ast.literal_eval(f"({expression}\n)") if expression.strip() else ...
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise NoCall("no plain value") from error
    return _SURROGATE.sub(lambda half: json.dumps(half[0])[1:-1], written)


def _expression(text: Incoming) -> Waits[str]:
    """What stands before the comma or parenthesis that ends an argument."""
    written: list[str] = []
    closers: list[str] = []
    while True:
        yield from text.run(_PLAIN, written.append)
        char = yield from text.peek()
        if not char or (not closers and char in ",)"):
            return "".join(written)
        if char in "'\"":
            yield from _string(text, written)
            continue
        if char in _CLOSERS:
            closers.append(_CLOSERS[char])
        elif char != "," and (not closers or closers.pop() != char):
            raise NoCall("closed what was not open")
        written.append(char)
        text.place += 1


def _string(text: Incoming, written: list[str]) -> Waits[None]:
    """A string between single quotes or triple ones."""
    quote = text.text[text.place]
    triple = yield from text.starts(quote * 3)
    text.place += not triple
    end = quote * 3 if triple else quote
    written.append(end)
    while not (yield from text.starts(end)):
        if (yield from text.starts("\\")):
            written.append("\\")
        written.append((yield from text.peek()))
        if text.at_end:
            raise NoCall("a string without end")
        text.place += 1
        yield from text.run(_IN_STRING, written.append)
    written.append(end)


FORMAT = ToolFormat(start=_START, end="", read=read, bare="[", inner=(_END,))

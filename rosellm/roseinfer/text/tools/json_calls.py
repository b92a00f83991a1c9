"""Calls that a model has written as JSON objects with a name and arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from rosellm.roseinfer.text.parts import Call


class _Written(msgspec.Struct):
    """A call as it is written; Llama calls the arguments parameters."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"")
    parameters: msgspec.Raw = msgspec.Raw(b"")


def read_calls(text: str) -> list[Call] | None:
    """The calls of JSON objects, or lists of such, one behind the other.

    >>> read_calls('{"name": "f", "arguments": {"a": 1}}')
    [Call(name='f', arguments='{"a": 1}')]
    """
    try:
        return [call for value in values(text) for call in _calls(value)] or None
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return None


def arguments(text: str) -> str:
    """A JSON object as it is written, or as JSON if it is nearly that.

    Raises:
        ValueError, RecursionError: it is no object.
    """
    value = _DECODER.decode(text)
    if isinstance(value, str):  # an object in a string, as it stands in OpenAI's own messages
        return arguments(value) if value.lstrip().startswith("{") else _refuse(value)
    if not isinstance(value, dict):
        _refuse(text)
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.MsgspecError:  # control characters in a string, say
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.strip()


def values(text: str) -> Iterator[str]:
    """The JSON values of a text, each as it is written.

    Raises:
        ValueError: something else is in between than white space, a comma or a semicolon.
    """
    place = _skip(text, 0)
    while place < len(text):
        value = leading_value(text, place)
        yield value
        place = _skip(text, place + len(value))


def leading_value(text: str, place: int) -> str:
    """The JSON value that begins at this place, as it is written.

    Raises:
        ValueError, RecursionError: there is none.
    """
    return text[place : _DECODER.raw_decode(text, place)[1]]


def _skip(text: str, place: int) -> int:
    while place < len(text) and (text[place].isspace() or text[place] in ",;"):
        place += 1
    return place


def _calls(value: str) -> list[Call]:
    if value.startswith("["):
        return [call for each in values(value[1:-1]) for call in _calls(each)]
    try:
        written = msgspec.json.decode(value, type=_Written)
        given = bytes(written.arguments or written.parameters).decode()
    except msgspec.MsgspecError:
        written, given = _nearly(_DECODER.decode(value))
    return [Call(written.name, "{}" if given in ("", "null") else arguments(given))]


def _nearly(value: Any) -> tuple[_Written, str]:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        _refuse(value)
    given = value.get("arguments", value.get("parameters", {}))
    return _Written(value["name"]), json.dumps(given, ensure_ascii=False, allow_nan=False)


def _refuse(value: Any) -> NoReturn:
    raise ValueError(f"not JSON of a call: {value}")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)

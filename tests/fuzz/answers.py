"""What an answer must be, whatever was asked: itself, or a refusal in the one shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLANNED = {503: "queue_full", 504: "timeout"}
"""What a server may say that is not the request's fault, and the code that says it was meant."""


@dataclass(frozen=True)
class Got:
    """An answer; the names of its headers are in lower case.

    Attributes:
        whole: whether it came to its end, before the connection did.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True


def check(method: str, got: Got) -> None:
    """
    Raises:
        AssertionError: a server should not say that.
    """
    # What was no request to the server's edge has no id, and ends its connection.
    assert got.headers.get("x-request-id") or got.headers.get("connection") == "close"
    if not got.whole:  # a deadline in mid-stream, which only plain text has no form for
        assert got.headers.get("content-type", "").startswith("text/plain"), "cut off"
        return
    if method == "HEAD":
        assert not got.body
        assert got.status < 500
        return
    if got.status < 400:
        kind = got.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            _check_stream(got.body)
        elif kind.startswith("application/json"):
            _read(got.body)
        return
    error = json.loads(got.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if got.status >= 500:
        assert got.status in PLANNED, error
        assert error["code"] == PLANNED[got.status], error
    assert "\n" not in error["message"], error
    assert "Traceback" not in error["message"], error


def _check_stream(body: bytes) -> None:
    """Whole; only a deadline of its own may have ended it earlier, which its last event says."""
    assert body.endswith(b"\n\n"), body[-500:]
    *events, last = (event.removeprefix(b"data: ") for event in body[:-2].split(b"\n\n"))
    for event in events:
        _read(event)
    if last != b"[DONE]":
        assert _read(last)["error"]["code"] == PLANNED[504], body[-500:]


def _read(content: bytes) -> Any:
    """What it says, as JSON that every reader knows."""
    return json.loads(content, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")

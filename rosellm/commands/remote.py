"""A conversation with any server that speaks OpenAI's chat completions, over httpx.

What can go wrong between here and there is one line that says what to do. The API key comes
from the environment and is sent to the one address that was asked for: redirects are not
followed.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from rosellm.bench.record import error_message
from rosellm.bench.sse import EventStream
from rosellm.commands.answers import OVERFLOW, Message
from rosellm.roseinfer.errors import ConfigError, RequestError, RosellmError, shown

KEYS = ("ROSELLM_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the API key; the first one that is set is sent."""

TIMEOUT = httpx.Timeout(600, connect=10)  # a first token may wait in a queue for long
BROKEN_OFF = "the server broke off in the middle of the answer"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _ErrorDetail(msgspec.Struct):
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


class Remote:
    """One model of one server, between ``with`` and its end.

    Args:
        url: of the server; without a path, ``/v1`` is added.
        model: its name there; None takes the first one that the server lists.
        params: sampling fields, sent with every conversation as they are.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, model: str | None, params: Mapping[str, Any]) -> None:
        self.finish: str | None = None
        self._base = base_url(url)
        self._model = model or ""
        self._params = dict(params)
        # A connection for each answer: an idle one may be gone by the time a person has typed.
        fresh = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.Client(headers=_headers(), timeout=TIMEOUT, limits=fresh)

    def __enter__(self) -> Remote:
        """
        Raises:
            RosellmError: the server cannot be asked for its models.
        """
        try:
            self._model = self._model or self._first_model()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def about(self) -> str:
        return f"{shown(self._model)} at {self._base}"

    def stream(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        """The answer to the last message; closing it closes the connection."""
        body = {**self._params, "model": self._model, "messages": messages, "stream": True}
        url = f"{self._base}/chat/completions"
        with self._readable(), self._client.stream("POST", url, json=body) as response:
            self._check(response)
            self.finish = None
            for choice in _choices(response):
                self.finish = self.finish or choice.finish_reason
                yield choice.delta.content or ""

    def _first_model(self) -> str:
        url = f"{self._base}/models"
        with self._readable(), self._client.stream("GET", url) as response:
            self._check(response)
            body = response.read()
        try:
            models = msgspec.json.decode(body, type=_Models).data
        except msgspec.MsgspecError:
            raise RosellmError(
                f"{url} is not a list of models as OpenAI's API has it; is --url right?"
            ) from None
        if not models:
            raise RosellmError(f"{url} lists no model; pass --model NAME")
        return models[0].id

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Everything that httpx raises, as one line."""
        try:
            yield
        except httpx.ConnectError as error:
            raise RosellmError(
                f"no connection to {self._base}: {_said(error)}; is the server running?"
            ) from None
        except httpx.TimeoutException:
            raise RosellmError(f"{self._base} did not answer in time") from None
        except (httpx.RemoteProtocolError, httpx.ReadError) as error:
            raise RosellmError(
                f"the connection to {self._base} broke off: {_said(error)}"
            ) from None
        except httpx.HTTPError as error:
            raise RosellmError(f"{self._base}: {_said(error)}") from None

    def _check(self, response: httpx.Response) -> None:
        """Raise what any status but 200 means."""
        status = response.status_code
        if status == 200:
            return
        body = response.read()
        said = error_message(body) or response.reason_phrase
        raise RequestError(
            f"{self._base} answered {status}: {said}{_advice(status, response)}",
            status=status,
            code=_code(status, body),
        )


def base_url(url: str) -> str:
    """The address that paths such as ``/models`` are added to.

    >>> base_url("http://127.0.0.1:8000"), base_url("http://host/api/v1/")
    ('http://127.0.0.1:8000/v1', 'http://host/api/v1')

    Raises:
        ConfigError: not an http address.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ConfigError(f"--url {url!r} is not like http://127.0.0.1:8000")
    if parts.username is not None:
        raise ConfigError(f"--url must not hold a secret; set {KEYS[0]} or {KEYS[1]}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _choices(response: httpx.Response) -> Iterator[_Choice]:
    """What a stream of chat chunks says of its one answer.

    Raises:
        RosellmError: an error in the stream, or its end without a finish reason.
    """
    events, finished = EventStream(), False
    for received in response.iter_bytes():
        for payload in events.feed(received):
            if payload == b"[DONE]":
                return
            for choice in _decode(payload).choices:
                finished = finished or choice.finish_reason is not None
                yield choice
    if not finished:
        raise RosellmError(BROKEN_OFF)


def _decode(payload: bytes) -> _Chunk:
    try:
        chunk = msgspec.json.decode(payload, type=_Chunk)
    except msgspec.MsgspecError as error:
        raise RosellmError(f"the server sent a chunk that is not OpenAI's: {error}") from None
    if chunk.error is not None:
        raise RosellmError(f"{BROKEN_OFF}: {error_message(payload)}")
    return chunk


def _said(error: Exception) -> str:
    return shown(str(error)) or type(error).__name__


def _headers() -> dict[str, str]:
    name = next((name for name in KEYS if os.environ.get(name)), None)
    if name is None:
        return {}
    key = os.environ[name]
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{name} holds characters that no HTTP header can carry")
    return {"Authorization": f"Bearer {key}"}


def _advice(status: int, response: httpx.Response) -> str:
    """What to do about a status, where the server's own words may not say it."""
    if status in (401, 403):
        return f" (set {KEYS[0]} or {KEYS[1]} to its API key)"
    if status == 404:
        return " (check --url and --model)"
    if response.is_redirect:
        return f" (it has moved to {shown(response.headers.get('location', 'elsewhere'))})"
    return ""


def _code(status: int, body: bytes) -> str | None:
    """OpenAI's code for the refusal. Some servers only say in words that a context is full."""
    try:
        code = msgspec.json.decode(body, type=_ErrorBody).error.code
    except msgspec.MsgspecError:
        code = None
    if status == 400 and b"context length" in body:
        return OVERFLOW
    return code if isinstance(code, str) else None

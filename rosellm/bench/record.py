"""What one streamed answer was: when its chunks came, and what the server says it counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from rosellm.bench.sse import EventStream


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    """A choice of a chat chunk (``delta``) or of a completion chunk (``text``)."""

    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta or _Delta()
        return bool(self.text or delta.content or delta.reasoning_content or delta.reasoning)


_NULL = msgspec.Raw(b"null")


class _Chunk(msgspec.Struct):
    """The fields of a chunk that are looked at, in all dialects of OpenAI's API."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass
class Recorder:
    """Takes a stream in as it arrives.

    Attributes:
        times: arrival of every chunk that carries text, in seconds.
        end: arrival of the chunk that carries the finish reason.
        error: what went wrong within the stream.
    """

    times: list[float] = field(default_factory=list)
    end: float | None = None
    usage: Usage | None = None
    error: str | None = None
    _stream: EventStream = field(default_factory=EventStream)

    def feed(self, received: bytes, now: float) -> None:
        for payload in self._stream.feed(received):
            if payload != b"[DONE]":
                self._take(payload, now)

    def _take(self, payload: bytes, now: float) -> None:
        try:
            chunk = _decode(payload)
        except msgspec.MsgspecError as error:
            self.error = self.error or f"a chunk that is not OpenAI's: {error}"
            return
        if chunk.error != _NULL:
            self.error = self.error or f"in the stream: {error_message(payload)}"
        self.usage = chunk.usage or self.usage
        if any(choice.has_text for choice in chunk.choices):
            self.times.append(now)
        if any(choice.finish_reason is not None for choice in chunk.choices):
            self.end = now


class _ErrorDetail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail | str


def error_message(body: bytes) -> str:
    """The message of an OpenAI error body, or the beginning of whatever else it is."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return _short(body.decode(errors="replace"))
    return _short(error if isinstance(error, str) else error.message or str(error.code))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:157]}..."

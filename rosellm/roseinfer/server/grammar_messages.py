"""What a server and the worker that checks its grammars say to each other, over pipes."""

from __future__ import annotations

from typing import IO, Any

import msgspec

_LENGTH_BYTES = 4


class Specials(msgspec.Struct, tag="specials"):
    """The first message: the vocabulary's size, and the special tokens' ids and names."""

    size: int
    names: dict[int, bytes]


class Check(msgspec.Struct, tag="check"):
    """A grammar, or GBNF that is to become one.

    Attributes:
        schema: what the text was made of, where it is a schema: so that a fault has a place.
    """

    text: str
    schema: dict[str, Any] | bool | None = None


class Verdict(msgspec.Struct, tag="verdict"):
    """What came of it: the text to use, or what is wrong with it and where in the schema."""

    text: str = ""
    error: str = ""
    pointer: str = ""


def send(stream: IO[bytes], message: msgspec.Struct) -> None:
    payload = msgspec.msgpack.encode(message)
    stream.write(len(payload).to_bytes(_LENGTH_BYTES, "little") + payload)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """The next message; none at the end of the stream."""
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    return stream.read(length)

"""What an answer consists of: text, reasoning before it, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, or a piece of one.

    Attributes:
        name: empty in pieces that go on with the arguments of the call before.
        arguments: JSON text of an object, as the model wrote it.
    """

    name: str
    arguments: str


def joined(pieces: Iterable[Call]) -> tuple[Call, ...]:
    """Pieces put together as far as they go.

    >>> joined([Call("f", ""), Call("", '{"a":'), Call("", " 1}"), Call("g", "{}")])
    (Call(name='f', arguments='{"a": 1}'), Call(name='g', arguments='{}'))
    """
    calls: list[tuple[str, list[str]]] = []
    for piece in pieces:
        if piece.name or not calls:
            calls.append((piece.name, []))
        calls[-1][1].append(piece.arguments)
    return tuple(Call(name, "".join(arguments)) for name, arguments in calls)


@dataclass(frozen=True, slots=True)
class Parts:
    """A stretch of an answer. Put together in order, stretches give the parts of the whole."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()

    def __add__(self, later: Parts) -> Parts:
        return Parts(
            self.content + later.content,
            self.reasoning + later.reasoning,
            joined(self.calls + later.calls),
        )


class Stage(Protocol):
    """Takes an answer's text apart while it comes, the same way however it is cut in pieces."""

    def feed(self, text: str) -> Parts:
        """Take some text; return what has become certain."""
        ...

    def flush(self) -> Parts:
        """The rest, when no more text will come."""
        ...

"""What an answer consists of: text, reasoning before it, and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """One complete call of a tool.

    Attributes:
        arguments: JSON text of an object, as the model wrote it wherever that was JSON.
    """

    name: str
    arguments: str


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
            self.calls + later.calls,
        )


class Stage(Protocol):
    """Takes an answer's text apart while it comes, the same way however it is cut in pieces."""

    def feed(self, text: str) -> Parts:
        """Take some text; return what has become certain."""
        ...

    def flush(self) -> Parts:
        """The rest, when no more text will come."""
        ...

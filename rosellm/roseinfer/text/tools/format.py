"""What a format of tool calls consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.incoming import Incoming, Waits


@dataclass(frozen=True)
class Shape:
    """How a call is written, for a grammar to ask for one.

    Attributes:
        opening, closing: round all calls of an answer.
        before_name, before_arguments, after: round the name and the arguments of each call.
        between: calls after the first one are preceded by it.
    """

    before_name: str
    before_arguments: str
    after: str
    between: str = ""
    opening: str = ""
    closing: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """Two markers and one function.

    Attributes:
        start, end: markers round one call or several; an empty end is the end of the answer.
        read: reads what stands between the markers and tells of the calls; raises ``NoCall``
            where it cannot go on.
        bare: how an answer begins that is nothing but calls, without a marker; empty if there
            is no such thing.
        inner: further markers that ``read`` looks for, which may be special tokens.
        shape: how to write calls; None where only reading is known.
        short_ids: whether the template insists on ids of nine letters and digits.
    """

    start: str
    end: str
    read: Callable[[Incoming, Calls], Waits[None]]
    bare: str = ""
    inner: tuple[str, ...] = ()
    shape: Shape | None = None
    short_ids: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.start, self.end, *self.inner)))

"""All that is taken out of an answer's text, as one stage: reasoning first, then tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rosellm.roseinfer.text.harmony import MARKERS, Harmony
from rosellm.roseinfer.text.parts import Parts, Stage
from rosellm.roseinfer.text.reasoning import Reasoning, ReasoningFormat
from rosellm.roseinfer.text.tools.format import ToolFormat
from rosellm.roseinfer.text.tools.stage import ToolCalls


class Parser(Stage, Protocol):
    """A stage that knows where the reasoning is, and when there are calls enough."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where in the text so far there is reasoning, markers included."""
        ...

    @property
    def enough(self) -> bool:
        """Whether nothing that may still come counts."""
        ...


@dataclass(frozen=True)
class AnswerFormat:
    """What to look for in an answer.

    Attributes:
        reasoning: None where the model has none.
        opened: whether the prompt ends inside the reasoning.
        tools: None where no calls are wanted.
        names: of the tools that may be called.
        most: calls that are wanted at most.
        harmony: read channels instead, which carry both.
    """

    reasoning: ReasoningFormat | None = None
    opened: bool = False
    tools: ToolFormat | None = None
    names: frozenset[str] = frozenset()
    most: int | None = None
    harmony: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """What has to reach the parser even where it is a special token."""
        if self.harmony:
            return MARKERS
        reasoning = (self.reasoning.start, self.reasoning.end) if self.reasoning else ()
        return (*reasoning, *(self.tools.markers if self.tools else ()))

    def parser(self) -> Parser | None:
        """A parser for one answer; None where all of it is content."""
        if self.harmony:
            return Harmony(self.names, self.most)
        if self.reasoning is None and self.tools is None:
            return None
        return _Chain(self)


PLAIN = AnswerFormat()
"""All of an answer is content."""


class _Chain:
    """The content of one stage is the text of the next."""

    def __init__(self, format: AnswerFormat) -> None:
        self._reasoning = self._tools = None
        if format.reasoning is not None:
            opened = format.opened or format.reasoning.opened
            self._reasoning = Reasoning(format.reasoning, opened)
        if format.tools is not None:
            self._tools = ToolCalls(format.tools, format.names, format.most)

    @property
    def spans(self) -> list[tuple[int, int]]:
        span = self._reasoning and self._reasoning.span
        return [span] if span else []

    @property
    def enough(self) -> bool:
        return self._tools is not None and self._tools.enough

    def feed(self, text: str) -> Parts:
        return self._then(self._reasoning.feed(text) if self._reasoning else Parts(text))

    def flush(self) -> Parts:
        parts = self._then(self._reasoning.flush() if self._reasoning else Parts())
        return parts + self._tools.flush() if self._tools else parts

    def _then(self, parts: Parts) -> Parts:
        if self._tools is None:
            return parts
        return Parts(reasoning=parts.reasoning) + self._tools.feed(parts.content)

"""All that is taken out of an answer's text, as one stage: reasoning first, then tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rosellm.roseinfer.text.harmony import MARKERS, Harmony
from rosellm.roseinfer.text.parts import Parts, Stage
from rosellm.roseinfer.text.reasoning import FORMATS, Reasoning, ReasoningFormat
from rosellm.roseinfer.text.tools import registry
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

    @property
    def whole(self) -> bool:
        """Whether no call has come out that is broken, or was cut off, and the answer did not end
        inside of what may have become one."""
        ...


HARMONY = "harmony"


@dataclass(frozen=True)
class AnswerFormat:
    """What to look for in an answer: plain values, so that they can be written down.

    Attributes:
        reasoning: name of the markers; None where the model has none.
        opened: whether the prompt ends inside the reasoning.
        tools: name of the format of calls; None where no calls are wanted.
        names: of the tools that may be called.
        most: calls that are wanted at most.
    """

    reasoning: str | None = None
    opened: bool = False
    tools: str | None = None
    names: frozenset[str] = frozenset()
    most: int | None = None

    @property
    def harmony(self) -> bool:
        """Whether there are channels instead, which carry both."""
        return HARMONY in (self.reasoning, self.tools)

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        """The markers, where there are two."""
        return FORMATS.get(self.reasoning or "")

    @property
    def tool_format(self) -> ToolFormat | None:
        """The format of calls, where it has a module."""
        return None if self.tools is None or self.harmony else registry.load(self.tools)

    @property
    def markers(self) -> tuple[str, ...]:
        """What has to reach the parser even where it is a special token."""
        if self.harmony:
            return MARKERS
        reasoning, tools = self.reasoning_format, self.tool_format
        both = (reasoning.start, reasoning.end) if reasoning else ()
        return (*both, *(tools.markers if tools else ()))

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
        reasoning, tools = format.reasoning_format, format.tool_format
        if reasoning is not None:
            self._reasoning = Reasoning(reasoning, format.opened or reasoning.opened)
        if tools is not None:
            self._tools = ToolCalls(tools, format.names, format.most)

    @property
    def spans(self) -> list[tuple[int, int]]:
        span = self._reasoning and self._reasoning.span
        return [span] if span else []

    @property
    def enough(self) -> bool:
        return self._tools is not None and self._tools.enough

    @property
    def whole(self) -> bool:
        return self._tools is None or self._tools.whole

    def feed(self, text: str) -> Parts:
        return self._then(self._reasoning.feed(text) if self._reasoning else Parts(text))

    def flush(self) -> Parts:
        parts = self._then(self._reasoning.flush() if self._reasoning else Parts())
        return parts + self._tools.flush() if self._tools else parts

    def _then(self, parts: Parts) -> Parts:
        if self._tools is None:
            return parts
        return Parts(reasoning=parts.reasoning) + self._tools.feed(parts.content)

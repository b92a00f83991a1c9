"""In which formats a model answers: what was configured, or what its chat template gives away."""

from __future__ import annotations

from dataclasses import dataclass

from rosellm.roseinfer.config import ReasoningParser, ToolParser
from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.tools import ToolUse
from rosellm.roseinfer.text import reasoning
from rosellm.roseinfer.text.answer_parser import HARMONY, AnswerFormat
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.tools import registry
from rosellm.roseinfer.text.tools.format import ToolFormat


@dataclass(frozen=True)
class Formats:
    """Names of formats; None where a model has none that is known."""

    tools: str | None
    reasoning: str | None
    takes_tools: bool

    @classmethod
    def of(
        cls,
        template: ChatTemplate,
        tool_parser: ToolParser = "auto",
        reasoning_parser: ReasoningParser = "auto",
    ) -> Formats:
        source = template.source if template.has_own else ""
        tools = registry.recognise(source) if tool_parser == "auto" else tool_parser
        thinks = reasoning.recognise(source) if reasoning_parser == "auto" else reasoning_parser
        if tools == HARMONY and reasoning_parser == "auto":
            thinks = HARMONY
        return cls(
            tools=None if tools == "none" else tools,
            reasoning=None if thinks == "none" else thinks,
            takes_tools=template.has_own and "tools" in template.variables,
        )

    @property
    def tool_format(self) -> ToolFormat | None:
        known = self.tools is not None and self.tools != HARMONY
        return registry.load(self.tools) if known and self.tools else None

    def check_tools(self) -> None:
        """
        Raises:
            RequestError: the model cannot be told of tools, or its calls not be read.
        """
        if not self.takes_tools:
            raise _refusal("this model's chat template takes no tools")
        if self.tools is None:
            raise _refusal(
                "the format in which this model calls tools is not known (--tool-parser names it)"
            )

    def of_answer(self, prompt_end: str, use: ToolUse | None) -> AnswerFormat:
        """What to look for in the answer to a prompt.

        Args:
            prompt_end: the last few tokens' text.
        """
        names = use.names if use else frozenset()
        most = use.most if use else None
        thinks, opened, end = self.reasoning, False, prompt_end.rstrip()
        markers = reasoning.FORMATS.get(thinks or "")
        if markers is not None and end.endswith(markers.end):
            thinks = None  # the prompt has ended the reasoning already
        elif markers is not None:
            opened = end.endswith(markers.start)
        return AnswerFormat(thinks, opened, self.tools if use else None, names, most)


def _refusal(message: str) -> RequestError:
    return RequestError(f"tools: {message}", param="tools", code="unsupported_parameter")

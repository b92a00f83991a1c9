"""Tokens of one answer on their way to its parts: text, reasoning and tool calls.

The one place where a token's text passes all stages: detokenizer, stop strings, parser. Knows
neither the engine nor HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rosellm.roseinfer.server.answer_text import AnswerText, Note
from rosellm.roseinfer.text.answer_parser import AnswerFormat
from rosellm.roseinfer.text.parts import Parts
from rosellm.roseinfer.text.tokenizer import Tokenizer


class AnswerReader(AnswerText[Note]):
    """``AnswerText`` whose text is taken apart.

    Args:
        format: what to look for; the others are those of ``AnswerText``.

    Attributes:
        called: whether the answer has called a tool, or begun to.
        reasoning_tokens: how many of the tokens so far are known to be reasoning.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        format: AnswerFormat | None = None,
    ) -> None:
        super().__init__(tokenizer, context, stop, min_tokens, include_stop)
        self._parser = format.parser() if format is not None else None
        self._starts: list[int] = []  # characters before each token, where reasoning is looked for
        self.called = False

    @property
    def ended(self) -> bool:
        """Whether nothing that may still come is part of the answer."""
        return self.stopped or (self._parser is not None and self._parser.enough)

    @property
    def calls_are_whole(self) -> bool:
        """Whether the arguments of each call are JSON and have come to their end."""
        return self._parser is None or self._parser.whole

    @property
    def reasoning_tokens(self) -> int:
        spans = self._parser.spans if self._parser is not None else []
        return sum(bisect_left(self._starts, end) - bisect_left(self._starts, start)
                   for start, end in spans)  # fmt: skip

    def read(self, token: int, note: Note | None = None) -> Parts:
        """Take a token; return what has become certain, often nothing."""
        if self._parser is None:
            return Parts(self.feed(token, note))
        self._starts.append(self.characters)
        parts = self._parser.feed(self.feed(token, note))
        return self._noted(parts + self._parser.flush() if self.stopped else parts)

    def finish(self) -> Parts:
        """The rest, when no more tokens will come."""
        text = self.flush()
        if self._parser is None:
            return Parts(text)
        return self._noted(self._parser.feed(text) + self._parser.flush())

    def _noted(self, parts: Parts) -> Parts:
        self.called = self.called or bool(parts.calls)
        return parts

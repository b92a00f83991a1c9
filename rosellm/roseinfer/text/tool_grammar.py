"""The grammar of answers that must call tools, or whose calls must fit a schema.

Where a call has to be made, the answer is reasoning (if the model does that) and calls. Where it
may be made, text is free until a call's marker begins one. Knows markers and schemas, no request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosellm.roseinfer.text.answer_parser import AnswerFormat
from rosellm.roseinfer.text.grammar_source import JsonObject, JsonSchema, Lark, rules, symbol
from rosellm.roseinfer.text.tools.format import Shape, ToolFormat

_TEXT = r"/(.|\n)*/"
_SPACE = r"/[ \n]{0,4}/"


@dataclass(frozen=True)
class Callable:
    """A tool that may be called.

    Attributes:
        schema: of its arguments; None for any object.
    """

    name: str
    schema: Mapping[str, Any] | None


def object_schema(schema: Mapping[str, Any]) -> JsonSchema:
    """A schema of arguments, which are an object even where it does not say so."""
    return JsonSchema(schema if "type" in schema else {"type": "object", **schema})


def tool_grammar(
    format: AnswerFormat, tools: Sequence[Callable], must: bool, special: Mapping[str, int]
) -> Lark:
    """The grammar of an answer in a format whose shape is known.

    Args:
        must: whether there has to be a call.
        special: ids of those markers that are special tokens, which no text can spell.
    """
    written = format.tool_format
    assert written is not None, "a format without tools has no calls"
    assert written.shape is not None, "the caller has checked this"
    writer = _Writer(written, written.shape, format.most, special)
    lines = [*_reasoning(format, writer), *writer.calls(tools)]
    lines += writer.must() if must else writer.may()
    return Lark("\n".join(lines) + "\n")


def _reasoning(format: AnswerFormat, writer: _Writer) -> Iterator[str]:
    """The rules ``start`` and what leads to ``body``."""
    markers = format.reasoning_format
    if markers is None:
        yield "start: body"
        return
    if format.opened or markers.opened:
        yield "start: thoughts body"
    else:
        yield "start: (thinking thoughts)? body"
        yield from writer.until("thinking", markers.start, "SPACE")
    yield from writer.until("thoughts", markers.end)


class _Writer:
    """Writes the rules of one format."""

    def __init__(
        self, format: ToolFormat, shape: Shape, most: int | None, special: Mapping[str, int]
    ) -> None:
        self._format, self._shape, self._most, self._special = format, shape, most, special

    def literal(self, text: str) -> str:
        """A fixed text in which special tokens may stand."""
        if not self._special:
            return json.dumps(text)
        pattern = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True)))
        pieces = re.split(f"({pattern})", text)
        return " ".join(
            symbol(self._special[piece]) if piece in self._special else json.dumps(piece)
            for piece in pieces
            if piece
        )

    def until(self, name: str, marker: str, before: str = "TEXT") -> Iterator[str]:
        """A rule for text up to the first ``marker``, which is part of it.

        Lazy, since any text would go on beyond a marker that is text itself.
        """
        if marker in self._special:
            yield f"{name}: {before} {symbol(self._special[marker])}"
        else:
            yield f"{name}[lazy]: {before} {json.dumps(marker)}"

    def calls(self, tools: Sequence[Callable]) -> Iterator[str]:
        """The rule ``call``: name and arguments of one of the tools, and what is round them."""
        yield f"TEXT: {_TEXT}"
        yield f"SPACE: {_SPACE}"
        between = self.literal(self._shape.before_arguments)
        options = []
        for index, tool in enumerate(tools):
            options.append(f"{json.dumps(tool.name)} {between} arguments_{index}")
            source = JsonObject() if tool.schema is None else object_schema(tool.schema)
            yield rules(source, f"arguments_{index}").rstrip("\n")
        after = self.literal(self._shape.after) if self._shape.after else ""
        yield f"call: ({' | '.join(options)}) {after}"

    def must(self) -> Iterator[str]:
        """Calls and nothing else."""
        shape = self._shape
        yield f"body: SPACE {self._all(shape.opening + shape.before_name)}"

    def may(self) -> Iterator[str]:
        """Free text, and calls from where their marker stands."""
        shape, start = self._shape, self._format.start
        first = shape.opening + shape.before_name
        if not first.startswith(start):  # nothing but calls, or anything that begins otherwise
            bare = re.escape(self._format.bare)
            yield f"OTHER: /([ \\n\\r\\t]*[^ \\n\\r\\t{bare}](.|\\n)*)?/"
            yield f"body: OTHER | SPACE {self._all(first)}"
            return
        yield from self.until("begin", start)
        rest = first.removeprefix(start)
        if shape.opening:
            yield f"body: TEXT | begin {self._all(rest)}"
        else:
            one = f"(begin {self.literal(rest) if rest else ''} call)"
            yield f"body: {one}{self._repeat()} TEXT"

    def _all(self, first: str) -> str:
        """All calls, from the text before the first name on."""
        shape = self._shape
        once = f"{self.literal(first)} call"
        again = self.literal(shape.between + shape.before_name)
        more = "" if self._most == 1 else f" ({again} call)*"
        closing = f" {self.literal(shape.closing)}" if shape.closing else ""
        return once + more + closing

    def _repeat(self) -> str:
        return "?" if self._most == 1 else "*"

"""What an answer must look like, and the one grammar text that says so.

A text is a grammar in llguidance's dialect of Lark whose rule ``start`` is the whole answer. It is
what ``Add.grammar`` carries and what the engine compiles. Grammars that hold more than one thing
(a preamble and then JSON, text or a tool call) are put together from ``rules`` and ``symbol``:

    start: "<think>" thoughts answer
    thoughts[suffix="</think>"]: /(.|\\n)*/
    answer: %json {...}                       <- rules(JsonSchema({...}), "answer")

Nothing here is checked; ``server/grammars.py`` does that, in a process of its own. Tokens are named
by their ids: this module knows no tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosellm.roseinfer.text.json_schema import stricter

# Between two tokens of JSON a space, or a line's end and the next one's indentation: as people and
# models write it, and a model that has lost its way cannot fill its answer with nothing.
_WHITESPACE = r"\x20|\x0A[\x20\x09]{0,40}"


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True)
class JsonSchema:
    """JSON that fits a schema."""

    schema: Mapping[str, Any] | bool


@dataclass(frozen=True)
class Regex:
    """A text that the whole of the pattern matches; syntax of Rust's ``regex`` crate."""

    pattern: str


@dataclass(frozen=True)
class Choice:
    """One of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Lark:
    """A grammar that is written out, with a rule ``start``."""

    text: str


GrammarSource = JsonObject | JsonSchema | Regex | Choice | Lark


def grammar_text(source: GrammarSource) -> str:
    """The grammar of an answer that is this and nothing else."""
    return source.text if isinstance(source, Lark) else rules(source, "start")


def rules(source: GrammarSource, name: str) -> str:
    """Lines that define ``name``, a rule in lower case, as this.

    >>> rules(Choice(("yes", "no")), "answer")
    'answer: /yes|no/\\n'
    """
    return f"{name}: {_expression(source)}\n"


def symbol(token: int) -> str:
    """One token of the vocabulary, special or not, in an expression of a grammar.

    >>> symbol(151657)
    '<[151657]>'
    """
    return f"<[{token}]>"


def _expression(source: GrammarSource) -> str:
    match source:
        case JsonObject():
            return _json({"type": "object"})
        case JsonSchema(schema):
            return _json(schema)
        case Regex(pattern):
            return _regex(pattern)
        case Choice(options):
            return _choice(options)
        case Lark(text):
            return f"%lark {{\n{text}\n}}"


def _choice(options: Sequence[str]) -> str:
    """A single pattern: as alternatives of a rule, 20,000 would be too many."""
    return _regex("|".join(re.escape(option) for option in options)) if any(options) else '""'


def _json(schema: Mapping[str, Any] | bool) -> str:
    if schema is False:
        schema = {"not": {}}  # the dialect wants an object here
    keywords = {} if schema is True else stricter(schema)
    options = {"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
    return "%json " + json.dumps({**keywords, "x-guidance": options})


def _regex(pattern: str) -> str:
    """A pattern between slashes. Two of them without anything between would be a comment."""
    if not pattern:
        return '""'
    escaped = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], pattern)
    return "/" + escaped.replace("\\\n", "\n").replace("\n", r"\n") + "/"

"""Texts that may bring a free one to its end: what a grammar spells out, and what patterns ask for.

A pattern that a string has to match somewhere (``[a-z]+cole``) cannot be guessed byte by byte once
the string has begun: any letter is allowed in it, and all look alike. So a text that matches is
made beforehand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from llguidance import LLMatcher

from rosellm.roseinfer.grammar.closing import find_closing
from rosellm.roseinfer.grammar.vocabulary import LIMITS, Vocabulary

_QUOTED = re.compile(r'"(?:[^"\\]|\\["\\/bfnrt])*"')
_SCHEMA = "%json "
_MOST = 16
_EFFORT = 100
_LONGEST = 64


def literals_of(grammar: str, vocabulary: Vocabulary) -> tuple[bytes, ...]:
    """Texts in quotation marks in a grammar, and texts that match patterns in its schemas."""
    lines = grammar.splitlines()
    quoted = (
        json.loads(text) for line in lines if _SCHEMA not in line for text in _QUOTED.findall(line)
    )
    spelled = dict.fromkeys(text.encode() for text in quoted if len(text) > 1)
    patterns = (each for line in lines if _SCHEMA in line for each in _patterns(line))
    made = (example(pattern, vocabulary) for pattern in _first(patterns))
    return (*_first(spelled), *filter(None, made))


def example(pattern: str, vocabulary: Vocabulary) -> bytes:
    """A short text that matches, as it stands in a JSON string; empty if none is found."""
    grammar = LLMatcher.grammar_from_regex(pattern)
    matcher = LLMatcher(vocabulary.trie, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        return b""
    found = find_closing(matcher, vocabulary, longest=_LONGEST, effort=_EFFORT) or []
    text = vocabulary.trie.decode_bytes(found).decode(errors="ignore")
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()


def _first(texts: Iterable[Any]) -> list[Any]:
    return list(islice(dict.fromkeys(texts), _MOST))


def _patterns(line: str) -> Iterator[str]:
    """Those of a schema that are not tied to where a string begins."""
    try:
        schema = json.loads(line[line.index(_SCHEMA) + len(_SCHEMA) :])
    except ValueError:  # several on a line, as only a hand-written grammar has them
        return
    yield from (pattern for pattern in _within(schema) if not pattern.startswith("^"))


def _within(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        yield from (pattern for each in schema for pattern in _within(each))
    if not isinstance(schema, dict):
        return
    pattern, of_names = schema.get("pattern"), schema.get("patternProperties")
    if isinstance(pattern, str):
        yield pattern
    if isinstance(of_names, dict):
        yield from of_names
    yield from (found for each in schema.values() for found in _within(each))

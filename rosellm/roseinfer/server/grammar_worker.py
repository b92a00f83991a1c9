"""Checks grammars in a process of its own: ``python -m rosellm.roseinfer.server.grammar_worker``.

Whoever started it may kill it when it takes too long; memory it limits itself. It compiles as the
engine does, under the same limits, over a vocabulary of single bytes and the special tokens.
Length-prefixed msgspec messages come in by standard input and go out by standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark, is_lark_syntax

from rosellm.roseinfer.grammar.compiler import compile_grammar
from rosellm.roseinfer.grammar.constraint import GrammarError
from rosellm.roseinfer.grammar.vocabulary import Vocabulary, load_vocabulary
from rosellm.roseinfer.server.grammar_messages import Check, Specials, Verdict, receive, send
from rosellm.roseinfer.text.grammar_source import JsonSchema, grammar_text
from rosellm.roseinfer.text.json_schema import pointer, subschemas
from rosellm.roseinfer.text.tokenizer import Tokenizer

MEMORY_BYTES = 4 << 30
_MOST_PROBES = 300


class _Bytes(Tokenizer):
    """Special tokens where they are, and every byte behind them."""

    def __init__(self, specials: Specials) -> None:
        self._names = specials.names
        self._size = specials.size
        self.vocab_size = specials.size + 256
        self.special_ids = frozenset(specials.names)

    def token_bytes(self, id: int) -> bytes:
        return bytes([id - self._size]) if id >= self._size else self._names.get(id, b"")

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        return [self._size + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_to_id(self, token: str) -> int | None:
        return None


def judge(check: Check, vocabulary: Vocabulary) -> Verdict:
    """Compile, and find the place of what does not."""
    try:
        text = check.text if _is_ours(check) else gbnf_to_lark(check.text)
        compile_grammar(text, vocabulary)
    except (GrammarError, GbnfToLarkError) as error:
        place = "" if check.schema is None else _place(check.schema, str(error), vocabulary)
        return Verdict(error=plain(str(error)), pointer=place)
    return Verdict(text)


def _is_ours(check: Check) -> bool:
    return check.schema is not None or is_lark_syntax(check.text) or "::=" not in check.text


def plain(error: str) -> str:
    """The library's words without the line in a text that the client has never seen.

    >>> plain("at 1(8): failed to compile JSON schema: Unknown format: x")
    'Unknown format: x'
    >>> plain("at 1(8): invalid regex \\"(\\": regex parse error:\\n    (\\nerror: unclosed group")
    'invalid regex "(": unclosed group'
    """
    first, *more = error.splitlines() or [""]
    first = re.sub(r"^at \d+\(\d+\): ", "", first.split("failed to compile JSON schema: ", 1)[-1])
    reason = [line.removeprefix("error: ") for line in more if line.startswith("error: ")]
    return f"{first.removesuffix(' regex parse error:')} {reason[0]}" if reason else first


def _place(schema: dict[str, Any] | bool, error: str, vocabulary: Vocabulary) -> str:
    """Where in a schema the fault is: the deepest part that has it all by itself."""
    if not isinstance(schema, dict):
        return ""
    shared = {key: schema[key] for key in ("$defs", "definitions", "$id") if key in schema}
    deepest: tuple[str | int, ...] = ()
    part: Any = schema
    for count, (place, each) in enumerate(subschemas(schema)):
        if count > _MOST_PROBES:
            break
        # Parts of a part come after it; others are of interest only while none is at fault.
        if len(place) > len(deepest) and place[: len(deepest)] == deepest:
            probe = {**shared, **each} if isinstance(each, dict) else each
            if _fails_so(probe, error, vocabulary):
                deepest, part = place, each
    return pointer((*deepest, *_keyword(part, plain(error))))


def _fails_so(schema: Any, error: str, vocabulary: Vocabulary) -> bool:
    try:
        compile_grammar(grammar_text(JsonSchema(schema)), vocabulary)
    except GrammarError as other:
        return plain(str(other)) == plain(error)
    return False


def _keyword(schema: Any, error: str) -> Iterator[str]:
    """The schema's keyword that a message is about, if it says so."""
    if not isinstance(schema, dict):
        return
    quoted = error.partition("[")[2].partition("]")[0]
    names: list[str] = []
    with contextlib.suppress(ValueError):
        names = [name for name in json.loads(f"[{quoted}]") if name in schema]
    values = {"Unknown format": "format", "regex": "pattern", "Resource": "$ref", "$ref": "$ref"}
    names += [key for sign, key in values.items() if sign in error and key in schema]
    names += [key for key in schema if re.search(rf"(?<![\w$]){re.escape(key)}\b", error)]
    yield from names[:1]


def main() -> None:
    _limit_memory()
    source, target = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is no message
    specials = msgspec.msgpack.decode(receive(source), type=Specials)
    vocabulary = load_vocabulary(_Bytes(specials), specials.size + 256)
    send(target, Verdict())
    while payload := receive(source):
        send(target, judge(msgspec.msgpack.decode(payload, type=Check), vocabulary))


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    main()

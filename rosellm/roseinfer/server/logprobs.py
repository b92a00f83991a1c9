"""The engine's log-probabilities in OpenAI's shapes, and in vLLM's for those of a prompt."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from msgspec import UNSET, UnsetType

from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.server.delta import TokenLogprobs
from rosellm.roseinfer.server.schemas.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from rosellm.roseinfer.server.spelling import Spelling, text_of
from rosellm.roseinfer.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0  # what OpenAI writes for minus infinity, which JSON has not
LONGEST_CHARACTER = 4  # bytes in UTF-8

Scored = tuple[int, Logprobs | None]
"""A token and its scores; a prompt's first token has none."""


def chat_logprobs(spelling: Spelling, entries: Iterable[TokenLogprobs]) -> ChatLogprobs:
    """The next tokens of a chat answer."""
    content = []
    for entry in entries:
        top = zip(entry.scores.top_ids, entry.scores.top, strict=True)
        content.append(
            TokenLogprob(
                *_spelt(spelling, entry.id, entry.scores.chosen),
                [TopLogprob(*_spelt(spelling, id, logprob)) for id, logprob in top],
            )
        )
        spelling.advance(entry.id)
    return ChatLogprobs(content)


def _spelt(spelling: Spelling, id: int, logprob: float) -> tuple[str, float, list[int]]:
    spelt = spelling.bytes(id)
    return text_of(spelt), finite(logprob), list(spelt)


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, IMPOSSIBLE)


class LegacyLogprobs:
    """Log-probabilities of one completion, of its next tokens at a time.

    Args:
        context: the prompt, where it is not itself part of the text.
        top: how many of the likeliest tokens to show; the token itself comes on top of them.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], top: int) -> None:
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer, context)
        self._top = top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in context[-LONGEST_CHARACTER:]:  # it may end inside a character
            self._length(id)

    def of(self, tokens: Iterable[Scored]) -> CompletionLogprobs:
        """Those of the tokens that come next; offsets count characters of the whole text."""
        out = CompletionLogprobs()
        for id, scores in tokens:
            out.tokens.append(legacy_text(self._spelling.bytes(id)))
            out.token_logprobs.append(None if scores is None else finite(scores.chosen))
            out.top_logprobs.append(None if scores is None else self._likeliest(id, scores))
            out.text_offset.append(self._offset)
            self._offset += self._length(id)
            self._spelling.advance(id)
        return out

    def _likeliest(self, id: int, scores: Logprobs) -> dict[str, float]:
        """By text. Of tokens that look the same the likelier one counts."""
        ids = [*scores.top_ids[: self._top], id]
        logprobs = [*scores.top[: self._top], scores.chosen]
        found: dict[str, float] = {}
        for each, logprob in zip(ids, logprobs, strict=True):
            found.setdefault(legacy_text(self._spelling.bytes(each)), finite(logprob))
        return found

    def _length(self, id: int) -> int:
        """Characters that this token completes."""
        if id in self._tokenizer.special_ids:
            return 0
        return len(self._decoder.decode(self._spelling.bytes(id)))


def legacy_text(spelt: bytes) -> str:
    r"""A token in the legacy form; part of a character is written as OpenAI does.

    >>> legacy_text(b" a"), legacy_text(b"\xe2\x80")
    (' a', 'bytes:\\xe2\\x80')
    """
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], scores: Sequence[Logprobs], top: int | None
) -> PromptLogprobs | UnsetType:
    """For every prompt token but the first: it and the ``top`` likeliest in its place, by id."""
    if top is None:
        return UNSET
    rows = zip(prompt[1:], scores, strict=True)
    return [None, *(_in_its_place(tokenizer, id, each, top) for id, each in rows)]


def _in_its_place(
    tokenizer: Tokenizer, id: int, scores: Logprobs, top: int
) -> dict[int, PromptLogprob]:
    ranked = zip(scores.top_ids[:top], scores.top[:top], strict=True)
    found = {
        each: PromptLogprob(finite(logprob), text_of(tokenizer.token_bytes(each)), rank)
        for rank, (each, logprob) in enumerate(ranked, start=1)
    }
    if id not in found:
        text = text_of(tokenizer.token_bytes(id))
        found[id] = PromptLogprob(finite(scores.chosen), text)
    return found

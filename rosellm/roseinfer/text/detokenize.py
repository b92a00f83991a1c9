"""Token ids to text, one id at a time, adding up to exactly what a full decode gives.

Works with any decoder, through a short window of the latest ids that is decoded
again for every new one. Only these facts about decoders are used:

- A character whose bytes are not all there shows as at most three U+FFFD.
- Text depends on the ids before it only at the start of a text, where a leading
  space is dropped, and inside one character's bytes. So after more than three
  characters, what follows in a window's text also follows in the whole text.
- Where a decoder judges a run of byte tokens as a whole (``byte_run_ids``),
  nothing of the run is certain before it ends, and no window may start inside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rosellm.roseinfer.text.tokenizer import Tokenizer

_MARK = "\ufffd"
_UNCERTAIN = 3
_LONGEST = 16  # ids in a window: decoding more costs more, and so does shortening more often


class Detokenizer:
    """Turns one stream of token ids into text.

    All the text returned together equals ``tokenizer.decode(context + ids)`` without the prefix
    that it shares with ``tokenizer.decode(context)``; what has been returned is at any moment a
    prefix of that, and never holds U+FFFD for a character whose bytes are still arriving.

    Args:
        tokenizer: decodes the ids.
        context: ids that the stream continues (a prompt), whose text is not returned.
        skip_special_tokens: give no text for special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._window = self._tail(context)
        self._context_text = self._decode(self._window)
        self._done = 0  # characters of the window's text that are returned, or not ours

    def feed(self, token: int) -> str:
        """Take one id; return the text that has become certain, often none."""
        if token in self._hidden or token >= self._tokenizer.vocab_size:
            return ""
        self._window.append(token)
        if token in self._tokenizer.byte_run_ids:
            return ""
        text = self._decode(self._window)
        fresh = self._take(text, len(text) - _uncertain(text))
        if len(self._window) > _LONGEST:
            self._shorten(len(text) - self._done)
        return fresh

    def flush(self) -> str:
        """The rest of the text, when no more ids will come."""
        text = self._decode(self._window)
        return self._take(text, len(text))

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)

    def _take(self, text: str, end: int) -> str:
        fresh = text[self._done : end]
        self._done = max(self._done, end)
        return self._without_context(fresh) if self._context_text else fresh

    def _without_context(self, fresh: str) -> str:
        """Drop the context's text. New ids may have changed its end: what differs is ours."""
        common = _common_length(self._context_text, fresh)
        differs = common < len(fresh)
        self._context_text = "" if differs else self._context_text[common:]
        return fresh[common:]

    def _shorten(self, waiting: int) -> None:
        """Drop the oldest ids. The last ``waiting`` characters are still to be returned."""
        self._window = self._tail(self._window)
        self._done = len(self._decode(self._window)) - waiting

    def _tail(self, ids: Sequence[int]) -> list[int]:
        """The last few visible ids, enough that the ids before them no longer matter."""
        tail: deque[int] = deque()
        for token in reversed(ids):
            if token in self._hidden or token >= self._tokenizer.vocab_size:
                continue
            tail.appendleft(token)
            starts_clean = token not in self._tokenizer.byte_run_ids
            if starts_clean and len(self._decode(list(tail))) > _UNCERTAIN:
                break
        return list(tail)


def _uncertain(text: str) -> int:
    """How many characters at the end may be those of an unfinished character."""
    if not text.endswith(_MARK):
        return 0
    return min(_UNCERTAIN, len(text) - len(text.rstrip(_MARK)))


def _common_length(first: str, second: str) -> int:
    for length, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return length
    return min(len(first), len(second))

"""Tokens of one answer on their way to its text, each with a note that travels along.

A note (a token's log-probabilities, say) comes out no sooner than the token's text: a stop
string may still take both back. Knows tokens and text, neither the engine nor HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from rosellm.roseinfer.text.detokenize import Detokenizer
from rosellm.roseinfer.text.stop import StopFilter
from rosellm.roseinfer.text.tokenizer import Tokenizer

Note = TypeVar("Note")


class AnswerText(Generic[Note]):
    """Text that is safe to show, and the notes of the tokens that it is made of.

    Args:
        context: ids that the answer continues, see ``Detokenizer``.
        stop: strings that end the answer; the text before the match is shown.
        min_tokens: stop strings count only in what follows the first so many tokens.
        include_stop: show the match too.

    Notes come out in the order of their tokens. Those of tokens whose text starts at or after
    the match of a stop string never do; that of a token which the match cuts in two does.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, context)
        self._stop = StopFilter(stop, include_stop)
        self._min_tokens = min_tokens
        self._tokens = 0
        self._certain = 0  # characters that the tokens have come to
        self._shown = 0  # of these, the characters that have passed the stop filter
        self._open: list[tuple[int, Note]] = []  # start; the text of these is not certain yet
        self._closed: deque[tuple[int, int, Note]] = deque()  # start, end

    @property
    def characters(self) -> int:
        """How many the tokens so far have certainly come to, before any stop string."""
        return self._certain

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stop.matched is not None

    def feed(self, token: int, note: Note | None = None) -> str:
        """Take a token; return the text that can be shown now, often none."""
        self._tokens += 1
        if note is not None:
            self._open.append((self._certain, note))
        fresh = self._detokenizer.feed(token)
        if fresh or (len(self._open) == 1 and self._has_no_text(token)):
            self._close(len(fresh))
        return self._show(self._filter(fresh))

    def flush(self) -> str:
        """The rest of the text, when no more tokens will come."""
        fresh = self._detokenizer.flush()
        self._close(len(fresh))
        text = self._filter(fresh)
        return self._show(text + self._stop.flush())

    def notes(self) -> list[Note]:
        """Those of the tokens whose text has been shown since the last call."""
        out = []
        while self._closed and self._is_out(*self._closed[0][:2]):
            out.append(self._closed.popleft()[2])
        return out

    def _has_no_text(self, token: int) -> bool:
        return token in self._tokenizer.special_ids or token >= self._tokenizer.vocab_size

    def _close(self, characters: int) -> None:
        self._certain += characters
        self._closed += [(start, self._certain, note) for start, note in self._open]
        self._open.clear()

    def _filter(self, text: str) -> str:
        return self._stop.feed(text) if self._tokens > self._min_tokens else text

    def _show(self, text: str) -> str:
        self._shown += len(text)
        return text

    def _is_out(self, start: int, end: int) -> bool:
        return end <= self._shown or (self.stopped and start < self._shown)

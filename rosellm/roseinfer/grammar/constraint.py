"""Where one choice of a request stands in its grammar, and how it is brought to an end in time.

A closing is a sequence of tokens that leads from here to where the grammar accepts. While there is
much room for the answer, one is looked for now and then; when room gets scarce, after every token.
One that is too long by now is kept too: what follows it may still become short enough.
A token after which no closing would fit is not taken: the first token of the closing that was known
before it is, in its place. So an answer whose end was ever in sight is complete when its room is
used up.

Nothing here depends on what else is being served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llguidance import LLMatcher

from rosellm.roseinfer.grammar.closing import find_closing, mended
from rosellm.roseinfer.grammar.vocabulary import Vocabulary

FIRST_EFFORT = 600
_EFFORT = 100
_SCARCE = 24  # tokens beyond the closing and the shortest answer
_SELDOM = 64  # most tokens between two looks
_RETRY = 8  # tokens until the next look where none is found; twice as many where none ever was
_LATE = 64  # room at which looking for a first one begins again
_LONGEST = 4096


class GrammarError(Exception):
    """A grammar that cannot be followed (any further); one line that says why."""


class Constraint:
    """One choice's state. Changes only in ``take``.

    Args:
        matcher: this choice's own.
        closing: one from where the matcher is, if it is known.
        stops: tokens that end an answer. They are allowed only where the grammar accepts.
        literals: see ``find_closing``.

    Attributes:
        matcher: to be read only.
        stuck: whether the last mask allowed no token (``masks.py`` says so).
        closed: whether the last token took another's place.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        closing: list[int] | None,
        stops: Collection[int],
        literals: Collection[bytes] = (),
    ) -> None:
        self.matcher = matcher
        self.stops = frozenset(stops)
        self.stuck = False
        self.closed = False
        self._vocabulary = vocabulary
        self._literals = literals
        self._closing = closing
        self._latest = closing or []  # the closing that was known last
        self._taken = 0  # bytes that have come since
        self._shortest = len(closing or ())
        self._next_look: int | None = None
        self._patience = _RETRY

    @property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return self.matcher.is_accepting()

    def allows(self, token: int) -> bool:
        """Whether this may be the next token; stop tokens may where the answer may end."""
        if token in self.stops:
            return self.accepts
        return self.matcher.validate_tokens([token]) == 1

    def ended(self, room: int) -> bool:
        """Whether the answer is complete: it cannot go on, or was brought to its end in time."""
        if self.matcher.is_stopped():
            return self.accepts
        return room == 0 and self.closed and self.accepts

    def spare(self, room: int) -> int | None:
        """The token that the next one may have to make way for.

        Args:
            room: tokens that may still come, that one included.
        """
        known = self._closing or []
        return known[0] if 0 < len(known) <= room and self._looks(room - 1) else None

    def take(self, token: int, room: int) -> int | None:
        """Go one token further, and return it or the one that takes its place.

        None means that the answer ends here, complete, for want of room for what was begun.

        Args:
            token: sampled from what the mask allows; a stop token leaves the state as it is.
            room: tokens that may still come after it.

        Raises:
            GrammarError: the grammar does not allow it, or grows beyond its limits.
        """
        self.closed = False
        if token in self.stops and self.accepts:
            return token
        if self._closing and token == self._closing[0]:
            self._follow()
        elif not self._looks(room):
            self._go(self.matcher, token)
            self._closing = None
            self._taken += int(self._vocabulary.lengths[token])
        elif not self._look_beyond(token, room):
            return self._give_way(token)
        return token

    def replay(self, tokens: Sequence[int], room: int) -> None:
        """Go on to where an earlier run of this choice had come to.

        Args:
            room: tokens that might have come, these included.

        Raises:
            GrammarError: the grammar does not allow them.
        """
        plain = self.matcher.deep_copy()
        if tokens and not plain.consume_tokens(list(tokens)):
            raise GrammarError("what was generated before does not match it")
        for taken, token in enumerate(tokens, start=1):
            if self.take(token, room - taken) != token:  # there was another limit then
                self.matcher, self._closing, self._next_look = plain, None, room - len(tokens)
                return

    def _looks(self, room: int) -> bool:
        if self._next_look is None:
            self._next_look = self._schedule(room + 1)
        return room <= self._next_look

    def _look_beyond(self, token: int, room: int) -> bool:
        """Take the token if the answer can be brought to an end after it, or could not anyway."""
        to_spare = -1 if self._closing is None else room + 1 - len(self._closing)
        if to_spare == 0:
            return False
        ahead = self.matcher.deep_copy()
        self._go(ahead, token)
        taken = self._taken + int(self._vocabulary.lengths[token])
        closing = self._find(ahead, taken, room if to_spare > 0 else _LONGEST)
        if closing is None and to_spare > 0:
            return False
        self.matcher, self._taken = ahead, taken
        self._know(closing)
        self._next_look = self._schedule(room)
        return True

    def _find(self, matcher: LLMatcher, taken: int, longest: int) -> list[int] | None:
        """A closing, from the one that was known so many bytes before if there is one."""
        near = mended(
            matcher,
            self._vocabulary,
            self._latest,
            longest=longest,
            taken=taken,
            avoid=self.stops,
        )
        if near is not None:
            return near
        return find_closing(
            matcher,
            self._vocabulary,
            longest=longest,
            effort=_EFFORT,
            avoid=self.stops,
            literals=self._literals,
            known=self._latest,
        )

    def _know(self, closing: list[int] | None) -> None:
        self._closing = closing
        if closing is not None:
            self._latest, self._taken = closing, 0

    def _schedule(self, room: int) -> int:
        """The room that will be left when a closing is looked for again."""
        if self._closing is None:
            if self._latest:  # there are some
                return room - _RETRY
            self._patience *= 2
            return min(room - self._patience // 2, _LATE)
        beyond = room - len(self._closing)
        if beyond < 0:
            return room - max(1, -beyond // 4)
        return room - max(1, min(_SELDOM, (beyond - self._shortest - _SCARCE) // 4))

    def _give_way(self, token: int) -> int | None:
        """Go on by the closing; by the token if that turns out to lead nowhere."""
        if not self._closing:
            self.closed = True
            return None
        if self.matcher.validate_tokens(self._closing[:1]) == 0:
            self._know(None)
            self._go(self.matcher, token)
            return token
        self.closed = True
        return self._follow()

    def _follow(self) -> int:
        """Go on by the closing's first token."""
        assert self._closing
        token, *rest = self._closing
        self._go(self.matcher, token)
        self._know(rest)
        return token

    @staticmethod
    def _go(matcher: LLMatcher, token: int) -> None:
        if not matcher.consume_token(token):
            raise GrammarError(first_line(matcher))


def first_line(matcher: LLMatcher) -> str:
    """What went wrong, without the state that the library adds."""
    return matcher.get_error().partition("\n")[0]

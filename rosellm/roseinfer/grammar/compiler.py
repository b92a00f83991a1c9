"""Grammar texts to the states of a request's choices, on a thread beside the engine's own.

The library compiles without holding the interpreter's lock, under limits; a text that has been
compiled lately is not compiled again. The vocabulary is indexed for the first grammar that comes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from rosellm.roseinfer.grammar.closing import find_closing
from rosellm.roseinfer.grammar.constraint import (
    FIRST_EFFORT,
    Constraint,
    GrammarError,
)
from rosellm.roseinfer.grammar.literals import literals_of
from rosellm.roseinfer.grammar.vocabulary import LIMITS, Vocabulary

log = logging.getLogger(__name__)

_KEPT = 64
_LONGEST_CLOSING = 4096


@dataclass(frozen=True)
class Wanted:
    """A request's grammar.

    Attributes:
        generated: what each choice has produced already.
        room: tokens that an answer may have, these included.
        stops: tokens that end an answer.
    """

    request: int
    text: str
    generated: Sequence[Sequence[int]]
    room: int
    stops: Sequence[int]


@dataclass(frozen=True)
class Compiled:
    """The states of a request's choices, or why there are none."""

    request: int
    constraints: tuple[Constraint, ...] = ()
    error: str = ""


def compile_grammar(text: str, vocabulary: Vocabulary) -> LLMatcher:
    """A matcher at the beginning of an answer, of which at least one is possible.

    Raises:
        GrammarError: it does not compile, or nothing matches it.
    """
    matcher = LLMatcher(vocabulary.trie, text, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds out what cannot begin
    if matcher.is_error():
        raise GrammarError(matcher.get_error())
    return matcher


class Compiler:
    """Compiles in the background; nothing of it runs before the first grammar.

    Args:
        load: indexes the vocabulary.
    """

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        self._load = load
        self._vocabulary: Vocabulary | None = None
        self._wanted: queue.SimpleQueue[Wanted] = queue.SimpleQueue()
        self._compiled: queue.SimpleQueue[Compiled] = queue.SimpleQueue()
        self._open: set[int] = set()
        self._known: OrderedDict[str, _Beginning] = OrderedDict()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def submit(self, wanted: Wanted) -> None:
        self._open.add(wanted.request)
        self._wanted.put(wanted)
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="grammars", daemon=True)
            self._thread.start()

    def forget(self, request: int) -> None:
        """Its outcome is of no interest any more."""
        self._open.discard(request)

    def finished(self, wait: float = 0.0) -> Iterator[Compiled]:
        """What has come out by now, or within so many seconds."""
        while self._open:
            try:
                done = self._compiled.get(timeout=wait) if wait else self._compiled.get_nowait()
            except queue.Empty:
                return
            wait = 0.0
            if done.request in self._open:
                self._open.discard(done.request)
                yield done

    def _live(self) -> None:
        while True:
            wanted = self._wanted.get()
            if wanted.request in self._open:
                self._compiled.put(self._outcome(wanted))

    def _outcome(self, wanted: Wanted) -> Compiled:
        try:
            return Compiled(wanted.request, tuple(self._constraints(wanted)))
        except GrammarError as error:
            return Compiled(wanted.request, error=str(error).partition("\n")[0])
        except Exception as error:  # of this request alone
            log.exception("a grammar could not be compiled")
            return Compiled(wanted.request, error=f"{type(error).__name__}: {error}")

    def _constraints(self, wanted: Wanted) -> Iterator[Constraint]:
        if self._vocabulary is None:
            self._vocabulary = self._load()
        beginning = self._beginning(wanted.text, self._vocabulary)
        closing = beginning.closing
        if not set(closing or ()).isdisjoint(wanted.stops):
            closing = _closing(
                beginning.matcher, self._vocabulary, beginning.literals, wanted.stops
            )
        for tokens in wanted.generated:
            matcher = beginning.matcher.deep_copy()
            constraint = Constraint(
                matcher, self._vocabulary, closing, wanted.stops, beginning.literals
            )
            constraint.replay(tokens, wanted.room)
            yield constraint

    def _beginning(self, text: str, vocabulary: Vocabulary) -> _Beginning:
        if text not in self._known:
            matcher = compile_grammar(text, vocabulary)
            literals = literals_of(text, vocabulary)
            closing = _closing(matcher, vocabulary, literals)
            self._known[text] = _Beginning(matcher, closing, literals)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return self._known[text]


@dataclass(frozen=True)
class _Beginning:
    """Where answers to a grammar begin: a matcher to be copied, and a short answer."""

    matcher: LLMatcher
    closing: list[int] | None
    literals: tuple[bytes, ...]


def _closing(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    literals: Sequence[bytes],
    stops: Sequence[int] = (),
) -> list[int] | None:
    return find_closing(
        matcher,
        vocabulary,
        longest=_LONGEST_CLOSING,
        effort=FIRST_EFFORT,
        avoid=stops,
        literals=literals,
    )

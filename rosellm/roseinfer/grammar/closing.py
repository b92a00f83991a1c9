"""A short way out of a grammar that a bounded search finds: tokens after which it accepts.

The search goes byte by byte on copies of a matcher, always on from the cheapest way, of equal ones
from the newest. The most promising byte in a place costs nothing, so the search walks straight on.
If that does not come to an end, it is done again with a toll on nesting and on long runs of one
byte, so that it does not lose itself in what could go on for ever. Of letters that are all alike
to the grammar one is tried, and what a grammar spells out is tried as a whole where text is free,
since it may be what ends that. Then the bytes found are cut into as few tokens as a greedy match
makes of them.

A closing that was right a token ago saves most of this: as it is, with a little put before it or
taken off, or as the end of a way that a search only has to lead to where it goes on.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from rosellm.roseinfer.grammar.vocabulary import Vocabulary

_LETTERS = (b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"123456789")
_COSTS = {
    **dict.fromkeys(range(0x21, 0x7F), 4),
    **dict.fromkeys(b"".join(_LETTERS), 2),
    **dict.fromkeys(b":,;./-", 2),
    **dict.fromkeys(b"\"'0", 1),
    **dict.fromkeys(b"}])>", 0),
}
_FREE_COSTS = {ord('"'): 0, ord("a"): 1, **dict.fromkeys(b"@.:/<\n", 3)}
_FREE = 60  # single bytes allowed from which on it is free text, in which brackets end nothing
_MANY = 8  # letters of a kind from which on they are alike
_OTHERS = 4
_OPENINGS = b"{[(<"
_RUN = 8
_TOLLS = (0, 1, 8)
_DETOUR = 4  # of the costs above, in units of the toll
_ENDS = (b'"', b"}", b"]", b"0", b'"}', b'"]')
_MENDED = 256  # bytes that are taken off a known way, at most
_NOT_TEXT = 0xFF  # how the library writes a special token among bytes


@dataclass(frozen=True)
class _Way:
    """A way to go: from where, by which tokens; and all tokens since the beginning."""

    origin: LLMatcher
    step: list[int]
    tokens: tuple[int, ...]


def find_closing(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    *,
    longest: int,
    effort: int,
    avoid: Collection[int] = (),
    literals: Collection[bytes] = (),
    known: Sequence[int] = (),
) -> list[int] | None:
    """Tokens after which the matcher accepts; None if none are found.

    Args:
        matcher: is left as it is.
        longest: tokens that the way may have.
        effort: states to look at, for each way to weigh them.
        avoid: tokens that it must not use, those that end an answer.
        literals: texts that may end a free one, see ``literals.py``.
        known: how the way may go on to its end, if it comes to where that is right.
    """
    spelled = _spelled(literals, vocabulary)
    search = _Search(vocabulary, 8 * longest, frozenset(avoid), spelled, list(known))
    for toll in _TOLLS:
        for found in search.ways_out(matcher, effort, toll):
            tokens = _shortened(matcher, vocabulary, found, avoid)
            if len(tokens) <= longest:
                return tokens
    return None


def _spelled(literals: Collection[bytes], vocabulary: Vocabulary) -> list[list[int]]:
    single = vocabulary.single
    return [[single[byte] for byte in text] for text in literals if single.keys() >= {*text}]


@dataclass(frozen=True)
class _Search:
    """What does not change on the way; ``longest`` counts bytes."""

    vocabulary: Vocabulary
    longest: int
    avoid: frozenset[int]
    literals: list[list[int]]
    known: list[int]

    def ways_out(self, matcher: LLMatcher, effort: int, toll: int) -> Iterator[tuple[int, ...]]:
        """Tokens, most of them single bytes, after which the matcher accepts."""
        serial = itertools.count()
        heap = [(0, 0, _Way(matcher, [], ()))]
        for _ in range(effort):
            if not heap:
                return
            cost, _, way = heapq.heappop(heap)
            here = way.origin.deep_copy()
            if way.step and here.try_consume_tokens(way.step) < len(way.step):
                continue
            if here.is_accepting():
                yield way.tokens
                continue
            if self.known and _ends(here, self.known, self.vocabulary):
                yield (*way.tokens, *self.known)
                continue
            if len(way.tokens) > self.longest:
                continue
            for step, extra in self._steps(here):
                further = _Way(here, step, (*way.tokens, *step))
                total = cost + _DETOUR * extra + toll * _toll(further, self.vocabulary)
                heapq.heappush(heap, (total, -next(serial), further))

    def _steps(self, matcher: LLMatcher) -> Iterator[tuple[list[int], int]]:
        """What may come next, and what it costs; the cheapest last."""
        vocabulary = self.vocabulary
        forced = matcher.compute_ff_bytes()
        if forced and _NOT_TEXT not in forced and vocabulary.single.keys() >= {*forced}:
            yield [vocabulary.single[byte] for byte in forced], 0
            return
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        hits = (mask[vocabulary.ascii_words] & vocabulary.ascii_bits) != 0
        possible, costs = _costs(bytes(vocabulary.ascii), hits.tobytes())
        for byte, cost in costs:
            if vocabulary.single[byte] not in self.avoid:
                yield [vocabulary.single[byte]], cost
        if possible > _FREE:
            yield from ((literal, 1) for literal in self.literals)
        if not costs:
            yield from (([token], 0) for token in self._shortest(mask))

    def _shortest(self, mask: NDArray[np.uint8]) -> list[int]:
        """A few allowed tokens, the shortest last: blanks, parts of characters, special tokens."""
        allowed = np.unpackbits(mask, count=self.vocabulary.size, bitorder="little")
        allowed[list(self.avoid)] = 0
        left = np.flatnonzero(allowed)
        order = np.argsort(self.vocabulary.lengths[left], kind="stable")
        found: list[int] = left[order][:_OTHERS].tolist()
        return found[::-1]


def _toll(way: _Way, vocabulary: Vocabulary) -> int:
    """What a step costs whatever else could be done: it opens something, or repeats itself."""
    text = vocabulary.trie.decode_bytes(way.step)
    run = way.tokens[-_RUN:]
    repeats = len(way.tokens) % _RUN == 0 and len(run) == _RUN and len({*run}) == 1
    return sum(byte in _OPENINGS for byte in text) + repeats


@lru_cache(maxsize=4096)
def _costs(alphabet: bytes, hits: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
    """How many bytes may come, and those to try with what they cost beyond the cheapest, last."""
    possible = {byte for byte, hit in zip(alphabet, hits, strict=True) if hit}
    costs = _bytes_to_try(possible)
    least = min(costs.values(), default=0)
    dearest_first = sorted(costs.items(), key=lambda item: -item[1])
    return len(possible), tuple((byte, cost - least) for byte, cost in dearest_first)


def _bytes_to_try(allowed: Collection[int]) -> dict[int, int]:
    """Bytes and their costs; none where only blanks or parts of characters may come."""
    if len(allowed) > _FREE:
        return {byte: cost for byte, cost in _FREE_COSTS.items() if byte in allowed}
    skipped: set[int] = set()
    for letters in _LETTERS:
        these = [byte for byte in letters if byte in allowed]
        skipped.update(these[1:] if len(these) > _MANY else ())
    return {byte: _COSTS[byte] for byte in allowed if byte in _COSTS and byte not in skipped}


def mended(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    known: Sequence[int],
    *,
    longest: int,
    taken: int,
    avoid: Collection[int] = (),
) -> list[int] | None:
    """A closing that was right before, with what has come or been opened since made good.

    Args:
        taken: bytes that have come since.
    """
    if not known or not _is_text(known, vocabulary):
        return None
    if len(known) <= longest and _ends(matcher, known, vocabulary):
        return list(known)
    text = vocabulary.trie.decode_bytes(list(known))
    tries = [text]
    tries += [text[start:] for start in range(min(taken, _MENDED, len(text) - 1), 0, -1)]
    tries += [end + text for end in _ENDS]
    for each in dict.fromkeys(tries):
        found = _cut(each, vocabulary, longest, avoid)
        if found and _ends(matcher, found, vocabulary):
            return found
    return None


def _ends(matcher: LLMatcher, tokens: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Whether the matcher accepts after these tokens; it is left as it is.

    Ten times as fast as going there on a copy. Of a rule's ``max_tokens`` it knows nothing, so
    who follows the tokens has to look where they lead.
    """
    return matcher.validate_tokens([*tokens, vocabulary.end]) == len(tokens) + 1


def _is_text(tokens: Collection[int], vocabulary: Vocabulary) -> bool:
    return all(vocabulary.lengths[token] for token in tokens)


def _cut(text: bytes, vocabulary: Vocabulary, longest: int, avoid: Collection[int]) -> list[int]:
    """A text in few tokens, at most so many; none where it begins inside a character."""
    try:
        found: list[int] = vocabulary.trie.greedy_tokenize(text.decode())
    except UnicodeDecodeError:
        return []
    return found if len(found) <= longest and set(found).isdisjoint(avoid) else []


def _shortened(
    matcher: LLMatcher, vocabulary: Vocabulary, tokens: tuple[int, ...], avoid: Collection[int]
) -> list[int]:
    """The same text in fewer tokens, where they lead to the same end."""
    if not _is_text(tokens, vocabulary):
        return list(tokens)
    text = vocabulary.trie.decode_bytes(list(tokens))
    better = _cut(text, vocabulary, len(tokens) - 1, avoid)
    return better if better and _ends(matcher, better, vocabulary) else list(tokens)

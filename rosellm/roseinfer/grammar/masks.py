"""Which tokens the rows of a step may choose, found out on threads while the model runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from rosellm.roseinfer.grammar.constraint import Constraint

Bits = NDArray[np.int32]
ALL = np.int32(-1)


@dataclass(frozen=True)
class Masked:
    """A logit row that a grammar constrains.

    Attributes:
        row: its index among the step's rows.
        drafts: tokens that stand between the choice's own ones and this row.
        may_stop: whether a stop token may come where the grammar accepts.
    """

    row: int
    constraint: Constraint
    drafts: tuple[int, ...] = ()
    may_stop: bool = True


class Masker:
    """Fills masks; one step's at a time.

    Args:
        vocab_size: of the model.
    """

    def __init__(self, vocab_size: int) -> None:
        self._size = vocab_size

    @cached_property
    def _fillers(self) -> LLExecutor:
        return LLExecutor(max(1, min(8, (os.cpu_count() or 2) // 2)))

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="masks")

    def start(self, masked: Sequence[Masked], rows: int) -> Future[Bits]:
        """Masks of a step's rows, in llguidance's layout: int32 [rows, ceil(vocabulary / 32)]."""
        return self._thread.submit(self._fill, masked, rows)

    def _fill(self, masked: Sequence[Masked], rows: int) -> Bits:
        words = -(-self._size // 32)
        bits = np.full((rows, words), ALL)
        # The library's vocabulary has one token more, which may need a word of its own.
        found = np.empty((len(masked), -(-(self._size + 1) // 32)), dtype=np.int32)
        matchers = [_at(each) for each in masked]
        self._fillers.unsafe_compute_mask_ptr(
            [(matcher, index) for index, matcher in enumerate(matchers) if matcher],
            found.ctypes.data,
            found.shape[1] * found.itemsize,
            len(masked),
        )
        for index, (each, matcher) in enumerate(zip(masked, matchers, strict=True)):
            if matcher is None:
                continue  # a draft before it is not allowed, so it is never reached
            mask = found[index, :words]
            if self._size % 32:
                mask[-1] &= (1 << self._size % 32) - 1
            _mark_stops(mask, each, matcher)
            if not mask.any():
                each.constraint.stuck |= not each.drafts
                mask[:] = ALL  # something has to be drawn; it will not be taken
            bits[each.row] = mask
        return bits


def _at(masked: Masked) -> LLMatcher | None:
    """The matcher as it is where the row's token comes."""
    if not masked.drafts:
        return masked.constraint.matcher
    ahead = masked.constraint.matcher.deep_copy()
    drafts = list(masked.drafts)
    return ahead if ahead.try_consume_tokens(drafts) == len(drafts) else None


def _mark_stops(mask: Bits, masked: Masked, matcher: LLMatcher) -> None:
    """Tokens that end the answer may come where it may end, and nowhere else."""
    allowed = masked.may_stop and matcher.is_accepting()
    words = mask.view(np.uint32)
    for token in masked.constraint.stops:
        bit = np.uint32(1 << token % 32)
        words[token // 32] = words[token // 32] | bit if allowed else words[token // 32] & ~bit

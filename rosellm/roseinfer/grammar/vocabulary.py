"""A model's vocabulary as grammars see it: bytes, and tokens that stand for no text.

End-of-sequence tokens are special tokens like all others here. Where an answer may end is known by
``LLMatcher.is_accepting``, and which tokens end it is the request's to say (``constraint.py``); so
the one that the library insists on is made up, and lies beyond the model's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from rosellm.roseinfer.text.tokenizer import Tokenizer

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=50_000,  # up to 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""What one grammar may take, in the units of the library: some 100 MB, and 20 ms a step."""


@dataclass(frozen=True)
class Vocabulary:
    """Token ids to bytes, indexed for masks.

    Attributes:
        size: of the model's vocabulary; ids that the tokenizer does not know have no bytes.
        trie: the library's index.
        end: the made-up token that ends an answer, in the index only.
        lengths: bytes of each token, 0 for one that is never text.
        single: the token that is this byte and nothing else, where there is one.
        ascii: those of its bytes that print, in order.
        ascii_words, ascii_bits: where in a mask their tokens are: which byte, which bit of it.
    """

    size: int
    trie: LLTokenizer
    end: int
    lengths: NDArray[np.int32]
    single: dict[int, int]
    ascii: bytes
    ascii_words: NDArray[np.int64]
    ascii_bits: NDArray[np.uint8]

    @property
    def words(self) -> int:
        """Words of 32 bits in a mask of the model's vocabulary."""
        return -(-self.size // 32)


def load_vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Index a tokenizer's vocabulary; takes a second or two for 100,000 tokens.

    Args:
        size: ids that the model can produce.
    """
    known = min(size, tokenizer.vocab_size)
    tokens = [tokenizer.token_bytes(id) for id in range(known)] + [b""] * (size - known)
    special = sorted(id for id in tokenizer.special_ids if id < known)
    lengths = np.array([*map(len, tokens)], dtype=np.int32)
    lengths[special] = 0
    single = {tokens[id][0]: int(id) for id in np.flatnonzero(lengths == 1)[::-1]}
    table = _Table(tokens, special, tokenizer)
    trie = LLTokenizer(table, slices=LLTokenizer.json_slices())
    table.trie = trie
    printing = bytes(byte for byte in (10, *range(0x20, 0x7F)) if byte in single)
    ids = np.array([single[byte] for byte in printing], dtype=np.int64)
    return Vocabulary(
        size,
        trie,
        table.eos_token_id,
        lengths,
        single,
        ascii=printing,
        ascii_words=ids >> 3,
        ascii_bits=(1 << (ids & 7)).astype(np.uint8),
    )


class _Table(TokenizerWrapper):
    """What the library asks of a tokenizer: bytes of every token, and how it would cut a text.

    Where a grammar leaves no choice but one text, only the tokens that ``__call__`` cuts it into
    are allowed: those that the model has seen it in.
    """

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], tokenizer: Tokenizer):
        self.is_tokenizer_wrapper = True
        self.bos_token_id = None
        self.tokens = [*tokens, b"<|end of grammar|>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [*special, self.eos_token_id]
        self.trie: LLTokenizer | None = None
        self._special = frozenset(special)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode() if isinstance(text, bytes) else text
        ids = self._tokenizer.encode(plain, add_special_tokens=False)
        if self._spells(ids, plain.encode()):
            return ids
        assert self.trie is not None
        return self.trie.greedy_tokenize(plain)

    def _spells(self, ids: Sequence[int], text: bytes) -> bool:
        """Whether these are ordinary tokens that add up to the text: no space put before it."""
        if self._special.intersection(ids) or max(ids, default=0) >= self.eos_token_id:
            return False
        return b"".join([self.tokens[id] for id in ids]) == text

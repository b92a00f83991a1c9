"""A tokenizer as it reads where special tokens, all or some, are text by their names."""

from __future__ import annotations

from collections.abc import Sequence

from rosellm.roseinfer.text.tokenizer import Tokenizer


class ShownSpecials(Tokenizer):
    """Another tokenizer, some of whose special tokens are not hidden from a text.

    Args:
        shown: these; None shows all.
    """

    def __init__(self, tokenizer: Tokenizer, shown: frozenset[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.special_ids = frozenset() if shown is None else tokenizer.special_ids - shown
        self.byte_run_ids = tokenizer.byte_run_ids
        self.bos_id = tokenizer.bos_id
        self.eos_ids = tokenizer.eos_ids
        self.special_tokens = tokenizer.special_tokens
        self.chat_template = tokenizer.chat_template

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        return self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens, parse_special=parse_special
        )

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``, without those that are still special."""
        if skip_special_tokens and self.special_ids:
            ids = [id for id in ids if id not in self.special_ids]
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        return self._tokenizer.token_bytes(id)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

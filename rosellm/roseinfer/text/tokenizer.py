"""What a tokenizer is to the rest of rosellm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.text.tokenizer_config import TokenizerConfig

# Bos and eos of the GPT-2 and Llama families, whose older repositories do not name them.
_USUAL_PAIRS = (("<|endoftext|>", "<|endoftext|>"), ("<s>", "</s>"))


class Tokenizer(ABC):
    """Text to token ids and back. Safe to use from several threads.

    Attributes:
        vocab_size: one more than the largest id, added tokens included.
        special_ids: ids that ``decode`` drops when it skips special tokens.
        byte_run_ids: ids that stand for one byte and are decoded a whole run at a time, so
            that their text is certain only when the run has ended. Empty for most forms.
        bos_id: id of the beginning-of-sequence token, where there is one.
        eos_ids: ids that end a sequence, as the tokenizer's own files say.
        special_tokens: ``bos_token``, ``eos_token`` and so on as strings, for chat templates.
        chat_template: Jinja source found beside the tokenizer; several named ones as a dict.
    """

    vocab_size: int
    special_ids: frozenset[int]
    byte_run_ids: frozenset[int] = frozenset()
    bos_id: int | None
    eos_ids: tuple[int, ...]
    special_tokens: dict[str, str]
    chat_template: str | dict[str, str] | None

    def _adopt(self, config: TokenizerConfig) -> None:
        """Fill in what the config files say. Needs ``special_ids`` and ``token_to_id``."""
        self.chat_template = config.chat_template
        self.special_tokens = self._named_tokens(config.special_tokens)
        self.bos_id = self._named_id("bos_token")
        eos_id = self._named_id("eos_token")
        self.eos_ids = () if eos_id is None else (eos_id,)

    def _named_tokens(self, named: dict[str, str]) -> dict[str, str]:
        if "bos_token" in named or "eos_token" in named:
            return named
        for bos, eos in _USUAL_PAIRS:
            if {self.token_to_id(bos), self.token_to_id(eos)} <= self.special_ids:
                return {"bos_token": bos, "eos_token": eos, **named}
        return named

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_to_id(token)

    @abstractmethod
    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any Unicode text.
            add_special_tokens: add bos, eos and the like as the tokenizer's files ask for.
            parse_special: read special tokens written out in the text, such as ``</s>``, as
                those tokens; otherwise as plain text.

        Raises:
            RequestError: the text holds a lone surrogate, so it is not Unicode text.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``. Ids outside the vocabulary give no text; broken UTF-8 gives U+FFFD."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """Bytes that this token adds to a text; a special token gives its name."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Id of the vocabulary entry that is written ``token``, if there is one."""


def check_unicode(text: str) -> None:
    """Refuse what JSON can smuggle into a ``str`` and UTF-8 cannot hold.

    Raises:
        RequestError: ``text`` holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not valid Unicode: lone surrogate at character {error.start}"
        ) from None

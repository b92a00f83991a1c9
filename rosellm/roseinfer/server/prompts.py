"""From what a request says to the token ids of its prompt.

Long texts are tokenised and rendered in a worker thread, and one that is far too
long for the context is refused unread: the event loop never waits for either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.messages import Ready
from rosellm.roseinfer.server.schemas.chat import Message
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.tokenizer import Tokenizer

INLINE_CHARACTERS = 2048  # tokenised in well under a millisecond
# A text this many times longer than the longest tokens that fit is not even tokenised. More than
# once, since normalisation can shorten a text (runs of spaces, unknown characters).
HOPELESS = 8

T = TypeVar("T")


@dataclass(frozen=True)
class TextTools:
    """What turns text into token ids, loaded while the engine loads the weights.

    Attributes:
        longest_token: bytes of the longest token; a text has about its length over this many
            tokens, or more.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    longest_token: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TextTools:
        """
        Raises:
            ModelError: the model's chat template is broken.
        """
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
        lengths = (len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))
        return cls(tokenizer, template, max(lengths, default=1) or 1)


class Prompts:
    """Prepares the prompts of one model."""

    def __init__(self, tools: TextTools, ready: Ready) -> None:
        self._tokenizer = tools.tokenizer
        self._template = tools.template
        self._longest_token = tools.longest_token
        self._max_model_len = ready.max_model_len
        self._vocab_size = ready.vocab_size
        # Most templates know no developer and would drop what it says.
        source = str(self._tokenizer.chat_template)
        self._knows_developer = not self._template.has_own or "developer" in source

    async def chat(self, messages: Sequence[Message]) -> list[int]:
        """The conversation, up to where the assistant's answer begins."""
        length = sum(len(message.text) for message in messages)
        self._refuse_hopeless(length, "messages")
        text = await _off_loop(length, lambda: self._render(messages))
        # A template of the model's own writes the special tokens itself.
        ids = await self._encode(text, "messages", add_special_tokens=not self._template.has_own)
        return self._checked(ids, "messages")

    async def text(self, prompt: str, param: str = "prompt") -> list[int]:
        """A text as it stands; an empty one is just the beginning-of-sequence token."""
        self._refuse_hopeless(len(prompt), param)
        ids = await self._encode(prompt, param, add_special_tokens=True)
        if not ids and self._tokenizer.bos_id is not None:
            ids = [self._tokenizer.bos_id]
        return self._checked(ids, param)

    def ids(self, prompt: list[int], param: str = "prompt") -> list[int]:
        """A prompt that is token ids already."""
        return self._checked(prompt, param)

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render([self._turn(message) for message in messages])

    def _turn(self, message: Message) -> dict[str, Any]:
        role = message.role
        if role == "developer" and not self._knows_developer:
            role = "system"
        turn = {"role": role, "content": message.text}
        return turn if message.name is None else {**turn, "name": message.name}

    async def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        def encode() -> list[int]:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

        try:
            return await _off_loop(len(text), encode)
        except RequestError as error:
            error.param = error.param or param
            raise

    def _refuse_hopeless(self, characters: int, param: str) -> None:
        if characters > HOPELESS * self._longest_token * self._max_model_len:
            raise too_long(
                f"{characters} characters, far more than that", self._max_model_len, param
            )

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if not ids:
            raise RequestError(f"{param} holds no tokens", param=param)
        if len(ids) >= self._max_model_len:
            raise too_long(str(len(ids)), self._max_model_len, param)
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise RequestError(
                f"{param} holds token ids outside the vocabulary, which has {self._vocab_size}",
                param=param,
            )
        return ids


def too_long(prompt_tokens: str, max_model_len: int, param: str) -> RequestError:
    """The refusal of a prompt that leaves no room for an answer."""
    return RequestError(
        f"the context holds {max_model_len} tokens, prompt and answer together;"
        f" the prompt alone has {prompt_tokens}",
        param=param,
        code="context_length_exceeded",
    )


async def _off_loop(characters: int, work: Callable[[], T]) -> T:
    if characters <= INLINE_CHARACTERS:
        return work()
    return await asyncio.to_thread(work)

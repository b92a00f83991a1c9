"""From what a request says to the token ids of its prompt.

Long texts are tokenised and rendered in a worker thread, and one that is far too
long for the context is refused unread: the event loop never waits for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rosellm.roseinfer.config import ReasoningParser, ToolParser
from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.messages import Ready
from rosellm.roseinfer.server.formats import Formats
from rosellm.roseinfer.server.off_loop import INLINE, off_loop, weight
from rosellm.roseinfer.server.schemas.messages import Message
from rosellm.roseinfer.server.schemas.template import Rendering
from rosellm.roseinfer.server.turns import Turns
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.infill import Marks, marks_of, with_hole
from rosellm.roseinfer.text.tokenizer import Tokenizer

# A text this many times longer than the longest tokens that fit is not even tokenised. More than
# once, since normalisation can shorten a text (runs of spaces, unknown characters).
HOPELESS = 8
END_TOKENS = 16  # more than a marker and the white space behind it
ANSWER = Rendering()


@dataclass(frozen=True)
class TextTools:
    """What turns text into token ids, loaded while the engine loads the weights.

    Attributes:
        longest_token: bytes of the longest token; a text has about its length over this many
            tokens, or more.
        formats: in which the model answers.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    longest_token: int
    formats: Formats

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        tool_parser: ToolParser = "auto",
        reasoning_parser: ReasoningParser = "auto",
    ) -> TextTools:
        """
        Raises:
            ModelError: the model's chat template is broken.
        """
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
        lengths = (len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))
        formats = Formats.of(template, tool_parser, reasoning_parser)
        return cls(tokenizer, template, max(lengths, default=1) or 1, formats)


class Prompts:
    """Prepares the prompts of one model.

    In its methods, ``param`` is the request field that a refusal names, and ``answer`` is how many
    tokens must at least fit behind the prompt.
    """

    def __init__(self, tools: TextTools, ready: Ready) -> None:
        self.tokenizer = tools.tokenizer
        self._template = tools.template
        self._longest_token = tools.longest_token
        self.formats = tools.formats
        self._max_model_len = ready.max_model_len
        self._vocab_size = ready.vocab_size
        format = tools.formats.tool_format
        self._turns = Turns(tools.template, format.shape if format else None)

    async def chat(
        self,
        messages: Sequence[Message],
        how: Rendering = ANSWER,
        *,
        answer: int = 1,
        keep: int | None = None,
    ) -> list[int]:
        """The conversation, up to where the assistant's answer begins.

        Args:
            keep: only the last so many tokens of it, see ``truncated``.
        """
        if keep is None:
            self._refuse_hopeless(_length(messages), "messages")
        _, ids = await self.conversation(messages, how, whole=keep is not None)
        return self._checked(self.truncated(ids, keep, answer), "messages", answer)

    def truncated(self, ids: list[int], keep: int | None, answer: int) -> list[int]:
        """The last ``keep`` of these; -1 is as many as leave room for the answer."""
        if keep is None:
            return ids
        return ids[-max(1, keep if keep > 0 else self._max_model_len - answer) :]

    async def conversation(
        self,
        messages: Sequence[Message],
        how: Rendering = ANSWER,
        *,
        add_special_tokens: bool | None = None,
        whole: bool = True,
    ) -> tuple[str, list[int]]:
        """Text and token ids of a conversation.

        Args:
            add_special_tokens: None adds them unless the model's own template writes them.
            whole: however many there are; otherwise far too many are refused uncounted.
        """
        if add_special_tokens is None:
            add_special_tokens = not self._template.has_own

        def encode() -> tuple[str, list[int]]:
            text = self._template.render(
                self._turns(messages),
                add_generation_prompt=how.add_generation_prompt,
                continue_final_message=how.continue_final_message,
                tools=how.tools,
                **how.variables,
            )
            if not whole:
                self._refuse_hopeless(len(text), "messages")
            return text, self._encode(text, "messages", add_special_tokens)

        # a model's own template may take its time whatever the length
        long = self._template.has_own * (INLINE + 1)
        size = max(weight(*messages, how.tools, how.variables), long)
        return await off_loop(size, encode)

    async def batch(
        self,
        prompts: Sequence[str | list[int]],
        param: str,
        *,
        answer: int = 1,
        keep: int | None = None,
        suffix: str | None = None,
    ) -> list[list[int]]:
        """Several prompts, each a text as it stands or token ids already.

        An empty text is just the beginning-of-sequence token.

        Args:
            keep: only the last so many tokens of each, see ``truncated``.
            suffix: what comes behind the answer, of a model that can fill a hole.
        """
        several = len(prompts) > 1
        marks = None if suffix is None else self._marks()
        named = [
            (f"{param}[{index}]" if several else param, prompt)
            for index, prompt in enumerate(prompts)
        ]
        texts = [(name, prompt) for name, prompt in named if isinstance(prompt, str)]
        for name, text in texts if keep is None else ():
            self._refuse_hopeless(len(text), name)

        def ids(name: str, prompt: str | list[int]) -> list[int]:
            if marks is not None and suffix is not None:
                return self._with_hole(marks, prompt, suffix, name)
            return self._ids(prompt, name) if isinstance(prompt, str) else prompt

        def all_ids() -> list[list[int]]:
            made = ((name, self.truncated(ids(name, each), keep, answer)) for name, each in named)
            return [self._checked(each, name, answer) for name, each in made]

        return await off_loop(sum(len(text) for _, text in texts) + len(suffix or ""), all_ids)

    async def prediction(self, text: str, param: str) -> list[int]:
        """Token ids of what an answer may turn out to be; it need not fit."""
        self._refuse_hopeless(len(text), param)
        ids = await off_loop(len(text), lambda: self._encode(text, param, add_special_tokens=False))
        self._check_ids(ids, param)
        return ids

    async def tokens(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text, however many."""
        return await off_loop(len(text), lambda: self._encode(text, "prompt", add_special_tokens))

    async def decoded(self, ids: Sequence[int], param: str) -> str:
        """The text of token ids, special tokens included."""

        def decode() -> str:
            self._check_ids(ids, param)
            return self.tokenizer.decode(ids, skip_special_tokens=False)

        return await off_loop(len(ids), decode)

    def end(self, ids: Sequence[int]) -> str:
        """The text of a prompt's last few tokens, special ones by their names."""
        return self.tokenizer.decode(ids[-END_TOKENS:], skip_special_tokens=False)

    def effort(self, asked: str | None) -> dict[str, Any]:
        """What the template is told of ``reasoning_effort``.

        Raises:
            RequestError: it has no use for it.
        """
        if asked is None:
            return {}
        if "reasoning_effort" in self._template.variables:
            return {"reasoning_effort": asked}
        if "enable_thinking" in self._template.variables:
            return {"enable_thinking": asked != "none"}
        if asked not in ("none", "medium"):
            raise RequestError(
                "reasoning_effort: this model does not reason, or its chat template cannot say how"
                " much",
                param="reasoning_effort",
                code="unsupported_parameter",
            )
        return {}

    def _marks(self) -> Marks:
        found = marks_of(self.tokenizer)
        if found is None:
            raise RequestError(
                "suffix: this model has no tokens for filling a hole in a text",
                param="suffix",
                code="unsupported_parameter",
            )
        return found

    def _with_hole(
        self, marks: Marks, prompt: str | list[int], suffix: str, param: str
    ) -> list[int]:
        if isinstance(prompt, str):
            prompt = self._encode(prompt, param, add_special_tokens=False)
        try:
            return with_hole(self.tokenizer, marks, prompt, suffix)
        except RequestError as error:
            error.param = error.param or "suffix"
            raise

    def _ids(self, text: str, param: str) -> list[int]:
        ids = self._encode(text, param, add_special_tokens=True)
        if not ids and self.tokenizer.bos_id is not None:
            return [self.tokenizer.bos_id]
        return ids

    def _encode(self, text: str, param: str, add_special_tokens: bool) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except RequestError as error:
            error.param = error.param or param
            raise

    def _refuse_hopeless(self, characters: int, param: str) -> None:
        if characters > HOPELESS * self._longest_token * self._max_model_len:
            raise too_long(
                f"{characters} characters, far more than that", self._max_model_len, param
            )

    def _checked(self, ids: list[int], param: str, answer: int) -> list[int]:
        if not ids:
            raise RequestError(f"{param} holds no tokens", param=param)
        if len(ids) + answer > self._max_model_len:
            raise too_long(str(len(ids)), self._max_model_len, param)
        self._check_ids(ids, param)
        return ids

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise RequestError(
                f"{param} holds token ids outside the vocabulary, which has {self._vocab_size}",
                param=param,
            )


def too_long(prompt_tokens: str, max_model_len: int, param: str) -> RequestError:
    """The refusal of a prompt that does not fit, or leaves no room for an answer."""
    return RequestError(
        f"the context holds {max_model_len} tokens, the answer's included;"
        f" {param} has {prompt_tokens}",
        param=param,
        code="context_length_exceeded",
    )


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message.text) for message in messages)

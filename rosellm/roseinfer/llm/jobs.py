"""From what a caller passes to jobs of the pipeline: the library's counterpart of the routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.llm.batch import located
from rosellm.roseinfer.llm.inputs import Conversation, Prompt
from rosellm.roseinfer.llm.params import SamplingParams
from rosellm.roseinfer.server.defaults import MAX_TOKENS_COMPLETION
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.schemas.fields import Body
from rosellm.roseinfer.server.schemas.messages import Message, Messages
from rosellm.roseinfer.server.service import Service
from rosellm.roseinfer.server.tool_grammars import answer_grammar
from rosellm.roseinfer.server.validation import Known, request_error
from rosellm.roseinfer.text.answer_parser import PLAIN

Made = TypeVar("Made")

_COMPUTE_ONLY = SamplingParams(max_tokens=0)


class _Chat(Body):
    """Messages as ``/v1/chat/completions`` takes them."""

    messages: Messages


async def make_all(
    make: Callable[..., Awaitable[Made]], arguments: Sequence[tuple[Any, ...]]
) -> list[Made]:
    """What is made with each of the arguments, before any job begins.

    Raises:
        RequestError: of the first one that is refused; with several, it says which.
    """
    made = []
    for index, each in enumerate(arguments):
        try:
            made.append(await make(*each))
        except RequestError as error:
            raise located(error, index, len(arguments)) from error
        await asyncio.sleep(0)  # others use this loop too
    return made


async def prompt_ids(service: Service, prompt: Prompt, answer: int) -> list[int]:
    """A prompt's token ids, behind which so many more have to fit."""
    [ids] = await service.prompts.batch([_plain(prompt)], "prompt", answer=answer)
    return ids


async def completion(service: Service, prompt: Prompt, asked: SamplingParams) -> Job:
    """What continues a prompt."""
    service.check_generates()
    ids = await prompt_ids(service, prompt, answer=_least_answer(asked))
    max_tokens = service.sampling.max_tokens(
        asked.max_tokens, len(ids), default=MAX_TOKENS_COMPLETION, param="max_tokens"
    )
    grammar = await answer_grammar(asked.form, None, PLAIN, service.grammars)
    return _job(service, ids, asked, max_tokens, grammar=grammar, continues=True)


async def chat(service: Service, turns: Conversation, asked: SamplingParams) -> Job:
    """What answers a conversation."""
    service.check_generates()
    ids = await service.prompts.chat(_messages(turns), answer=_least_answer(asked))
    max_tokens = service.sampling.max_tokens(
        asked.max_tokens, len(ids), default=None, param="max_tokens"
    )
    format = service.prompts.formats.of_answer(service.prompts.end(ids), None)  # reasoning first
    grammar = await answer_grammar(asked.form, None, format, service.grammars)
    return _job(service, ids, asked, max_tokens, grammar=grammar)


async def pooled(service: Service, text: Prompt) -> Job:
    """What makes a vector of a text."""
    ids = await prompt_ids(service, text, answer=0)
    return service.job(ids, _COMPUTE_ONLY, max_tokens=0, want="pooled")


def _job(
    service: Service, ids: list[int], asked: SamplingParams, max_tokens: int, **more: Any
) -> Job:
    scores = {"logprobs": asked.logprobs, "prompt_logprobs": asked.prompt_logprobs}
    return service.job(ids, asked, max_tokens, **scores, **more)


def _plain(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or not all(isinstance(id, int) for id in prompt):
        raise RequestError("a prompt must be a text or a list of token ids", param="prompt")
    return list(prompt)


def _least_answer(asked: SamplingParams) -> int:
    """How many tokens must fit behind the prompt."""
    return 0 if asked.max_tokens == 0 else 1


def _messages(turns: Conversation) -> list[Message]:
    body = {"messages": turns}
    try:
        return _Chat.model_validate(body).messages
    except ValidationError as error:
        raise request_error(error.errors(), body, Known.of(_Chat)) from None

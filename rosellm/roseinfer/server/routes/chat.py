"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter, Response
from msgspec import UNSET

from rosellm.roseinfer.server.collect import Tally, Whole, collect
from rosellm.roseinfer.server.generate import Answer, Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
)
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.streaming import event_stream
from rosellm.roseinfer.server.strict_json import StrictRoute

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, service: Served) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    service.check_choices(1, body.choices)
    job = await _job(body, service)
    tally = Tally.of([job])
    answer = service.pipeline.generate([job])
    head = service.head("chatcmpl")
    if body.stream:
        await answer.begin()
        make = partial(ChatChunk, **head, usage=None if body.include_usage else UNSET)
        return event_stream(answer, _chunks(answer, tally, make))
    choices = [_choice(index, whole) for index, whole in enumerate(await collect(answer, tally))]
    return json_response(ChatCompletion(**head, choices=choices, usage=tally.usage()))


async def _job(body: ChatRequest, service: Service) -> Job:
    prompt = await service.prompts.chat(body.messages)
    newer = body.max_completion_tokens is not None
    max_tokens = service.sampling.max_tokens(
        body.max_completion_tokens if newer else body.max_tokens,
        len(prompt),
        default=None,
        param="max_completion_tokens" if newer else "max_tokens",
    )
    return service.job(prompt, body, max_tokens)


def _choice(index: int, whole: Whole) -> ChatChoice:
    return ChatChoice(
        index=index, message=ChatMessage(content=whole.text), finish_reason=whole.finish
    )


async def _chunks(
    answer: Answer, tally: Tally, make: partial[ChatChunk]
) -> AsyncIterator[ChatChunk]:
    """The role, the text, the finish, each in a chunk of its own."""
    begun: set[int] = set()
    async for delta in answer:
        tally.add(delta)
        piece = partial(ChatChunkChoice, index=delta.index)
        if delta.index not in begun:
            begun.add(delta.index)
            opening = ChatDelta(role="assistant", content="", refusal=None)
            yield make(choices=[piece(delta=opening)])
        if delta.text:
            yield make(choices=[piece(delta=ChatDelta(content=delta.text))])
        if delta.finish is not None:
            yield make(choices=[piece(delta=ChatDelta(), finish_reason=delta.finish)])
    if make.keywords["usage"] is None:
        yield make(choices=[], usage=tally.usage())

"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from fastapi import APIRouter, Response

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.responses import Detokenized, Tokenized
from rosellm.roseinfer.server.schemas.template import Rendering
from rosellm.roseinfer.server.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.spelling import text_of
from rosellm.roseinfer.server.strict_json import StrictRoute

router = APIRouter(route_class=StrictRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: Served) -> Response:
    """Token ids of a text or a conversation, which may be longer than the context."""
    if body.model is not None:
        service.check_model(body.model)
    ids = await _ids(body, service)
    strings = await _strings(ids, service) if body.return_token_strs else None
    return json_response(
        Tokenized(
            count=len(ids),
            max_model_len=service.ready.max_model_len,
            tokens=ids,
            token_strs=strings,
        )
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: Served) -> Response:
    """The text of token ids, special tokens included."""
    if body.model is not None:
        service.check_model(body.model)
    return json_response(Detokenized(await service.prompts.decoded(body.tokens, "tokens")))


async def _ids(body: TokenizeRequest, service: Service) -> list[int]:
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        return await service.prompts.tokens(body.prompt, add_special_tokens=special)
    if body.messages is None:
        raise RequestError(
            "prompt or messages is required", param="prompt", code="missing_required_parameter"
        )
    how = Rendering(add_generation_prompt=body.add_generation_prompt is not False, tools=body.tools)
    _, ids = await service.prompts.conversation(
        body.messages, how, add_special_tokens=body.add_special_tokens
    )
    return ids


async def _strings(ids: list[int], service: Service) -> list[str]:
    spelt = service.prompts.tokenizer.token_bytes
    return await off_loop(len(ids), lambda: [text_of(spelt(id)) for id in ids])

"""``POST /v1/chat/completions/render``: the prompt that a chat would come to, and nothing more."""

from __future__ import annotations

from fastapi import APIRouter, Response
from msgspec import UNSET

from rosellm.roseinfer.server.call import Called
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.rendering import rendering
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import Rendered
from rosellm.roseinfer.server.service import Served
from rosellm.roseinfer.server.unknown_fields import TolerantRoute

router = APIRouter(route_class=TolerantRoute)


@router.post("/v1/chat/completions/render")
async def render_chat(body: ChatRequest, service: Served, call: Called) -> Response:
    """The text that the chat template makes, and its token ids, however many."""
    service.check_model(body.model)
    prompt, ids = await service.prompts.conversation(
        body.messages, rendering(body, service.prompts)
    )
    ids = service.prompts.truncated(ids, body.truncate_prompt_tokens, body.least_answer)
    return json_response(
        Rendered(
            model=service.name,
            prompt=prompt,
            prompt_token_ids=ids,
            count=len(ids),
            max_model_len=service.ready.max_model_len,
            warnings=call.warnings or UNSET,
        )
    )

"""``GET /v1/capabilities``: what is served, and what each request field comes to."""

from __future__ import annotations

import asyncio
from functools import cache

from fastapi import APIRouter, Response

from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.parameters import ENDPOINTS, Endpoint, parameters
from rosellm.roseinfer.server.schemas.fields import Body
from rosellm.roseinfer.server.schemas.responses import (
    Capabilities,
    EndpointFields,
    FieldFacts,
)
from rosellm.roseinfer.server.service import Served

router = APIRouter()


@router.get("/v1/capabilities")
async def capabilities(service: Served) -> Response:
    """The registry of parameters, as the running server has it."""
    endpoints = await asyncio.to_thread(_endpoints)
    return json_response(
        Capabilities(
            model=service.name,
            max_model_len=service.ready.max_model_len,
            generates=service.ready.generates,
            unknown_parameters=service.unknown_parameters,
            endpoints=endpoints,
        )
    )


@cache
def _endpoints() -> dict[str, EndpointFields]:
    return {endpoint.path: _endpoint(endpoint) for endpoint in ENDPOINTS}


def _endpoint(endpoint: Endpoint) -> EndpointFields:
    return EndpointFields(
        parameters=_facts(endpoint.request),
        objects={where: _facts(kind) for where, kind in endpoint.objects.items()},
    )


def _facts(schema: type[Body]) -> dict[str, FieldFacts]:
    return {
        each.name: FieldFacts(
            outcome=each.outcome.value,
            openai=each.openai,
            required=each.required,
            schema=each.schema,
            description=each.description,
        )
        for each in parameters(schema)
    }

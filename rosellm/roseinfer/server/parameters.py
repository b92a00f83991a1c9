"""The registry of parameters: every field of every request, and what a value of it comes to.

Types, ranges, outcomes and descriptions stand once, in ``schemas/``, and are read off them here.
What the schemas cannot say is which names are OpenAI's: those of its specification (2.3.0) are
listed here, so that the registry is complete without it; a test compares the two. ``docs/api.md``,
``GET /v1/capabilities`` and the nearest known name of an unknown field come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.completions import CompletionRequest
from rosellm.roseinfer.server.schemas.embeddings import EmbeddingRequest
from rosellm.roseinfer.server.schemas.fields import Body, Outcome
from rosellm.roseinfer.server.schemas.generate import GenerateRequest
from rosellm.roseinfer.server.schemas.messages import (
    AssistantMessage,
    CalledFunction,
    DeveloperMessage,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from rosellm.roseinfer.server.schemas.prediction import Prediction
from rosellm.roseinfer.server.schemas.streaming import StreamOptions
from rosellm.roseinfer.server.schemas.structured import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    StructuredOutputs,
)
from rosellm.roseinfer.server.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from rosellm.roseinfer.server.schemas.tools import (
    Allowed,
    AllowedTools,
    FunctionDefinition,
    FunctionName,
    FunctionTool,
    NamedTool,
)

CHAT = """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
    max_tokens messages metadata modalities model moderation n parallel_tool_calls prediction
    presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort
    response_format safety_identifier seed service_tier stop store stream stream_options temperature
    tool_choice tools top_logprobs top_p user verbosity web_search_options
"""
COMPLETIONS = """
    best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt
    seed stop stream stream_options suffix temperature top_p user
"""
EMBEDDINGS = "dimensions encoding_format input model user"
LISTS: dict[type[Body], str] = {
    ChatRequest: CHAT,
    CompletionRequest: COMPLETIONS,
    EmbeddingRequest: EMBEDDINGS,
    StreamOptions: "include_obfuscation include_usage",
    SystemMessage: "content name role",
    DeveloperMessage: "content name role",
    UserMessage: "content name role",
    AssistantMessage: "audio content function_call name refusal role tool_calls",
    ToolMessage: "content role tool_call_id",
    TextPart: "prompt_cache_breakpoint text type",
    JsonObjectFormat: "type",
    JsonSchemaFormat: "json_schema type",
    NamedSchema: "description name schema strict",
    ToolCall: "function id type",
    CalledFunction: "arguments name",
    FunctionTool: "function type",
    FunctionDefinition: "description name parameters strict",
    NamedTool: "function type",
    FunctionName: "name",
    AllowedTools: "allowed_tools type",
    Allowed: "mode tools",
    Prediction: "content type",
}
OPENAI = {schema: frozenset(names.split()) for schema, names in LISTS.items()}
"""The properties of each object in OpenAI's specification."""


@dataclass(frozen=True)
class Parameter:
    """One field of one object.

    Attributes:
        openai: whether it is of OpenAI's specification; the others are vLLM's or our own.
        schema: its type and limits as JSON Schema. Of a rejected one, the values that are
            accepted all the same.
    """

    name: str
    outcome: Outcome
    openai: bool
    required: bool
    schema: Mapping[str, Any]
    description: str


@dataclass(frozen=True)
class Endpoint:
    """What can be posted to a path.

    Attributes:
        objects: the request itself and what is nested in it, by where it stands in it.
    """

    path: str
    request: type[Body]
    objects: Mapping[str, type[Body]] = field(default_factory=dict)


MESSAGES: dict[str, type[Body]] = {
    "messages[], system": SystemMessage,
    "messages[], developer": DeveloperMessage,
    "messages[], user": UserMessage,
    "messages[], assistant": AssistantMessage,
    "messages[], tool": ToolMessage,
    "messages[].content[]": TextPart,
    "messages[].tool_calls[]": ToolCall,
    "messages[].tool_calls[].function": CalledFunction,
}
TOOLS: dict[str, type[Body]] = {
    "tools[]": FunctionTool,
    "tools[].function": FunctionDefinition,
    "tool_choice, function": NamedTool,
    "tool_choice.function": FunctionName,
    "tool_choice, allowed_tools": AllowedTools,
    "tool_choice.allowed_tools": Allowed,
}
PREDICTION: dict[str, type[Body]] = {
    "prediction": Prediction,
    "prediction.content[]": TextPart,
}
ANSWER: dict[str, type[Body]] = {
    "stream_options": StreamOptions,
    "structured_outputs": StructuredOutputs,
}
FORMATS: dict[str, type[Body]] = {
    "response_format, json_object": JsonObjectFormat,
    "response_format, json_schema": JsonSchemaFormat,
    "response_format.json_schema": NamedSchema,
}
ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions",
        ChatRequest,
        {**MESSAGES, **TOOLS, **PREDICTION, **FORMATS, **ANSWER},
    ),
    Endpoint("/v1/completions", CompletionRequest, ANSWER),
    Endpoint("/v1/embeddings", EmbeddingRequest),
    Endpoint("/tokenize", TokenizeRequest, MESSAGES),
    Endpoint("/detokenize", DetokenizeRequest),
    Endpoint("/generate", GenerateRequest),
)


@cache
def parameters(schema: type[Body]) -> tuple[Parameter, ...]:
    """Every field of an object, in the order of their names, required ones first."""
    shown = schema.model_json_schema()
    found = (_parameter(schema, name, shown) for name in schema.model_fields)
    return tuple(sorted(found, key=lambda each: (not each.required, each.name)))


def _parameter(schema: type[Body], name: str, shown: Mapping[str, Any]) -> Parameter:
    info = schema.model_fields[name]
    return Parameter(
        name=name,
        outcome=outcome(info),
        openai=name in OPENAI.get(schema, ()),
        required=info.is_required(),
        schema=_plain(shown["properties"][name]),
        description=info.description or "",
    )


def outcome(info: FieldInfo) -> Outcome:
    """What its type says that a value comes to."""
    told = [each for each in info.metadata if isinstance(each, Outcome)]
    return told[0] if told else Outcome.APPLIED


def _plain(schema: Any) -> Any:
    """Without what is said elsewhere, the null that every field may be, and nested objects."""
    if "$ref" in schema:
        return {"type": "object"}
    kept = {key: value for key, value in schema.items() if key not in LEFT_OUT}
    for inner in ("items", "additionalProperties"):
        if isinstance(kept.get(inner), dict):
            kept[inner] = _plain(kept[inner])
    options = [_plain(each) for each in kept.pop("anyOf", kept.pop("oneOf", ()))]
    different = [each for index, each in enumerate(options) if each not in options[:index]]
    forms = [each for each in different if each != NULL]
    return kept | (forms[0] if len(forms) == 1 else {"anyOf": forms} if forms else {})


NULL = {"type": "null"}
LEFT_OUT = ("title", "description", "default", "discriminator")

"""What the server answers: OpenAI's response shapes as msgspec structs.

A field that the specification requires though it may be null is always written;
one that may be absent is ``UNSET``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from rosellm.roseinfer.config import UnknownParameters
from rosellm.roseinfer.server.delta import Finish

to_json = msgspec.json.Encoder().encode

TokenIds = Sequence[int] | UnsetType
"""Only where they are asked for."""

Warnings = tuple[str, ...] | UnsetType
"""A sentence for each field that was not understood, see ``unknown_fields.py``."""


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """A token of an answer; ``token`` has U+FFFD where ``bytes`` are part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """An entry a token in each list; null for the first token of all, which follows nothing."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class PromptLogprob(msgspec.Struct):
    """vLLM's; ``rank`` is known of the likeliest tokens only."""

    logprob: float
    decoded_token: str
    rank: int | UnsetType = UNSET


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class FunctionCall(msgspec.Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """A call, or a piece of one: then it has an index, and id, type and name only at first."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCall


class ChatMessage(msgspec.Struct, kw_only=True):
    """``content`` is null where there is none beside calls or reasoning."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish
    token_ids: TokenIds = UNSET


class RequestTimings(msgspec.Struct, kw_only=True):
    """Our own: where the request's time went, up to where this was written.

    The seconds but ``total_s`` add up to it. With several choices, those of the engine are of the
    choice that ended last.

    Attributes:
        receive_s: reading and checking the request.
        tokenise_s: rendering the template, and tokenising.
        grammar_s: checking and compiling a grammar.
        queue_s: waiting to be admitted.
        prefill_s: computing the prompt, as far as it was not cached, up to the first token.
        decode_s: from token to token.
        preempted_s: from each preemption to the next token.
        engine_s: between the processes, and what the engine did not tell.
        respond_s: making the answer.
        client_s: waiting for the client to take an answer that is complete.
    """

    total_s: float
    receive_s: float = 0.0
    tokenise_s: float = 0.0
    grammar_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    preempted_s: float = 0.0
    engine_s: float = 0.0
    respond_s: float = 0.0
    client_s: float = 0.0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0


MaybeTimings = RequestTimings | UnsetType


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: TokenIds = UNSET
    warnings: Warnings = UNSET
    timings: MaybeTimings = UNSET


class ChatDelta(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    token_ids: TokenIds = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: TokenIds = UNSET
    warnings: Warnings = UNSET
    timings: MaybeTimings = UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: TokenIds = UNSET
    token_ids: TokenIds = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A whole completion, or a chunk of one: they have one shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str
    warnings: Warnings = UNSET
    timings: MaybeTimings = UNSET


class Embedding(msgspec.Struct, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    """``data`` holds the JSON of an ``Embedding`` each."""

    object: Literal["list"] = "list"
    data: list[msgspec.Raw]
    model: str
    usage: EmbeddingUsage
    warnings: Warnings = UNSET


class Tokenized(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Rendered(msgspec.Struct, kw_only=True):
    """A conversation as the model reads it; ``prompt`` is whole where ids are truncated."""

    object: Literal["chat.completion.prompt"] = "chat.completion.prompt"
    model: str
    prompt: str
    prompt_token_ids: list[int]
    count: int
    max_model_len: int
    warnings: Warnings = UNSET


class Detokenized(msgspec.Struct):
    prompt: str


class Generated(msgspec.Struct):
    text: str


class Alive(msgspec.Struct, kw_only=True):
    """A probe's answer."""

    status: Literal["ok"] = "ok"


class Health(msgspec.Struct, kw_only=True):
    """The engine's state after its last step."""

    status: Literal["ok"] = "ok"
    model: str
    engine: dict[str, int]


class FieldFacts(msgspec.Struct, kw_only=True):
    """A request field, see ``parameters.Parameter``."""

    outcome: str
    openai: bool
    required: bool
    schema: Mapping[str, Any]
    description: str


class EndpointFields(msgspec.Struct, kw_only=True):
    """By name, and those of the objects in it by where these stand."""

    parameters: dict[str, FieldFacts]
    objects: dict[str, dict[str, FieldFacts]]


class Capabilities(msgspec.Struct, kw_only=True):
    object: Literal["capabilities"] = "capabilities"
    model: str
    max_model_len: int
    generates: bool
    unknown_parameters: UnknownParameters
    endpoints: dict[str, EndpointFields]


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rosellm"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail

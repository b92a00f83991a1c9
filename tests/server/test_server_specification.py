"""Every kind of answer against OpenAI's published schemas and its client's own types.

Where the specification contradicts OpenAI's own behaviour, the relaxation is listed here
(``relax``), one by one.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ValidationError

from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    HELLO,
    Server,
    events,
    gives_vectors,
    refuses,
    scores,
    serving,
)

SPECIFICATION = Path(__file__).parents[3] / "shared" / "openai-spec"

pytestmark = pytest.mark.skipif(
    not SPECIFICATION.is_dir(), reason="no ../shared/openai-spec beside this checkout"
)

COMPLETION = "CreateCompletionResponse"
# Chunks of a completion have no schema of their own; OpenAI sends the shape of a whole one, with
# finish_reason null until the last and, when usage is asked for, usage null until then.
COMPLETION_CHUNK = "CompletionChunk"
VECTOR_TEXT = "EmbeddingInBase64"


def relax(schemas: dict[str, Any]) -> None:
    # With echo the first token follows nothing, and OpenAI writes null for its scores.
    choice = schemas[COMPLETION]["properties"]["choices"]["items"]["properties"]
    lists = choice["logprobs"]["anyOf"][0]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        lists[name]["items"] = nullable(lists[name]["items"])
    # The schema is of the form that is asked for by default, which is numbers.
    schemas[VECTOR_TEXT] = {
        "type": "object",
        "properties": {"embedding": {"type": "string", "contentEncoding": "base64"}},
        "required": ["object", "index", "embedding"],
    }
    chunk = json.loads(json.dumps(schemas[COMPLETION]))
    reason = chunk["properties"]["choices"]["items"]["properties"]["finish_reason"]
    chunk["properties"]["choices"]["items"]["properties"]["finish_reason"] = nullable(reason)
    chunk["properties"]["usage"] = nullable(chunk["properties"]["usage"])
    schemas[COMPLETION_CHUNK] = chunk


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads((SPECIFICATION / "official_schemas.json").read_text())
    relax(schemas["components"]["schemas"])
    return schemas


def check(official: dict[str, Any], schema: str, body: Any) -> None:
    known = official.setdefault("validators", {})  # making one looks at all schemas
    if schema not in known:
        root = {"$ref": f"#/components/schemas/{schema}", "components": official["components"]}
        known[schema] = jsonschema.Draft202012Validator(root)
    known[schema].validate(body)


def strictly(kind: type[BaseModel], body: Any) -> None:
    """Read it as the official client types it, without any conversion."""
    kind.model_validate_json(json.dumps(body), strict=True)


# -- every kind of answer ----------------------------------------------------------------------

CONTINUED = {
    "messages": [*HELLO, {"role": "assistant", "content": "he"}],
    "continue_final_message": True,
}
EITHER: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"stop": "e", "max_tokens": 3},
    {"stop": "e", "include_stop_str_in_output": True},
    {"max_tokens": 2},
    {"max_tokens": 0},
    {"return_token_ids": True, "n": 2},
    {"return_timings": True, "n": 2},
    {"skip_special_tokens": False, "include_stop_str_in_output": True},
    {"request_id": "mine", "truncate_prompt_tokens": 1},
    {"unknown": 1},
]
CHATS = [
    *EITHER,
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 2, "n": 2, "return_token_ids": True},
    CONTINUED,
    {**CONTINUED, "echo": True, "logprobs": True},
]
TEXTS = [
    *EITHER,
    {"logprobs": 0},
    {"logprobs": 2, "n": 2},
    {"logprobs": 2, "echo": True},
    {"logprobs": 2, "echo": True, "max_tokens": 0},
    {"prompt": ["a", "b"], "n": 2, "echo": True, "return_token_ids": True},
    {"prompt": [[1, 2], [3]]},
    {"prompt": None},
]
WHOLE_ONLY = [{"prompt_logprobs": 2}, {"prompt_logprobs": 0, "n": 2}]
RANKED = [{"best_of": 3}, {"best_of": 3, "n": 2, "logprobs": 2, "return_token_ids": True}]
USAGES: list[Any] = [
    None,
    {},
    {"include_usage": False},
    {"include_usage": True},
    {"include_usage": True, "continuous_usage_stats": True},
]
SCRIPTS = [scores("hé", size=1), scores("longer text", finish="length"), scores("🌹e", size=3)]


def tolerant(script: Any) -> Any:
    return serving(script, unknown_parameters="warn")


@pytest.mark.parametrize("script", SCRIPTS)
def test_whole_chats(official: dict[str, Any], script: Any) -> None:
    async def test() -> None:
        async with tolerant(script) as server:
            for fields in CHATS + WHOLE_ONLY:
                response = await server.chat(**fields)
                check(official, "CreateChatCompletionResponse", response.json())
                strictly(ChatCompletion, response.json())

    asyncio.run(test())


@pytest.mark.parametrize("script", SCRIPTS)
def test_whole_completions(official: dict[str, Any], script: Any) -> None:
    async def test() -> None:
        async with tolerant(script) as server:
            for fields in TEXTS + WHOLE_ONLY + RANKED:
                body = (await server.complete(**fields)).json()
                check(official, COMPLETION, body)
                if not (fields.get("echo") and "logprobs" in fields):
                    strictly(Completion, body)
                else:  # the first of all tokens has null scores, see above
                    with pytest.raises(ValidationError, match=r"token_logprobs\.0"):
                        strictly(Completion, body)

    asyncio.run(test())


@pytest.mark.parametrize("options", USAGES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_streamed_chats(official: dict[str, Any], script: Any, options: Any) -> None:
    async def test() -> None:
        async with tolerant(script) as server:
            for fields in CHATS:
                response = await server.chat(**fields, stream=True, stream_options=options)
                chunks = whole_stream(response)
                for chunk in chunks:
                    check(official, "CreateChatCompletionStreamResponse", chunk)
                    strictly(ChatCompletionChunk, chunk)
                check_usage(chunks, options or {})

    asyncio.run(test())


@pytest.mark.parametrize("options", USAGES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_streamed_completions(official: dict[str, Any], script: Any, options: Any) -> None:
    async def test() -> None:
        async with tolerant(script) as server:
            for fields in TEXTS:
                response = await server.complete(**fields, stream=True, stream_options=options)
                chunks = whole_stream(response)
                for chunk in chunks:
                    check(official, COMPLETION_CHUNK, chunk)
                    if not fields.get("echo"):
                        strictly(Completion, as_if_finished(chunk))
                check_usage(chunks, options or {})

    asyncio.run(test())


ASSISTED = '{{ tools }}{{ messages[0].content }}{# </think> <tool_call> "arguments" #}'
TOOLS = [{"type": "function", "function": {"name": "f"}}]
WITH_PARTS = [
    "<think>Why?</think>Ok.",
    "<think>Why?",
    '<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>',
    "<think>Why?</think>Ok. " + 2 * '<tool_call>{"name": "f"}</tool_call>',
    '<tool_call>{"name": "g"}</tool_call>',
    "",
]


@pytest.mark.parametrize("text", WITH_PARTS)
def test_chats_with_calls_and_reasoning(official: dict[str, Any], text: str) -> None:
    async def test() -> None:
        async with serving(scores(text), chat_template=ASSISTED) as server:
            for fields in ({}, {"n": 2}, {"logprobs": True}, {"return_token_ids": True}):
                for tools in ({}, {"tools": TOOLS}):
                    await both(server, {**fields, **tools})

    async def both(server: Server, fields: dict[str, Any]) -> None:
        body = (await server.chat(**fields)).json()
        check(official, "CreateChatCompletionResponse", body)
        strictly(ChatCompletion, body)
        for options in (USAGES[0], USAGES[-1]):  # all of them are above
            response = await server.chat(**fields, stream=True, stream_options=options)
            chunks = whole_stream(response)
            for chunk in chunks:
                check(official, "CreateChatCompletionStreamResponse", chunk)
                strictly(ChatCompletionChunk, chunk)
            check_usage(chunks, options or {})

    asyncio.run(test())


def as_if_finished(chunk: Any) -> Any:
    """The client too types a completion's chunks as whole ones, whose finish_reason is a text."""
    choices = [
        {**each, "finish_reason": each["finish_reason"] or "stop"} for each in chunk["choices"]
    ]
    return {**chunk, "choices": choices}


def whole_stream(response: Any) -> list[Any]:
    """The chunks of a stream that has come to its end."""
    *chunks, done = events(response)
    assert done == "[DONE]"
    return chunks


def check_usage(chunks: list[Any], options: dict[str, Any]) -> None:
    """Absent, or null before the last chunk, or in every chunk."""
    if not options.get("include_usage"):
        assert not any("usage" in chunk for chunk in chunks)
        return
    *before, last = chunks
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0
    if options.get("continuous_usage_stats"):
        counted = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counted == sorted(counted)
    else:
        assert all(chunk["usage"] is None for chunk in before)


def test_models_and_vectors(official: dict[str, Any]) -> None:
    async def test() -> None:
        async with tolerant(gives_vectors) as server:
            models = (await server.client.get("/v1/models")).json()
            check(official, "ListModelsResponse", models)
            model = (await server.client.get("/v1/models/m")).json()
            check(official, "Model", model)
            strictly(Model, model)
            for fields in ({"input": ["a"]}, {"input": [[1], [2]], "dimensions": 2}, {"foo": 1}):
                body = (await server.embed(**fields)).json()
                check(official, "CreateEmbeddingResponse", body)
                strictly(CreateEmbeddingResponse, body)
            text = (await server.embed(encoding_format="base64")).json()
            check(official, VECTOR_TEXT, text["data"][0])
            check(official, "CreateEmbeddingResponse", {**text, "data": []})

    asyncio.run(test())


def test_errors(official: dict[str, Any]) -> None:
    async def test() -> None:
        async with serving(refuses(500, "boom", after="a"), api_key="key") as server:
            check_error(official, await server.chat(), 401)
            server.client.headers["authorization"] = "Bearer key"
            get, post = server.client.get, server.client.post
            for response, status in (
                (await server.chat(n=0), 400),
                (await server.chat(foo=0), 400),
                (await server.chat(messages=[]), 400),
                (await server.chat(tools=[{"type": "function"}]), 400),
                (await server.complete(prompt=[10**9]), 400),
                (await server.complete(model="other"), 404),
                (await server.embed(dimensions=999), 400),
                (await get("/v1/models/other"), 404),
                (await get("/nowhere"), 404),
                (await get(CHAT), 405),
                (await post(CHAT, content=b"{"), 400),
                (await post(COMPLETIONS, content=b" " * (9 << 20)), 413),
                (await server.chat(), 500),
            ):
                check_error(official, response, status)
            for stream in (server.chat(stream=True), server.complete(stream=True)):
                *_, last = events(await stream)
                check(official, "ErrorResponse", last)
            server.engine.die("gone")
            check_error(official, await server.chat(), 503)
            check_error(official, await get("/health"), 503)

    asyncio.run(test())


def check_error(official: dict[str, Any], response: Any, status: int) -> None:
    assert response.status_code == status, response.text
    check(official, "ErrorResponse", response.json())

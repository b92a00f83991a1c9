"""Answers against OpenAI's published schemas, and every property of its requests.

Where the specification contradicts OpenAI's own behaviour, the relaxation is listed here.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
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
    root = {"$ref": f"#/components/schemas/{schema}", "components": official["components"]}
    jsonschema.Draft202012Validator(root).validate(body)


CHAT_SCORES = {"logprobs": True, "top_logprobs": 2}
COMPLETION_SCORES = {"logprobs": 2, "echo": True}


@pytest.mark.parametrize("script", [scores("hé"), scores("longer text", finish="length")])
def test_answers_are_valid(official: dict[str, Any], script: Any) -> None:
    async def test() -> None:
        async with serving(script) as server:
            await check_answers(server)

    async def check_answers(server: Server) -> None:
        for fields in ({}, {"n": 3}, {"stop": "e", "max_tokens": 3}):
            for options in (None, {"include_usage": True}, {"include_usage": False}):
                await check_chat(server, fields, options)
                await check_chat(server, {**fields, **CHAT_SCORES}, options)
                await check_completion(server, fields, options)
                await check_completion(server, {**fields, **COMPLETION_SCORES}, options)
        check(official, "ListModelsResponse", (await server.client.get("/v1/models")).json())
        check(official, "Model", (await server.client.get("/v1/models/m")).json())

    async def check_chat(server: Server, fields: Any, options: Any) -> None:
        check(official, "CreateChatCompletionResponse", (await server.chat(**fields)).json())
        streamed = {**fields, "stream": True, "stream_options": options}
        for chunk in events(await server.chat(**streamed))[:-1]:
            check(official, "CreateChatCompletionStreamResponse", chunk)

    async def check_completion(server: Server, fields: Any, options: Any) -> None:
        check(official, COMPLETION, (await server.complete(**fields)).json())
        streamed = {**fields, "stream": True, "stream_options": options}
        for chunk in events(await server.complete(**streamed))[:-1]:
            check(official, COMPLETION_CHUNK, chunk)

    asyncio.run(test())


def test_vectors_are_valid(official: dict[str, Any]) -> None:
    async def test() -> None:
        async with serving(gives_vectors) as server:
            check(official, "CreateEmbeddingResponse", (await server.embed(input=["a"])).json())
            text = (await server.embed(encoding_format="base64")).json()
            check(official, VECTOR_TEXT, text["data"][0])
            check(official, "CreateEmbeddingResponse", {**text, "data": []})

    asyncio.run(test())


def test_errors_are_valid(official: dict[str, Any]) -> None:
    async def test() -> None:
        async with serving(refuses(500, "boom", after="a")) as server:
            check(official, "ErrorResponse", (await server.chat(n=0)).json())
            check(official, "ErrorResponse", (await server.chat()).json())
            check(official, "ErrorResponse", events(await server.chat(stream=True))[-1])

    asyncio.run(test())


# -- every property of the requests ----------------------------------------------------------

# A value that is valid by the specification and is not the default.
NON_DEFAULT: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "best_of": 2,
    "dimensions": 3,
    "echo": True,
    "encoding_format": "base64",
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "input": ["x", "y"],
    "logit_bias": {"5": 1},
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "model": "m",
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt": "x",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 5,
    "service_tier": "flex",
    "stop": ["a"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "suffix": "s",
    "temperature": 0.5,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_logprobs": 5,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
}
LOGPROBS = {CHAT: True, COMPLETIONS: 3}
NO_EFFECT = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
APPLIED = {
    "dimensions",
    "echo",
    "encoding_format",
    "frequency_penalty",
    "input",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "presence_penalty",
    "prompt",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_logprobs",
    "top_p",
}
NEEDS = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}
DEFAULTS: dict[str, list[Any]] = {
    "best_of": [1],
    "echo": [False],
    "encoding_format": ["float"],
    "function_call": ["none"],
    "frequency_penalty": [0],
    "modalities": [["text"]],
    "n": [1],
    "parallel_tool_calls": [True],
    "presence_penalty": [0],
    "prompt_cache_options": [{}, {"mode": "implicit"}],
    "reasoning_effort": ["medium"],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto"],
    "store": [False],
    "stream": [False],
    "temperature": [1],
    "tool_choice": ["none"],
    "tools": [[]],
    "top_p": [1],
    "verbosity": ["medium"],
}
REQUIRED = {"input", "messages", "model", "prompt"}


def properties(name: str) -> set[str]:
    """Names of all properties of a request schema, through ``allOf`` and ``$ref``."""
    schemas = json.loads((SPECIFICATION / "openapi.json").read_text())["components"]["schemas"]

    def walk(schema: dict[str, Any]) -> set[str]:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        found = set(schema.get("properties", {}))
        return found.union(*map(walk, schema.get("allOf", [])))

    return walk(schemas[name])


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        (CHAT, "CreateChatCompletionRequest"),
        (COMPLETIONS, "CreateCompletionRequest"),
        (EMBEDDINGS, "CreateEmbeddingRequest"),
    ],
)
def test_every_property_is_applied_refused_or_without_effect(path: str, schema: str) -> None:
    async def test() -> None:
        script = gives_vectors if path == EMBEDDINGS else scores("x")
        async with serving(script) as server:
            ask = {CHAT: server.chat, EMBEDDINGS: server.embed}.get(path, server.complete)
            for name in sorted(properties(schema)):
                value = LOGPROBS[path] if name == "logprobs" else NON_DEFAULT[name]
                fields = {name: value, **NEEDS.get(name, {})}
                response = await ask(**fields)
                if name in APPLIED | NO_EFFECT:
                    assert response.status_code == 200, (name, response.text)
                else:
                    assert response.status_code == 400, name
                    assert response.json()["error"]["param"] == name
                    assert name in response.json()["error"]["message"]
                accepted = [False] if (path, name) == (CHAT, "logprobs") else DEFAULTS.get(name, [])
                for default in [*accepted, *([] if name in REQUIRED else [None])]:
                    response = await ask(**{name: default})
                    assert response.status_code == 200, (name, default, response.text)

    asyncio.run(test())


@pytest.mark.parametrize("name", sorted(NO_EFFECT))
def test_even_what_has_no_effect_has_a_type(name: str) -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            response = await server.chat(**{name: 5})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == name

    asyncio.run(test())

"""The registry of parameters: complete, within the specification's limits, and true.

For every field that a request can have, a value beyond the default is sent, and what comes of it is
compared with what the registry says: it changes what the engine is told or what is answered, or it
changes neither, or it is a 400 that names the field.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import asdict

from rosellm.roseinfer.messages import Add, Output
from rosellm.roseinfer.server.parameters import ENDPOINTS, OPENAI, Parameter, parameters
from rosellm.roseinfer.server.schemas.chat import ChatRequest, PromptCacheOptions, TextFormat
from rosellm.roseinfer.server.schemas.fields import Outcome
from rosellm.roseinfer.server.schemas.messages import (
    AssistantMessage,
    CalledFunction,
    DeveloperMessage,
    NoMessage,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from rosellm.roseinfer.server.schemas.nesting import nested
from rosellm.roseinfer.server.schemas.prediction import Prediction
from rosellm.roseinfer.server.schemas.streaming import StreamOptions
from rosellm.roseinfer.server.schemas.structured import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
)
from rosellm.roseinfer.server.schemas.tools import (
    Allowed,
    AllowedTools,
    FunctionDefinition,
    FunctionName,
    FunctionTool,
    NamedTool,
    NoToolChoice,
)
from rosellm.roseinfer.server.unknown_fields import without
from tests.server.fakes import (
    BOS,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    EOS,
    HELLO,
    InfillTokenizer,
    Server,
    events,
    gives_vectors,
    score,
    scores,
    serving,
)

SPECIFICATION = Path(__file__).parents[3] / "shared" / "openai-spec"
with_specification = pytest.mark.skipif(
    not SPECIFICATION.is_dir(), reason="no ../shared/openai-spec beside this checkout"
)
SCHEMA_NAMES: dict[type, str] = {
    SystemMessage: "ChatCompletionRequestSystemMessage",
    DeveloperMessage: "ChatCompletionRequestDeveloperMessage",
    UserMessage: "ChatCompletionRequestUserMessage",
    AssistantMessage: "ChatCompletionRequestAssistantMessage",
    ToolMessage: "ChatCompletionRequestToolMessage",
    TextPart: "ChatCompletionRequestMessageContentPartText",
    StreamOptions: "ChatCompletionStreamOptions",
    JsonObjectFormat: "ResponseFormatJsonObject",
    JsonSchemaFormat: "ResponseFormatJsonSchema",
    NamedSchema: "ResponseFormatJsonSchema.json_schema",
    ToolCall: "ChatCompletionMessageToolCall",
    CalledFunction: "ChatCompletionMessageToolCall.function",
    FunctionTool: "ChatCompletionTool",
    FunctionDefinition: "FunctionObject",
    NamedTool: "ChatCompletionNamedToolChoice",
    FunctionName: "ChatCompletionNamedToolChoice.function",
    Prediction: "PredictionContent",
    AllowedTools: "ChatCompletionAllowedToolsChoice",
    Allowed: "ChatCompletionAllowedTools",
    **{
        endpoint.request: name
        for endpoint, name in zip(
            ENDPOINTS,
            ("CreateChatCompletionRequest", "CreateCompletionRequest", "CreateEmbeddingRequest"),
            strict=False,
        )
    },
}
ASKED = {endpoint.path: endpoint.request for endpoint in ENDPOINTS}

# -- the registry itself -----------------------------------------------------------------------


def test_every_field_is_described() -> None:
    for endpoint in ENDPOINTS:
        for kind in (endpoint.request, *endpoint.objects.values()):
            for each in parameters(kind):
                assert each.description, (endpoint.path, each.name)
                assert each.schema, (endpoint.path, each.name)


def test_every_name_of_the_specification_has_a_field() -> None:
    for kind, names in OPENAI.items():
        assert names <= kind.model_fields.keys(), kind


def test_every_object_in_a_request_is_shown() -> None:
    only_as_a_default = {TextFormat, PromptCacheOptions}
    for endpoint in ENDPOINTS:
        inside = set(nested(endpoint.request)) - {NoMessage, NoToolChoice} - only_as_a_default
        assert inside == set(endpoint.objects.values()), endpoint.path


# -- against the specification -----------------------------------------------------------------


def specified(name: str) -> dict[str, Any]:
    """The properties of a schema, through ``allOf``, ``anyOf`` with null, and ``$ref``.

    Args:
        name: of the schema, or of it and of a property that is an object itself.
    """
    found: dict[str, Any] = {}
    name, _, inner = name.partition(".")
    whole = _schemas()[name]
    for schema in _parts(whole["properties"][inner] if inner else whole):
        found |= schema.get("properties", {})
    return found


@cache
def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads((SPECIFICATION / "openapi.json").read_text())
    found: dict[str, Any] = schemas["components"]["schemas"]
    return found


def _parts(schema: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """A schema and what it is made of, as far as it says one thing."""
    if "$ref" in schema:
        schema = _schemas()[schema["$ref"].rsplit("/", 1)[1]]
    yield schema
    for union in ("allOf", "anyOf", "oneOf"):
        for each in schema.get(union, ()):
            yield from _parts(each)


@with_specification
@pytest.mark.parametrize("kind", OPENAI, ids=lambda kind: kind.__name__)
def test_it_lists_all_properties_and_no_other(kind: Any) -> None:
    assert OPENAI[kind] == specified(SCHEMA_NAMES[kind]).keys()


LIMITS = ("minimum", "maximum", "minItems", "maxItems", "maxLength")
# Where ours differ: JSON's numbers cannot hold the specification's int64 bounds; an empty list of
# tools or functions asks for nothing, and neither does an empty dict of what has a default.
OTHER_LIMITS = {"seed", "functions", "input"}


@with_specification
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_limits_are_those_of_the_specification(path: str) -> None:
    kind = ASKED[path]
    properties = specified(SCHEMA_NAMES[kind])
    checked = 0
    for each in parameters(kind):
        if not each.openai or each.outcome is Outcome.REJECTED or each.name in OTHER_LIMITS:
            continue
        for limit in LIMITS:
            theirs = {part[limit] for part in _parts(properties[each.name]) if limit in part}
            ours = {part[limit] for part in _forms(each.schema) if limit in part}
            assert theirs <= ours, (each.name, limit)
            checked += len(theirs)
    assert checked > 3 * (path != EMBEDDINGS)


def _forms(schema: Any) -> Iterable[Any]:
    yield schema
    yield from schema.get("anyOf", ())


@with_specification
def test_choices_are_those_of_the_specification() -> None:
    properties = specified("CreateChatCompletionRequest")
    for each in parameters(ChatRequest):
        if each.openai and each.outcome is not Outcome.REJECTED:
            theirs = {
                str(one) for part in _parts(properties[each.name]) for one in part.get("enum", ())
            }
            if each.name != "model" and theirs:
                ours = {one for part in _forms(each.schema) for one in part.get("enum", ())}
                assert theirs <= ours, each.name


# -- what comes of each field ------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}{{ m.name or '' }}{{ m.tool_call_id or '' }}]"
    "{{ m.content }}\n{% endfor %}{{ mood }}{{ reasoning_effort }}"
    "{% if tools %}[TOOL_CALLS] {{ tools }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PREFILLED = {"messages": [*HELLO, {"role": "assistant", "content": "He said"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
CONTINUED = {**PREFILLED, "continue_final_message": True}

# For every field a value that is valid by the specification and not the default, and what has to
# stand beside it.
BOTH: dict[str, tuple[Any, dict[str, Any]]] = {
    "cache_salt": ("s", {}),
    "frequency_penalty": (0.5, {}),
    "ignore_eos": (True, {}),
    "include_stop_str_in_output": (True, {"stop": "l"}),
    "logit_bias": ({"5": 1}, {}),
    "max_tokens": (5, {}),
    "min_p": (0.5, {}),
    "min_tokens": (2, {}),
    "model": ("roseinfer-gpt2", {}),
    "n": (2, {}),
    "presence_penalty": (0.5, {}),
    "priority": (1, {}),
    "prompt_logprobs": (1, {}),
    "repetition_penalty": (1.5, {}),
    "request_id": ("mine", {}),
    "return_token_ids": (True, {}),
    "return_timings": (True, {}),
    "seed": (5, {}),
    "skip_special_tokens": (False, {}),
    "spaces_between_special_tokens": (True, {"skip_special_tokens": False}),
    "stop": (["l"], {}),
    "stop_token_ids": ([5], {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "structured_outputs": ({"regex": "a+"}, {}),
    "temperature": (0.5, {}),
    "timeout": (5.0, {}),
    "top_k": (5, {}),
    "top_p": (0.5, {}),
    "truncate_prompt_tokens": (3, {}),
    "user": ("u", {}),
}
OF_CHATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "add_generation_prompt": (False, {}),
    "audio": ({"voice": "alloy", "format": "mp3"}, {}),
    "chat_template_kwargs": ({"mood": "glad"}, {}),
    "continue_final_message": (True, PREFILLED),
    "echo": (True, CONTINUED),
    "function_call": ("auto", {}),
    "functions": ([{"name": "f"}], {}),
    "logprobs": (True, {}),
    "max_completion_tokens": (5, {}),
    "messages": ([{"role": "system", "content": "be brief"}, *HELLO], {}),
    "metadata": ({"a": "b"}, {}),
    "modalities": (["text", "audio"], {}),
    "moderation": ({"model": "omni-moderation-latest"}, {}),
    "parallel_tool_calls": (False, {"tools": [TOOL], "tool_choice": "required"}),
    "prediction": ({"type": "content", "content": "x"}, {}),
    "prompt_cache_key": ("k", {}),
    "prompt_cache_options": ({"mode": "explicit"}, {}),
    "prompt_cache_retention": ("24h", {}),
    "reasoning_effort": ("high", {}),
    "response_format": ({"type": "json_object"}, {}),
    "safety_identifier": ("s", {}),
    "service_tier": ("flex", {}),
    "store": (True, {}),
    "tool_choice": ("none", {"tools": [TOOL]}),
    "tools": ([TOOL], {}),
    "top_logprobs": (2, {"logprobs": True}),
    "verbosity": ("high", {}),
    "web_search_options": ({}, {}),
}
OF_COMPLETIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "best_of": (3, {}),
    "echo": (True, {}),
    "logprobs": (2, {}),
    "prompt": ("ho", {}),
    "suffix": ("s", {}),
}
OF_EMBEDDINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dimensions": (3, {}),
    "encoding_format": ("base64", {}),
    "input": (["x", "y"], {}),
    "model": ("roseinfer-gpt2", {}),
    "timeout": (5.0, {}),
    "user": ("u", {}),
}
CASES = {CHAT: BOTH | OF_CHATS, COMPLETIONS: BOTH | OF_COMPLETIONS, EMBEDDINGS: OF_EMBEDDINGS}


def says_with_a_special_token(add: Add) -> Iterable[Output]:
    """ "he", a special token, "llo", and the end, a token a row; scores as they are asked for."""
    if add.params.prompt_logprobs is not None:
        top = add.params.prompt_logprobs
        told = [score(place, id, top) for place, id in enumerate(add.prompt) if place]
        yield Output(add.id, prompt_logprobs=told)
    tokens = [*b"he", BOS, *b"llo", EOS][: add.params.max_tokens]
    for choice in range(add.n):
        for place, token in enumerate(tokens):
            last = place == len(tokens) - 1
            top_or_none = add.params.logprobs
            yield Output(
                add.id,
                choice,
                [token],
                None if top_or_none is None else [score(place, token, top_or_none)],
                finish=("stop" if token == EOS else "length") if last else None,
                last=last and choice == add.n - 1,
            )


async def outcome(server: Server, path: str, body: dict[str, Any]) -> Any:
    """What the engine was told and what was answered, without what is always new."""
    before = len(server.engine.added)
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, (body, response.text)
    told = [asdict(add) for add in server.engine.added[before:]]
    said = events(response) if body.get("stream") else [response.json()]
    for each in said:
        if isinstance(each, dict):
            each.pop("created", None)
    return [{**add, "id": 0} for add in told], said


BASE: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": HELLO, "seed": 1, "request_id": "base"},
    COMPLETIONS: {"model": "m", "prompt": "hello", "seed": 1, "request_id": "base"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
}


@pytest.mark.parametrize("path", CASES)
def test_every_field_does_what_the_registry_says(path: str) -> None:
    registry = {each.name: each for each in parameters(ASKED[path])}
    assert CASES[path].keys() == registry.keys(), "a case for each field, and no other"

    async def test() -> None:
        script = gives_vectors if path == EMBEDDINGS else says_with_a_special_token
        async with serving(script, tokenizer=InfillTokenizer(TEMPLATE)) as server:
            for name, (value, beside) in CASES[path].items():
                await check(server, registry[name], {**BASE[path], **beside}, value)

    async def check(server: Server, each: Parameter, plain: dict[str, Any], value: Any) -> None:
        body = {**plain, each.name: value}
        if each.outcome is Outcome.REJECTED:
            response = await server.client.post(path, json=body)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, each.name)
            assert each.name in error["message"]
            assert error["code"] == "unsupported_parameter"
            return
        changed = await outcome(server, path, body) != await outcome(server, path, plain)
        if each.name == "model":  # whichever of its names it is called by; any other is a 404
            other = await server.client.post(path, json={**plain, "model": "other"})
            changed = other.status_code == 404 and other.json()["error"]["param"] == "model"
        assert changed is (each.outcome is Outcome.APPLIED), (path, each.name)

    asyncio.run(test())


# Values that ask for nothing are accepted also of what is rejected otherwise.
DEFAULTS: dict[str, list[Any]] = {
    "best_of": [1],
    "encoding_format": ["float"],
    "frequency_penalty": [0],
    "function_call": ["none"],
    "functions": [[]],
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


@pytest.mark.parametrize("path", CASES)
def test_null_and_the_default_ask_for_nothing(path: str) -> None:
    async def test() -> None:
        script = gives_vectors if path == EMBEDDINGS else scores("x")
        async with serving(script) as server:
            plain = BASE[path]
            expected = await outcome(server, path, plain)
            for each in parameters(ASKED[path]):
                for value in [*DEFAULTS.get(each.name, []), *([] if each.required else [None])]:
                    if value is None and each.name in plain:
                        continue
                    came = await outcome(server, path, {**plain, each.name: value})
                    assert came == expected, (each.name, value)

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_even_what_has_no_effect_has_a_type(path: str) -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            for each in parameters(ASKED[path]):
                if each.outcome is Outcome.NO_EFFECT:
                    response = await server.client.post(path, json={**BASE[path], each.name: 5})
                    assert response.status_code == 400, each.name
                    assert response.json()["error"]["param"] == each.name

    asyncio.run(test())


# -- what is in no table -----------------------------------------------------------------------

UNKNOWN = [
    (CHAT, {"max_token": 5}, "max_token", '"max_tokens"'),
    (CHAT, {"temprature": 1}, "temprature", '"temperature"'),
    (COMPLETIONS, {"top-k": 5}, "top-k", '"top_k"'),
    (EMBEDDINGS, {"dimension": 2}, "dimension", '"dimensions"'),
    (CHAT, {"zzzz": 5}, "zzzz", ""),
    (CHAT, {"messages": [{**HELLO[0], "nme": "x"}]}, "messages[0].nme", '"name"'),
    (
        CHAT,
        {"stream": True, "stream_options": {"include_usge": True}},
        "stream_options.include_usge",
        '"include_usage"',
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "txt": "b"}]}]},
        "messages[0].content[0].txt",
        '"text"',
    ),
]


@pytest.mark.parametrize(("path", "fields", "where", "near"), UNKNOWN)
def test_an_unknown_field_is_named_with_its_neighbour(
    path: str, fields: dict[str, Any], where: str, near: str
) -> None:
    async def test() -> None:
        script = gives_vectors if path == EMBEDDINGS else scores("x")
        async with serving(script) as server:
            response = await server.client.post(path, json={**BASE[path], **fields})
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "unknown_parameter")
            assert error["param"] == where
            assert where in error["message"]
            assert near in error["message"]
            assert ("did you mean" in error["message"]) == bool(near)

    asyncio.run(test())


@pytest.mark.parametrize(("path", "fields", "where", "near"), UNKNOWN)
def test_an_unknown_field_may_be_warned_of(
    path: str, fields: dict[str, Any], where: str, near: str
) -> None:
    async def test() -> None:
        script = gives_vectors if path == EMBEDDINGS else scores("x")
        async with serving(script, unknown_parameters="warn") as server:
            response = await server.client.post(path, json={**BASE[path], **fields})
            assert response.status_code == 200, response.text
            said = events(response)[:-1] if fields.get("stream") else [response.json()]
            for each in said:
                [warning] = each["warnings"]
                assert where in warning
                assert near in warning
            plain = await server.client.post(path, json=BASE[path])
            assert "warnings" not in plain.json()

    asyncio.run(test())


def test_what_is_known_is_checked_all_the_same_when_others_are_warned_of() -> None:
    async def test() -> None:
        async with serving(scores("x"), unknown_parameters="warn") as server:
            for fields, param in (
                ({"foo": 1, "temperature": 3}, "temperature"),
                ({"foo": 1, "tools": [{"type": "function"}]}, "tools[0].function"),
                ({"messages": [{"role": "user", "bar": 1}]}, "messages[0].content"),
            ):
                response = await server.chat(**fields)
                assert response.status_code == 400
                assert response.json()["error"]["param"] == param
            both = (await server.chat(foo=1, bar={"baz": 2})).json()
            assert [warning.split()[-1] for warning in both["warnings"]] == ['"foo"', '"bar"']

    asyncio.run(test())


def test_warnings_are_not_endless() -> None:
    async def test() -> None:
        async with serving(scores("x"), unknown_parameters="warn") as server:
            body = (await server.chat(**{f"foo{number}": 1 for number in range(1000)})).json()
            assert len(body["warnings"]) == 33
            assert "968 more" in body["warnings"][-1]

    asyncio.run(test())


def test_leaving_fields_out_copies_what_it_changes() -> None:
    body = {"a": [{"b": 1, "c": 2}], "d": 3}
    assert without(body, [("a", 0, "b"), ("d",)]) == {"a": [{"c": 2}]}
    assert body == {"a": [{"b": 1, "c": 2}], "d": 3}


# -- what the server says of itself ------------------------------------------------------------


def test_capabilities_are_the_registry() -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            response: httpx.Response = await server.client.get("/v1/capabilities")
            body = response.json()
            assert (body["model"], body["unknown_parameters"]) == ("m", "reject")
            assert body["endpoints"].keys() == ASKED.keys()
            for path, kind in ASKED.items():
                shown = body["endpoints"][path]["parameters"]
                assert shown.keys() == kind.model_fields.keys()
                for each in parameters(kind):
                    assert shown[each.name]["outcome"] == each.outcome.value
                    assert shown[each.name]["schema"] == each.schema
            chat = body["endpoints"][CHAT]
            assert chat["parameters"]["top_logprobs"]["schema"]["maximum"] == 20
            assert chat["parameters"]["user"]["outcome"] == "no effect"
            assert chat["parameters"]["audio"]["outcome"] == "rejected"
            assert chat["parameters"]["messages"]["required"]
            assert "include_usage" in chat["objects"]["stream_options"]

    asyncio.run(test())

"""Every refusal: its status, the field it names, and that it is OpenAI's error shape."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from rosellm.roseinfer.messages import Output
from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    MAX_MODEL_LEN,
    events,
    refuses,
    says,
    serving,
)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert "Traceback" not in error["message"]
    assert response.headers["x-request-id"]
    return error


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


BAD_SAMPLING = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "1"),
    ("temperature", True),
    ("top_p", 1.1),
    ("top_p", -1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 1.5),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -2.5),
    ("repetition_penalty", 0),
    ("n", 0),
    ("n", -1),
    ("n", 10**9),
    ("n", 129),
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_tokens", 10**30),
    ("min_tokens", -1),
    ("min_tokens", 1000),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("seed", 1.5),
    ("stop", ""),
    ("stop", []),
    ("stop", ["a"] * 5),
    ("stop", {"a": 1}),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"999": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"01": 1}),
    ("logit_bias", [1]),
    ("stop_token_ids", [999]),
    ("ignore_eos", "yes"),
    ("stream", 1),
    ("stream", "true"),
    ("priority", 2**40),
    ("cache_salt", 5),
    ("stream_options", {"include_usage": True}),
]


@pytest.mark.parametrize(("field", "value"), BAD_SAMPLING)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_out_of_range(path: str, field: str, value: Any) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            ask = server.chat if path == CHAT else server.complete
            error = error_of(await ask(**{field: value}), 400)
            assert error["type"] == "invalid_request_error"
            assert error["param"] == field
            assert server.engine.added == []

    asyncio.run(test())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": user(5)}, "messages[0].content"),
        ({"messages": user(None)}, "messages[0].content"),
        ({"messages": user([])}, "messages[0].content"),
        ({"messages": [*user("a"), {"role": "function", "content": "x"}]}, "messages[1].role"),
        ({"messages": [*user("a"), {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "nme": "y"}]}, "messages[0].nme"),
        (
            {"messages": user([{"type": "text", "text": "a"}, {"type": "image_url"}])},
            "messages[0].content[1].type",
        ),
        ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"model": 5}, "model"),
    ],
)
def test_chat_params_are_named(fields: dict[str, Any], param: str) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            assert error_of(await server.chat(**fields), 400)["param"] == param

    asyncio.run(test())


@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "k" * 5000])
def test_a_complaint_is_one_short_line_whatever_a_key_is(key: str) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            error = error_of(await server.chat(metadata={key: 5}), 400)
            assert error["param"] == f"metadata.{key}"
            assert error["message"].isprintable()
            assert len(error["message"]) < 300

    asyncio.run(test())


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        (5, "prompt"),
        ({"a": 1}, "prompt"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        ([[1], ["a"]], "prompt[1][0]"),
        ([-1], "prompt"),
        ([999], "prompt"),
        ([10**30], "prompt"),
        ([[1], [999]], "prompt[1]"),
    ],
)
def test_bad_prompts(prompt: Any, param: str) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            assert error_of(await server.complete(prompt=prompt), 400)["param"] == param

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"5",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b'{"model": "m", "temperature": 1e999}',
        b'{"model": "m", "messages": "\\ud800", "prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "m", "seed": ' + b"9" * 10_000 + b"}",
        b'{"\\ud800": 1}',
    ],
)
def test_what_is_not_a_request(path: str, body: bytes) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            headers = {"content-type": "application/json"}
            for sent in ({}, headers):
                response = await server.client.post(path, content=body, headers=sent)
                assert error_of(response, 400)["type"] == "invalid_request_error"

    asyncio.run(test())


def test_a_body_that_is_too_large() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            error = error_of(await server.complete(prompt="a" * (9 << 20)), 413)
            assert error["type"] == "invalid_request_error"

    asyncio.run(test())


def test_a_body_in_another_coding() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            for coding, status in (("gzip", 415), ("Identity", 200), ("br, gzip", 415)):
                server.client.headers["content-encoding"] = coding
                answer = await server.chat()
                assert answer.status_code == status
                if status != 200:
                    assert "content encoding" in error_of(answer, 415)["message"]

    asyncio.run(test())


def test_missing_and_misspelt_fields() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            post = server.client.post
            error = error_of(await post(CHAT, json={"messages": user("x")}), 400)
            assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
            error = error_of(await post(COMPLETIONS, json={"model": "m"}), 400)
            assert error["param"] == "prompt"
            error = error_of(await post(COMPLETIONS, json={"model": "m", "promt": "x"}), 400)
            assert (error["param"], error["code"]) == ("promt", "unknown_parameter")
            assert '"prompt"' in error["message"]
            error = error_of(await server.chat(zzzz=1), 400)
            assert (error["param"], "mean" in error["message"]) == ("zzzz", False)
            error = error_of(await post("/generate", json={"prompt": "x", "n": 2}), 400)
            assert error["param"] == "n"

    asyncio.run(test())


def test_unknown_models_routes_and_methods() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            for response in (
                await server.chat(model="other"),
                await server.complete(model="other"),
                await server.client.get("/v1/models/other/one"),
            ):
                assert error_of(response, 404)["code"] == "model_not_found"
            for path in ("/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/images"):
                assert error_of(await server.client.get(path), 404)["type"] == "not_found_error"
            error_of(await server.client.get(CHAT), 405)
            error_of(await server.client.delete("/health"), 405)
            error_of(await server.client.post("/v1/models"), 405)

    asyncio.run(test())


def test_a_prompt_that_is_too_long() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            for response in (
                await server.complete(prompt="a" * MAX_MODEL_LEN),
                await server.complete(prompt="a" * 1_000_000),
                await server.complete(prompt=[1] * MAX_MODEL_LEN),
                await server.complete(prompt="a", max_tokens=MAX_MODEL_LEN),
                await server.chat(messages=user("a" * MAX_MODEL_LEN)),
                await server.chat(max_completion_tokens=MAX_MODEL_LEN),
                await server.client.post(
                    "/generate", json={"prompt": "a", "max_new_tokens": MAX_MODEL_LEN}
                ),
            ):
                error = error_of(response, 400)
                assert error["code"] == "context_length_exceeded"
                assert str(MAX_MODEL_LEN) in error["message"]
            error = error_of(await server.complete(prompt="abc", max_tokens=600), 400)
            assert all(number in error["message"] for number in ("512", "4", "600"))
            fits = await server.complete(prompt="abc", max_tokens=MAX_MODEL_LEN - 4)
            assert fits.status_code == 200

    asyncio.run(test())


def test_what_the_chat_template_refuses() -> None:
    async def test() -> None:
        template = "{{ raise_exception('roles must alternate') }}"
        async with serving(says("x"), chat_template=template) as server:
            error = error_of(await server.chat(), 400)
            assert "roles must alternate" in error["message"]

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_engine_has_its_own_status(path: str, stream: bool) -> None:
    async def test() -> None:
        async with serving(refuses(503, "queue_full")) as server:
            body = {"prompt": "x", "stream": stream}
            if path == CHAT:
                response = await server.chat(stream=stream)
            elif path == COMPLETIONS:
                response = await server.complete(stream=stream)
            else:
                response = await server.client.post(path, json=body)
            error = error_of(response, 503)
            assert (error["type"], error["code"]) == ("server_error", "queue_full")

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_failure_in_mid_stream_is_an_event_and_the_end(path: str) -> None:
    async def test() -> None:
        async with serving(refuses(500, "boom", after="abc")) as server:
            ask = server.chat if path == CHAT else server.complete
            *chunks, last = events(await ask(stream=True))
            assert set(last) == {"error"}
            assert last["error"]["code"] == "boom"
            assert all(c["choices"][0]["finish_reason"] is None for c in chunks)

    asyncio.run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_a_500_without_a_traceback(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:

            def broken(add: Any) -> Any:
                yield Output(add.id, 7, [1])  # there is no choice 7

            server.engine.script = broken
            error = error_of(await server.chat(stream=stream), 500)
            assert error["type"] == "server_error"
            assert "IndexError" not in error["message"]
            assert server.engine.aborted == [1]
            server.engine.script = says("fine")
            assert (await server.chat()).status_code == 200

    asyncio.run(test())
    assert "IndexError" in caplog.text


def test_a_bug_in_a_route_is_a_500_too() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            del server.app.state.service
            error_of(await server.client.get("/health"), 500)

    asyncio.run(test())


def test_the_api_description_promises_no_422() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            text = (await server.client.get("/openapi.json")).text
            assert '"422"' not in text
            assert "ChatRequest" in text

    asyncio.run(test())

"""The official client against a real server process."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Server

MESSAGES: Any = [{"role": "user", "content": "Tell me about the server."}]


def test_models(server: Server) -> None:
    (model,) = server.openai.models.list().data
    assert model.id == server.model
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 512
    assert server.openai.models.retrieve(server.model).id == server.model
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_chat(server: Server) -> None:
    answer = server.openai.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=12, temperature=0
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert "User" not in (choice.message.content or "")[:20]


def test_chat_stream_is_the_same_answer(server_of_each_dtype: Server) -> None:
    server = server_of_each_dtype
    arguments: Any = {
        "model": server.model,
        "messages": MESSAGES,
        "max_tokens": 40,
        "seed": 5,
        "n": 3,
    }
    whole = server.openai.chat.completions.create(**arguments)
    texts = {0: "", 1: "", 2: ""}
    reasons: dict[int, str | None] = {}
    usage = None
    for chunk in server.openai.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert reasons == {c.index: c.finish_reason for c in whole.choices}
    assert len(set(texts.values())) == 3
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


def test_completions_take_text_and_ids(server: Server) -> None:
    create = server.openai.completions.create
    common: Any = {"model": server.model, "max_tokens": 5, "temperature": 0}
    text = create(prompt="def stop", **common)
    both = create(prompt=["def stop", "import os"], **common)
    assert [c.index for c in both.choices] == [0, 1]
    assert both.choices[0].text == text.choices[0].text
    ids = create(prompt=[5, 6, 7], **common)
    lists = create(prompt=[[5, 6, 7], [8]], **common)
    assert lists.choices[0].text == ids.choices[0].text
    assert create(model=server.model, prompt="a").usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_errors(server: Server) -> None:
    chat: Any = server.openai.chat.completions.create
    with pytest.raises(openai.NotFoundError):
        chat(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        chat(model=server.model, messages=MESSAGES, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(model=server.model, messages=MESSAGES, extra_body={"temprature": 1})
    assert caught.value.param == "temprature"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(model=server.model, messages=[{"role": "user", "content": "word " * 600}])
    assert caught.value.code == "context_length_exceeded"


def _sampled(server: Server, index: int) -> Any:
    return {
        "model": server.model,
        "prompt": f"{index} times the server",
        "max_tokens": 24,
        "temperature": 0 if index % 2 else 0.9,
        "top_p": 0.95,
        "seed": index,
    }


def _streamed(server: Server, index: int) -> str:
    stream = server.openai.completions.create(**_sampled(server, index), stream=True)
    return "".join(chunk.choices[0].text for chunk in stream)


def test_32_concurrent_streams_equal_their_sequential_results(server_of_each_dtype: Server) -> None:
    server = server_of_each_dtype
    create = server.openai.completions.create
    alone = [create(**_sampled(server, i)).choices[0].text for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda i: _streamed(server, i), range(32)))
    assert together == alone


def test_100_disconnected_streams_leave_nothing_behind(server: Server) -> None:
    async def read_a_little(client: httpx.AsyncClient, index: int) -> None:
        body = {"model": server.model, "prompt": f"go on {index}", "max_tokens": 450,
                "ignore_eos": True, "stream": True}  # fmt: skip
        async with client.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            seen = 0
            async for _ in answer.aiter_lines():
                seen += 1
                if seen > 3 + index % 7:
                    return

    async def read_all() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(read_a_little(client, i) for i in range(100)))

    asyncio.run(read_all())
    health = server.wait_until_idle()
    assert health["blocks_free"] + health["blocks_cached"] == health["blocks_total"]


def test_disconnecting_from_a_plain_request_aborts_it(server: Server) -> None:
    lasting = {"max_tokens": 480, "ignore_eos": True, "n": 64}
    body = {"model": server.model, "prompt": "go on", **lasting}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
    server.wait_until_idle(timeout=2.0)


def test_fields_beyond_openais(server: Server) -> None:
    arguments: Any = {
        "model": server.model,
        "messages": [*MESSAGES, {"role": "assistant", "content": "It is"}],
        "max_tokens": 8,
        "seed": 3,
        "extra_body": {
            "continue_final_message": True,
            "echo": True,
            "return_token_ids": True,
            "request_id": "of-mine",
        },
    }
    answer = server.openai.chat.completions.create(**arguments)
    [choice] = answer.choices
    assert answer.id == "chatcmpl-of-mine"
    assert (choice.message.content or "").startswith("It is")
    assert choice.model_extra is not None
    assert answer.usage is not None
    assert len(choice.model_extra["token_ids"]) == answer.usage.completion_tokens
    streamed = server.openai.chat.completions.create(**arguments, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in streamed]
    assert "".join(pieces) == choice.message.content

    body: Any = {"model": server.model, "messages": arguments["messages"], "echo": True}
    body["continue_final_message"] = True
    rendered = httpx.post(f"{server.url}/v1/chat/completions/render", json=body).json()
    assert answer.model_extra is not None
    assert rendered["prompt_token_ids"] == answer.model_extra["prompt_token_ids"]


def test_the_best_of_several(server: Server) -> None:
    ask = server.openai.completions.create
    answer = ask(
        model=server.model, prompt="Import", n=2, best_of=5, seed=3, max_tokens=8, logprobs=0
    )
    means = []
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs
        means.append(sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))
    assert means == sorted(means, reverse=True)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 2 * 8
    with pytest.raises(openai.BadRequestError) as caught:
        ask(model=server.model, prompt="x", suffix="y")
    assert caught.value.param == "suffix"


def test_what_the_server_can(server: Server) -> None:
    told = httpx.get(f"{server.url}/v1/capabilities").json()
    chat = told["endpoints"]["/v1/chat/completions"]["parameters"]
    assert {each["outcome"] for each in chat.values()} == {"applied", "rejected", "no effect"}

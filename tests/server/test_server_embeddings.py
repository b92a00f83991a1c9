"""Vectors: their order, their forms, and inputs that have none."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosellm.roseinfer.messages import Add, Output, RowError
from rosellm.roseinfer.server import vectors
from rosellm.roseinfer.server.routes import embeddings
from tests.server.fakes import (
    BOS,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MAX_MODEL_LEN,
    VECTOR_SIZE,
    Exchange,
    gives_vectors,
    says,
    serving,
    silent,
    vector_of,
)


def run(test: Any) -> None:
    asyncio.run(test)


def unpacked(text: str) -> list[float]:
    data = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["a", "bc"], [[BOS, 97], [BOS, 98, 99]]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3], [4]], [[1], [2, 3], [4]]),
    ],
)
@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_inputs_in_every_form(given: Any, prompts: list[list[int]], form: str | None) -> None:
    async def test() -> None:
        async with serving(gives_vectors, generates=False) as server:
            body = (await server.embed(input=given, encoding_format=form, user="u")).json()
            data = body.pop("data")
            assert [each["index"] for each in data] == list(range(len(prompts)))
            assert {each["object"] for each in data} == {"embedding"}
            found = [each["embedding"] for each in data]
            if form == "base64":
                found = [unpacked(text) for text in found]
            assert found == [vector_of(prompt) for prompt in prompts]
            count = sum(map(len, prompts))
            assert body == {
                "object": "list",
                "model": "m",
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
            added = server.engine.added
            assert [(add.prompt, add.want, add.n) for add in added] == [
                (prompt, "pooled", 1) for prompt in prompts
            ]

    run(test())


def test_a_model_that_generates_has_vectors_too() -> None:
    async def test() -> None:
        async with serving(gives_vectors) as server:
            assert (await server.embed()).status_code == 200

    run(test())


@pytest.mark.parametrize("form", ["float", "base64"])
def test_fewer_dimensions_are_made_unit_length_again(form: str) -> None:
    async def test() -> None:
        async with serving(gives_vectors, generates=False) as server:
            for dimensions in (1, 2, VECTOR_SIZE):
                answer = await server.embed(input=[2], dimensions=dimensions, encoding_format=form)
                found = answer.json()["data"][0]["embedding"]
                numbers = unpacked(found) if form == "base64" else found
                root = dimensions**-0.5
                assert numbers == pytest.approx([root, root, -root, root][:dimensions])

    run(test())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), st.data())
def test_shortening_any_vector(numbers: list[float], data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, len(numbers)))
    whole = struct.pack(f"<{len(numbers)}f", *numbers)
    found = vectors.floats(vectors.shortened(whole, dimensions))
    length = sum(number**2 for number in numbers[:dimensions]) ** 0.5
    assert len(found) == dimensions
    if length > 1e-30:
        assert sum(number**2 for number in found) == pytest.approx(1, abs=1e-5)
        assert found == pytest.approx([n / length for n in numbers[:dimensions]], abs=1e-6)
    else:
        assert found == pytest.approx([0] * dimensions, abs=1)


def test_many_inputs_leave_room_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "WAVE", 3)
    waiting = 0

    async def test() -> None:
        async with serving(gives_vectors) as server:
            send = server.engine.send

            def counted(message: Any) -> None:
                nonlocal waiting
                waiting = max(waiting, len(server.service.pipeline._open))
                send(message)

            monkeypatch.setattr(server.engine, "send", counted)
            inputs = [[index, 1] for index in range(8)]
            body = (await server.embed(input=inputs)).json()
            assert [each["embedding"] for each in body["data"]] == list(map(vector_of, inputs))
            assert [each["index"] for each in body["data"]] == list(range(8))
            assert body["usage"]["prompt_tokens"] == 16

    run(test())
    assert waiting == 3


def test_as_many_inputs_as_openai_takes() -> None:
    async def test() -> None:
        async with serving(gives_vectors) as server:
            data = (await server.embed(input=["a"] * 2048)).json()["data"]
            assert len(data) == 2048
            assert (await server.embed(input=["a"] * 2049)).status_code == 400

    run(test())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [9999]}, "input"),
        ({"input": [[1], [9999]]}, "input[1]"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": VECTOR_SIZE + 1}, "dimensions"),
        ({"user": 5}, "user"),
        ({"inputs": "x"}, "inputs"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_what_has_no_vector(fields: dict[str, Any], param: str) -> None:
    async def test() -> None:
        async with serving(gives_vectors) as server:
            response = await server.embed(**fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param
            assert server.engine.added == []

    run(test())


def test_an_input_may_fill_the_context_but_not_more() -> None:
    async def test() -> None:
        async with serving(gives_vectors) as server:
            full = [97] * MAX_MODEL_LEN
            assert (await server.embed(input=full)).status_code == 200
            error = (await server.embed(input=["a", "a" * 1_000_000])).json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
            error = (await server.embed(input=[[1], [*full, 97]])).json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
            assert str(MAX_MODEL_LEN) in error["message"]

    run(test())


def test_another_model_has_other_vectors() -> None:
    async def test() -> None:
        async with serving(gives_vectors) as server:
            assert (await server.embed(model="other")).status_code == 404

    run(test())


def test_one_refusal_ends_the_request() -> None:
    def script(add: Add) -> Iterator[Output]:
        if add.prompt == [2]:
            yield Output(
                add.id, finish="error", error=RowError("full", 503, "queue_full"), last=True
            )
        else:
            yield from gives_vectors(add)

    async def test() -> None:
        async with serving(script) as server:
            response = await server.embed(input=[[1], [2], [3]])
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "queue_full"
            assert server.service.pipeline._open == {}

    run(test())


def test_a_client_that_leaves_aborts_its_inputs() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            exchange = Exchange(server.app, EMBEDDINGS, {"model": "m", "input": ["a", "b"]})
            while len(server.engine.added) < 2:
                await asyncio.sleep(0)
            exchange.leave()
            await asyncio.wait_for(exchange.task, 2)
            assert sorted(server.engine.aborted) == [1, 2]

    run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_embedding_model_writes_nothing(path: str, stream: bool) -> None:
    async def test() -> None:
        async with serving(says("x"), generates=False) as server:
            body: dict[str, Any] = {"stream": stream}
            body |= {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {}
            body |= {} if path == CHAT else {"prompt": "x"}
            body |= {} if path == "/generate" else {"model": "m"}
            response = await server.client.post(path, content=json.dumps(body))
            assert response.status_code == 400
            assert "embedding model" in response.json()["error"]["message"]
            assert "/v1/embeddings" in response.json()["error"]["message"]
            assert server.engine.added == []

    run(test())

"""What the routes answer when all goes well; a stream and a whole answer are the same text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rosellm.roseinfer.messages import Output
from rosellm.roseinfer.server.schemas.messages import UserMessage
from tests.server.fakes import (
    BOS,
    CHAT,
    COMPLETIONS,
    EOS,
    HELLO,
    MAX_MODEL_LEN,
    events,
    says,
    serving,
    streamed_texts,
)

TEXT = "héllo wörld, 🌹!"


def run(test: Any) -> None:
    asyncio.run(test)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("stop", [None, "wör", ["o w", "zzz"], [", 🌹"]])
def test_a_stream_says_what_the_whole_answer_says(path: str, size: int, stop: Any) -> None:
    async def test() -> None:
        async with serving(says(TEXT, size=size)) as server:
            ask = server.chat if path == CHAT else server.complete
            whole = (await ask(n=2, stop=stop, max_tokens=100)).json()
            options = {"include_usage": True}
            chunks = events(
                await ask(n=2, stop=stop, max_tokens=100, stream=True, stream_options=options)
            )
            for choice in whole["choices"]:
                text = choice["message"]["content"] if path == CHAT else choice["text"]
                assert streamed_texts(chunks)[choice["index"]] == text
                assert (
                    text == TEXT.partition(stop if isinstance(stop, str) else (stop or ["§"])[0])[0]
                )
            assert chunks[-2]["usage"] == whole["usage"]

    run(test())


def test_a_chat_stream_is_shaped_as_openai_shapes_it() -> None:
    async def test() -> None:
        async with serving(says("ab")) as server:
            chunks = events(await server.chat(stream=True))
        assert chunks.pop() == "[DONE]"
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
            {"role": "assistant", "content": "", "refusal": None},
            {"content": "a"},
            {"content": "b"},
            {},
        ]
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert not any("usage" in chunk for chunk in chunks)

    run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_comes_last_and_is_null_before(path: str) -> None:
    async def test() -> None:
        async with serving(says("ab", cached=3)) as server:
            ask = server.chat if path == CHAT else server.complete
            chunks = events(await ask(stream=True, n=2, stream_options={"include_usage": True}))
        assert chunks.pop() == "[DONE]"
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 6  # two choices of "a", "b" and eos
        assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
        assert all(chunk["usage"] is None for chunk in chunks)

    run(test())


def test_every_choice_has_its_own_role_chunk() -> None:
    async def test() -> None:
        async with serving(says("ab")) as server:
            chunks = events(await server.chat(stream=True, n=3))
        first = {}
        for chunk in chunks[:-1]:
            [choice] = chunk["choices"]
            first.setdefault(choice["index"], choice["delta"])
        assert [first[index].get("role") for index in range(3)] == ["assistant"] * 3

    run(test())


def test_a_stop_string_cuts_the_text_and_the_usage() -> None:
    async def test() -> None:
        async with serving(says("one two three")) as server:
            body = (await server.complete(stop="two", max_tokens=50)).json()
            assert body["choices"][0]["text"] == "one "
            assert body["choices"][0]["finish_reason"] == "stop"
            assert body["usage"]["completion_tokens"] == len("one two")
            assert server.engine.aborted == [1]  # the engine would have gone on

    run(test())


def test_other_choices_go_on_when_one_has_stopped() -> None:
    async def test() -> None:
        async with serving(says("abcdef")) as server:
            server.engine.script = lambda add: [
                Output(add.id, 0, [*b"a#"]),
                Output(add.id, 1, [*b"cd"]),
                Output(add.id, 0, [*b"b"]),
                Output(add.id, 1, [*b"e", EOS], finish="stop"),
            ]
            body = (await server.complete(n=2, stop="#")).json()
            assert [choice["text"] for choice in body["choices"]] == ["a", "cde"]
            assert body["usage"]["completion_tokens"] == 2 + 4
            assert server.engine.aborted == [1]

    run(test())


def test_stop_strings_are_not_looked_for_before_min_tokens() -> None:
    async def test() -> None:
        async with serving(says("a.b.c")) as server:
            body = (await server.complete(stop=".", min_tokens=3)).json()
            assert body["choices"][0]["text"] == "a.b"
            assert body["usage"]["completion_tokens"] == 4

    run(test())


def test_a_stop_token_is_counted_but_not_shown() -> None:
    async def test() -> None:
        async with serving(says("ab")) as server:
            server.engine.script = lambda add: [
                Output(add.id, 0, [*b"ab;"], finish="stop", last=True)
            ]
            body = (await server.complete(stop_token_ids=[ord(";")])).json()
            assert body["choices"][0]["text"] == "ab"
            assert body["usage"]["completion_tokens"] == 3
            assert server.engine.added[0].params.stop_token_ids == (ord(";"), EOS)

    run(test())


def test_length_is_said_honestly_and_broken_utf8_shows() -> None:
    async def test() -> None:
        async with serving(says("é")) as server:
            choice = (await server.complete(max_tokens=1)).json()["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == ("\ufffd", "length")

    run(test())


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[BOS, 97, 98]]),
        ("", [[BOS]]),
        (["a", "b"], [[BOS, 97], [BOS, 98]]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_in_every_form(prompt: Any, ids: list[list[int]]) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            body = (await server.complete(prompt=prompt, n=2)).json()
            assert [add.prompt for add in server.engine.added] == ids
            assert [c["index"] for c in body["choices"]] == list(range(2 * len(ids)))
            assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
            assert len({add.id for add in server.engine.added}) == len(ids)

    run(test())


def test_max_tokens_defaults() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.complete(prompt="ab")
            await server.complete(prompt="a" * (MAX_MODEL_LEN - 5))
            chat = await server.chat()
            await server.chat(max_completion_tokens=7)
            await server.client.post("/generate", json={"prompt": "ab"})
            rest = MAX_MODEL_LEN - chat.json()["usage"]["prompt_tokens"]
            assert [add.params.max_tokens for add in server.engine.added] == [16, 4, rest, 7, 64]

    run(test())


def test_content_parts_are_joined_and_the_prompt_is_not_echoed() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
            whole = await server.chat(messages=HELLO)
            split = await server.chat(messages=[{"role": "user", "content": parts, "name": "me"}])
            first, second = (add.prompt for add in server.engine.added)
            assert first == second
            assert bytes(first[1:]).decode() == "User: \nhello\nAssistant:"
            assert whole.json()["choices"] == split.json()["choices"]
            assert whole.json()["choices"][0]["message"]["content"] == "x"

    run(test())


def test_a_template_without_developers_gets_system_messages() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"

    async def test() -> None:
        async with serving(says("x"), chat_template=template) as server:
            await server.chat(messages=[{"role": "developer", "content": "be kind"}])
            assert bytes(server.engine.added[0].prompt).decode() == "<system>be kind"

    run(test())


def test_message_names_reach_the_template() -> None:
    message = UserMessage(role="user", content="x", name="ann")
    assert (message.text, message.name) == ("x", "ann")


def test_generate_answers_as_the_seed_did() -> None:
    async def test() -> None:
        async with serving(says(TEXT)) as server:
            fields = {
                "prompt": "ab",
                "max_new_tokens": 40,
                "temperature": 0.5,
                "top_k": 5,
                "top_p": 0.9,
                "stop_on_eos": False,
                "do_sample": True,
            }
            whole = await server.client.post("/generate", json={**fields, "stream": False})
            stream = await server.client.post("/generate", json={**fields, "stream": True})
            assert whole.json() == {"text": TEXT}
            assert stream.text == TEXT
            assert stream.headers["content-type"].startswith("text/plain")
            params = server.engine.added[0].params
            assert (params.temperature, params.top_k, params.top_p) == (0.5, 5, 0.9)
            assert (params.max_tokens, params.stop_token_ids) == (40, ())
            await server.client.post("/generate", json={"prompt": "ab", "do_sample": False})
            assert server.engine.added[-1].params.temperature == 0

    run(test())


def test_models_and_health() -> None:
    async def test() -> None:
        async with serving(says("x"), name="org/model") as server:
            get = server.client.get
            listed = (await get("/v1/models")).json()
            assert listed["data"] == [(await get("/v1/models/org/model")).json()]
            assert listed["data"][0]["max_model_len"] == MAX_MODEL_LEN
            health = (await get("/health")).json()
            assert (health["status"], health["engine"]["running"]) == ("ok", 0)
            for probe in ("/livez", "/readyz"):
                assert (await get(probe)).json() == {"status": "ok"}

    run(test())


def test_request_ids() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            made = (await server.client.get("/health")).headers["x-request-id"]
            echoed = await server.client.get("/health", headers={"x-request-id": "mine-1"})
            forged = await server.client.get("/health", headers={"x-request-id": "a b"})
            assert made.startswith("req_")
            assert echoed.headers["x-request-id"] == "mine-1"
            assert forged.headers["x-request-id"].startswith("req_")

    run(test())


def test_streams_are_not_cached_or_buffered_on_the_way() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            headers = (await server.chat(stream=True)).headers
            assert headers["cache-control"] == "no-cache"
            assert headers["x-accel-buffering"] == "no"
            assert "content-length" not in headers

    run(test())


def test_one_engine_row_may_hold_many_tokens() -> None:
    async def test() -> None:
        async with serving(says("a,b", size=100)) as server:
            body = (await server.complete(stop=",")).json()
            assert body["choices"][0]["text"] == "a"
            assert body["usage"]["completion_tokens"] == 2

    run(test())

"""Fields beyond OpenAI's: what each of them does to the prompt, the answer and the stream."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from rosellm.roseinfer.messages import Add, Logprobs, Output
from tests.server.fakes import (
    BOS,
    CHAT,
    COMPLETIONS,
    EOS,
    HELLO,
    MAX_MODEL_LEN,
    ByteTokenizer,
    InfillTokenizer,
    Server,
    events,
    says,
    scores,
    serving,
    streamed_texts,
)

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PREFILLED = [*HELLO, {"role": "assistant", "content": "He said: "}]


def prompt_of(add: Add) -> str:
    return ByteTokenizer().decode(add.prompt)


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def ask(server: Server, path: str, **fields: Any) -> httpx.Response:
    response = await (server.chat if path == CHAT else server.complete)(**fields)
    assert response.status_code == 200, response.text
    return response


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


async def whole_and_streamed(server: Server, path: str, **fields: Any) -> str:
    """The text of the first choice, which both ways give."""
    whole = (await ask(server, path, **fields)).json()
    text = text_of(whole["choices"][0])
    *chunks, done = events(await ask(server, path, **fields, stream=True))
    assert done == "[DONE]"
    assert streamed_texts(chunks)[0] == text
    return text


# -- how a conversation becomes a prompt -------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "<user>hello</user><assistant>"),
        ({"add_generation_prompt": False}, "<user>hello</user>"),
        (
            {"messages": PREFILLED, "continue_final_message": True},
            "<user>hello</user><assistant>He said: ",
        ),
        (
            {
                "messages": PREFILLED,
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
            "<user>hello</user><assistant>He said: ",
        ),
        (
            {"messages": PREFILLED, "continue_final_message": False},
            "<user>hello</user><assistant>He said: </assistant><assistant>",
        ),
    ],
)
def test_the_end_of_the_prompt(fields: dict[str, Any], expected: str) -> None:
    async def test() -> None:
        async with serving(says("x"), chat_template=TEMPLATE) as server:
            await ask(server, CHAT, **fields)
            assert prompt_of(server.engine.added[0]) == expected
            rendered = await server.client.post(
                CHAT + "/render", json={"model": "m", "messages": HELLO, **fields}
            )
            body = rendered.json()
            assert body["prompt"] == expected
            assert body["prompt_token_ids"] == server.engine.added[0].prompt
            assert body["count"] == len(body["prompt_token_ids"])
            assert len(server.engine.added) == 1, "rendering generates nothing"

    asyncio.run(test())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "messages": PREFILLED,
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
        (
            {
                "messages": [{"role": "assistant", "content": ""}],
                "continue_final_message": True,
            },
            "continue_final_message",
        ),
        ({"messages": PREFILLED, "echo": True}, "echo"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "a\n"}, "request_id"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], param: str) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            assert error_of(await server.chat(**fields))["param"] == param
            assert server.engine.added == []

    asyncio.run(test())


def test_a_template_that_hides_the_last_message_has_nothing_to_continue() -> None:
    async def test() -> None:
        async with serving(says("x"), chat_template="{{ messages[0].content }}") as server:
            response = await server.chat(messages=PREFILLED, continue_final_message=True)
            assert error_of(response)["param"] == "continue_final_message"

    asyncio.run(test())


@pytest.mark.parametrize(
    "prefill", ["[here]", "a [here] b", "[here]]", "{{ x }}", "  two  ", "é🌹"]
)
def test_what_is_continued_may_be_any_text(prefill: str) -> None:
    async def test() -> None:
        async with serving(says("x"), chat_template=TEMPLATE) as server:
            messages = [*HELLO, {"role": "assistant", "content": prefill}]
            fields = {"messages": messages, "continue_final_message": True, "echo": True}
            assert await whole_and_streamed(server, CHAT, **fields) == prefill + "x"
            assert prompt_of(server.engine.added[0]) == f"<user>hello</user><assistant>{prefill}"

    asyncio.run(test())


def test_variables_reach_the_template() -> None:
    async def test() -> None:
        template = "{{ messages[0].content }}{{ enable_thinking }}{{ style.tone }}"
        async with serving(says("x"), chat_template=template) as server:
            variables = {"enable_thinking": False, "style": {"tone": "dry"}, "self": 1}
            await ask(server, CHAT, chat_template_kwargs=variables)
            assert prompt_of(server.engine.added[0]) == "helloFalsedry"

    asyncio.run(test())


# -- messages ----------------------------------------------------------------------------------


def test_every_role_reaches_the_template() -> None:
    async def test() -> None:
        template = (
            "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }}: "
            "{{ m.content }}\n{% endfor %}{# developer #}"
        )
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
        messages = [
            {"role": "system", "content": "s", "name": "n"},
            {"role": "developer", "content": parts},
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None},
            {"role": "tool", "content": parts, "tool_call_id": "call_1"},
        ]
        async with serving(says("x"), chat_template=template) as server:
            await ask(server, CHAT, messages=messages)
            assert prompt_of(server.engine.added[0]).splitlines() == [
                "system n : s",
                "developer  : a b",
                "user ann : a b",
                "assistant  : x",
                "tool  call_1: a b",
            ]

    asyncio.run(test())


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal", "video"])
def test_an_unsupported_part_is_named_by_its_index(role: str, kind: str) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            parts = [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "x"}}]
            message = {"role": role, "content": parts}
            if role == "tool":
                message["tool_call_id"] = "call_1"
            error = error_of(await server.chat(messages=[*HELLO, message]))
            assert error["param"] == "messages[1].content[1].type"
            assert "messages[1].content[1]" in error["message"]
            assert kind in error["message"]

    asyncio.run(test())


@pytest.mark.parametrize("role", ["function", "critic", "", 5, None, "User"])
def test_a_role_that_is_none_is_told_which_there_are(role: Any) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            error = error_of(await server.chat(messages=[{"role": role, "content": "x"}]))
            assert error["param"] == "messages[0].role"
            for known in ("system", "developer", "user", "assistant", "tool"):
                assert known in error["message"]

    asyncio.run(test())


def test_fields_of_another_role_are_unknown() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            message = {"role": "user", "content": "x", "tool_call_id": "call_1"}
            error = error_of(await server.chat(messages=[message]))
            assert error["param"] == "messages[0].tool_call_id"

    asyncio.run(test())


# -- which tokens there are --------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("size", [1, 3])
def test_token_ids_are_those_that_are_billed(path: str, size: int) -> None:
    async def test() -> None:
        async with serving(says("héllo", size=size)) as server:
            fields = {"n": 2, "return_token_ids": True}
            body = (await ask(server, path, **fields)).json()
            [add] = server.engine.added
            told = body if path == CHAT else body["choices"][0]
            assert told["prompt_token_ids"] == add.prompt
            whole = [choice["token_ids"] for choice in body["choices"]]
            assert whole == [[*"héllo".encode(), EOS]] * 2
            assert body["usage"]["completion_tokens"] == sum(map(len, whole))

            *chunks, _ = events(await ask(server, path, **fields, stream=True))
            streamed: dict[int, list[int]] = {0: [], 1: []}
            prompts = []
            for chunk in chunks:
                [choice] = chunk["choices"]
                streamed[choice["index"]] += choice.get("token_ids", [])
                prompts += [
                    each["prompt_token_ids"]
                    for each in (chunk, choice)
                    if "prompt_token_ids" in each
                ]
            assert list(streamed.values()) == whole
            assert prompts == [add.prompt] * (1 if path == CHAT else 2)

            plain = (await ask(server, path)).text
            assert "token_ids" not in plain

    asyncio.run(test())


def test_token_ids_of_an_echo() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            fields = {"prompt": ["ab", "c"], "echo": True, "return_token_ids": True, "stream": True}
            *chunks, _ = events(await ask(server, COMPLETIONS, **fields))
            prompts = {
                choice["index"]: choice["prompt_token_ids"]
                for chunk in chunks
                for choice in chunk["choices"]
                if "prompt_token_ids" in choice
            }
            assert prompts == {0: [BOS, *b"ab"], 1: [BOS, *b"c"]}

    asyncio.run(test())


@pytest.mark.parametrize(
    ("path", "fields", "kept"),
    [
        (COMPLETIONS, {"prompt": "abcdef", "truncate_prompt_tokens": 3}, [*b"def"]),
        (COMPLETIONS, {"prompt": "abc", "truncate_prompt_tokens": 30}, [BOS, *b"abc"]),
        (COMPLETIONS, {"prompt": [1, 2, 3], "truncate_prompt_tokens": 1}, [3]),
        (COMPLETIONS, {"prompt": "abc", "truncate_prompt_tokens": -1}, [BOS, *b"abc"]),
        (
            COMPLETIONS,
            {"prompt": "a" * 5000, "truncate_prompt_tokens": -1},
            [*b"a" * (MAX_MODEL_LEN - 16)],
        ),
        (
            COMPLETIONS,
            {"prompt": "a" * 5000, "truncate_prompt_tokens": -1, "max_tokens": 500},
            [*b"a" * (MAX_MODEL_LEN - 500)],
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a" * 50_000}], "truncate_prompt_tokens": -1},
            [
                *"".join(
                    ["a" * (MAX_MODEL_LEN - 1 - len("</user><assistant>")), "</user><assistant>"]
                ).encode()
            ],
        ),
        (CHAT, {"truncate_prompt_tokens": 5}, [*b"tant>"]),
    ],
)
def test_the_last_tokens_of_a_prompt_are_kept(
    path: str, fields: dict[str, Any], kept: list[int]
) -> None:
    async def test() -> None:
        async with serving(says("x"), chat_template=TEMPLATE) as server:
            body = (await ask(server, path, **fields)).json()
            [add] = server.engine.added
            assert add.prompt == kept
            assert body["usage"]["prompt_tokens"] == len(kept)

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_may_bring_its_id(path: str, stream: bool) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            response = await ask(server, path, request_id="mine-7", stream=stream)
            bodies = events(response)[:-1] if stream else [response.json()]
            prefix = "chatcmpl" if path == CHAT else "cmpl"
            assert {body["id"] for body in bodies} == {f"{prefix}-mine-7"}

    asyncio.run(test())


# -- where an answer ends ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_stop_string_may_be_shown(path: str, size: int) -> None:
    async def test() -> None:
        async with serving(says("one two three", size=size)) as server:
            fields = {"stop": ["two", "x"], "max_tokens": 50}
            assert await whole_and_streamed(server, path, **fields) == "one "
            fields["include_stop_str_in_output"] = True
            assert await whole_and_streamed(server, path, **fields) == "one two"

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_stop_token_may_be_shown(path: str) -> None:
    def rows(add: Add) -> Iterable[Output]:
        yield Output(add.id, tokens=[*b"ab"])
        yield Output(add.id, tokens=[ord("!")], finish="stop", last=True)

    async def test() -> None:
        async with serving(rows) as server:
            assert await whole_and_streamed(server, path) == "ab"
            shown = {"include_stop_str_in_output": True}
            assert await whole_and_streamed(server, path, **shown) == "ab!"
        async with serving(
            says("ab")
        ) as server:  # the end-of-sequence token has no text, but a name
            assert await whole_and_streamed(server, path, **shown) == "ab"
            shown["skip_special_tokens"] = False
            assert await whole_and_streamed(server, path, **shown) == "ab</s>"

    asyncio.run(test())


def test_the_shown_stop_string_has_its_logprobs() -> None:
    async def test() -> None:
        async with serving(scores("abcd")) as server:
            fields = {"logprobs": True, "stop": "bc", "include_stop_str_in_output": True}
            [choice] = (await ask(server, CHAT, **fields)).json()["choices"]
            tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
            assert "".join(tokens) == choice["message"]["content"] == "abc"

    asyncio.run(test())


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_grows_with_the_stream(path: str) -> None:
    async def test() -> None:
        async with serving(says("abc", cached=2)) as server:
            options = {"include_usage": True, "continuous_usage_stats": True}
            *chunks, _ = events(await ask(server, path, stream=True, stream_options=options))
            whole = (await ask(server, path)).json()["usage"]
            counted = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counted == sorted(counted)
            assert set(counted) == {1, 2, 3, 4}
            assert chunks[-1]["usage"] == whole
            assert whole["prompt_tokens_details"]["cached_tokens"] == 2
            assert whole["completion_tokens_details"]["reasoning_tokens"] == 0

    asyncio.run(test())


# -- best_of -----------------------------------------------------------------------------------


def of_quality(*means: float) -> Any:
    """Choice i says so many letters as its number, plus one, each of that mean log-probability."""

    def rows(add: Add) -> Iterable[Output]:
        if add.params.prompt_logprobs is not None:
            yield Output(add.id, prompt_logprobs=[Logprobs(-1.0) for _ in add.prompt[1:]])
        for choice in range(add.n):
            tokens = [ord("a") + choice] * (choice + 1)
            told = None
            if add.params.logprobs is not None:
                told = [Logprobs(means[choice]) for _ in tokens]
            last = choice == add.n - 1
            yield Output(add.id, choice, tokens, told, finish="length", last=last)

    return rows


@pytest.mark.parametrize(
    ("n", "expected"), [(1, ["bb"]), (2, ["bb", "dddd"]), (4, ["bb", "dddd", "a", "ccc"])]
)
def test_the_likeliest_of_many(n: int, expected: list[str]) -> None:
    async def test() -> None:
        async with serving(of_quality(-3.0, -0.5, -4.0, -1.0)) as server:
            fields = {"best_of": 4, "n": n, "return_token_ids": True}
            body = (await ask(server, COMPLETIONS, **fields)).json()
            assert [choice["text"] for choice in body["choices"]] == expected
            assert [choice["index"] for choice in body["choices"]] == list(range(n))
            assert all(choice["logprobs"] is None for choice in body["choices"])
            assert [len(choice["token_ids"]) for choice in body["choices"]] == [*map(len, expected)]
            assert body["usage"]["completion_tokens"] == 1 + 2 + 3 + 4
            assert server.engine.added[0].n == 4

    asyncio.run(test())


def test_the_likeliest_of_many_for_each_prompt() -> None:
    async def test() -> None:
        async with serving(of_quality(-3.0, -0.5, -4.0)) as server:
            fields = {"prompt": ["x", "y"], "best_of": 3, "n": 2, "logprobs": 0, "echo": True}
            body = (await ask(server, COMPLETIONS, **fields)).json()
            texts = [choice["text"] for choice in body["choices"]]
            assert texts == ["xbb", "xa", "ybb", "ya"]
            assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
            for choice in body["choices"]:
                assert "".join(choice["logprobs"]["tokens"]).endswith(choice["text"])
                assert math.isclose(
                    choice["logprobs"]["token_logprobs"][-1],
                    -0.5 if "b" in choice["text"] else -3.0,
                )

    asyncio.run(test())


@pytest.mark.parametrize(
    "fields",
    [{"best_of": 1, "n": 2}, {"best_of": 21}, {"best_of": 0}, {"best_of": 2, "stream": True}],
)
def test_what_best_of_cannot_be(fields: dict[str, Any]) -> None:
    async def test() -> None:
        async with serving(of_quality(-1.0, -2.0)) as server:
            assert error_of(await server.complete(**fields))["param"] == "best_of"
            assert (await server.complete(best_of=1, stream=True)).status_code == 200

    asyncio.run(test())


# -- suffix ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[BOS, 0, *b"ab", 1, *b"yz", 2]]),
        (["ab", ""], [[BOS, 0, *b"ab", 1, *b"yz", 2], [BOS, 0, 1, *b"yz", 2]]),
        ([97, 98], [[BOS, 0, *b"ab", 1, *b"yz", 2]]),
    ],
)
def test_a_hole_is_filled_by_a_model_that_can(prompt: Any, expected: list[list[int]]) -> None:
    async def test() -> None:
        async with serving(says("x"), tokenizer=InfillTokenizer()) as server:
            body = (await ask(server, COMPLETIONS, prompt=prompt, suffix="yz")).json()
            assert [add.prompt for add in server.engine.added] == expected
            assert {choice["text"] for choice in body["choices"]} == {"x"}
            for other in ({"echo": True}, {"truncate_prompt_tokens": 5}):
                assert error_of(await server.complete(suffix="yz", **other))["param"] == "suffix"

    asyncio.run(test())


def test_a_hole_is_refused_by_a_model_that_cannot_fill_it() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            error = error_of(await server.complete(suffix="yz"))
            assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
            assert (await server.complete(suffix="")).status_code == 200

    asyncio.run(test())


def test_a_null_prompt_is_the_start_of_a_text() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await ask(server, COMPLETIONS, prompt=None)
            assert server.engine.added[0].prompt == [BOS]

    asyncio.run(test())

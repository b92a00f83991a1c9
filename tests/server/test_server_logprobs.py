"""How likely tokens are, in every form in which it can be asked, and the prompt's among them."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from rosellm.roseinfer.messages import Add, Logprobs, Output
from rosellm.roseinfer.server.defaults import Defaults
from rosellm.roseinfer.server.sampling import Sampling
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from tests.server.fakes import (
    BOS,
    CHAT,
    COMPLETIONS,
    MAX_MODEL_LEN,
    ByteTokenizer,
    Server,
    events,
    score,
    scores,
    serving,
)

TEXT = "héllo wörld, 🌹!"


def run(test: Any) -> None:
    asyncio.run(test)


def choices(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


def merged(chunks: list[Any], index: int) -> dict[str, Any]:
    """One choice's chunks, put together: its text, and the lists of its logprobs."""
    whole: dict[str, Any] = {"text": "", "logprobs": {}, "finish_reason": None}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                whole["text"] += text
                for name, values in (choice["logprobs"] or {}).items():
                    if values is not None:
                        whole["logprobs"].setdefault(name, []).extend(values)
                whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
    return whole


# -- chat ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("stop", [None, "wör", "zzz"])
def test_the_bytes_of_a_chat_answer_add_up(size: int, stop: str | None) -> None:
    async def test() -> None:
        async with serving(scores(TEXT, size=size)) as server:
            fields = {"logprobs": True, "top_logprobs": 2, "n": 2, "stop": stop}
            whole = choices(await server.chat(**fields))
            chunks = events(await server.chat(**fields, stream=True))
            for choice in whole:
                content = choice["logprobs"]["content"]
                written = bytes(byte for entry in content for byte in entry["bytes"])
                assert written.decode() == choice["message"]["content"]
                assert merged(chunks, choice["index"])["logprobs"]["content"] == content
                assert choice["logprobs"]["refusal"] is None

    run(test())


def test_a_chat_entry() -> None:
    async def test() -> None:
        async with serving(scores("ab")) as server:
            prompt = (await server.chat(top_logprobs=2, logprobs=True)).json()
            place = prompt["usage"]["prompt_tokens"]
            first, second = prompt["choices"][0]["logprobs"]["content"]
            likeliest, other = (first, second) if place % 2 == 0 else (second, first)
            name = likeliest["token"]
            assert likeliest == {
                "token": name,
                "logprob": -0.25,
                "bytes": [ord(name)],
                "top_logprobs": [
                    {"token": name, "logprob": -0.25, "bytes": [ord(name)]},
                    {"token": chr(ord(name) + 1), "logprob": -0.5, "bytes": [ord(name) + 1]},
                ],
            }
            assert other["logprob"] == -7.5
            assert len(other["top_logprobs"]) == 2

    run(test())


def test_logprobs_alone_list_no_others() -> None:
    async def test() -> None:
        async with serving(scores("ab")) as server:
            [choice] = choices(await server.chat(logprobs=True))
            assert [each["top_logprobs"] for each in choice["logprobs"]["content"]] == [[], []]
            assert server.engine.added[-1].params.logprobs == 0
            [choice] = choices(await server.chat(logprobs=False))
            assert choice["logprobs"] is None
            assert server.engine.added[-1].params.logprobs is None
            [choice] = choices(await server.chat(logprobs=True, stop="a"))
            assert choice["logprobs"] == {"content": [], "refusal": None}

    run(test())


def test_half_a_character_shows_and_its_bytes_are_exact() -> None:
    async def test() -> None:
        async with serving(scores("é")) as server:
            [choice] = choices(await server.chat(logprobs=True))
            half = [(each["token"], each["bytes"]) for each in choice["logprobs"]["content"]]
            assert half == [("\ufffd", [0xC3]), ("\ufffd", [0xA9])]

    run(test())


def test_special_tokens_have_a_name_and_no_text() -> None:
    def script(add: Add) -> Iterator[Output]:
        logprobs = [Logprobs(-1.0, [BOS], [-0.5])] * 2
        yield Output(add.id, tokens=[97, BOS], logprobs=logprobs, finish="length", last=True)

    async def test() -> None:
        async with serving(script) as server:
            fields = {"logprobs": True, "top_logprobs": 1}
            [choice] = choices(await server.chat(**fields))
            assert choice["message"]["content"] == "a"
            named = choice["logprobs"]["content"][1]
            assert (named["token"], bytes(named["bytes"])) == ("<s>", b"<s>")
            assert named["top_logprobs"][0]["token"] == "<s>"
            streamed = merged(events(await server.chat(**fields, stream=True)), 0)
            assert streamed["logprobs"]["content"] == choice["logprobs"]["content"]

    run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("skips", [None, True, False])
def test_special_tokens_are_text_where_they_are_not_skipped(path: str, skips: bool | None) -> None:
    def script(add: Add) -> Iterator[Output]:
        for token in (97, BOS, 98):
            logprobs = None if add.params.logprobs is None else [Logprobs(-1.0, [], [])]
            done = token == 98
            yield Output(
                add.id,
                tokens=[token],
                logprobs=logprobs,
                prompt_logprobs=[Logprobs(-1.0, [], [])] * 2 if token == 97 else None,
                finish="length" if done else None,
                last=done,
            )

    async def test() -> None:
        async with serving(script) as server:
            ask = server.chat if path == CHAT else partial(server.complete, prompt="hi", echo=True)
            asked = True if path == CHAT else 0
            fields = {"logprobs": asked, "skip_special_tokens": skips}
            [choice] = choices(await ask(**fields))
            streamed = merged(events(await ask(**fields, stream=True)), 0)
            assert streamed["logprobs"].items() <= choice["logprobs"].items()
            own = "ab" if skips is not False else "a<s>b"
            if path == CHAT:
                assert choice["message"]["content"] == own
                spelt = [bytes(each["bytes"]) for each in choice["logprobs"]["content"]]
                assert spelt == [b"a", b"<s>", b"b"]
            else:
                bos = "" if skips is not False else "<s>"
                assert choice["text"] == f"{bos}hi{own}"
                assert choice["logprobs"]["tokens"] == ["<s>", "h", "i", "a", "<s>", "b"]
                offsets = [0, 0, 1, 2, 3, 3] if skips is not False else [0, 3, 4, 5, 6, 9]
                assert choice["logprobs"]["text_offset"] == offsets

    run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_minus_infinity_is_a_number(path: str) -> None:
    def script(add: Add) -> Iterator[Output]:
        never = Logprobs(-math.inf, [97, 98], [-0.5, -math.inf])
        top = [never] * (len(add.prompt) - 1)
        if add.params.prompt_logprobs is not None:
            yield Output(add.id, prompt_logprobs=top)
        yield Output(add.id, tokens=[97], logprobs=[never], finish="length", last=True)

    async def test() -> None:
        async with serving(script) as server:
            if path == CHAT:
                answer = await server.chat(logprobs=True, top_logprobs=2, prompt_logprobs=2)
                entry = answer.json()["choices"][0]["logprobs"]["content"][0]
                assert entry["logprob"] == -9999
                assert entry["top_logprobs"][1]["logprob"] == -9999
            else:
                answer = await server.complete(logprobs=2, prompt_logprobs=2)
                [choice] = choices(answer)
                assert choice["logprobs"]["token_logprobs"] == [-9999]
                assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5, "b": -9999}]
            assert "Infinity" not in answer.text
            assert "-9999" in answer.text.partition("prompt_logprobs")[2]

    run(test())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_a_chat_cannot_ask(fields: dict[str, Any], param: str) -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            response = await server.chat(**fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param
            assert param in response.json()["error"]["message"]

    run(test())


# -- completions -----------------------------------------------------------------------------


def test_a_legacy_answer() -> None:
    async def test() -> None:
        async with serving(scores("xyé")) as server:
            [choice] = choices(await server.complete(prompt=[5], logprobs=2))
            assert choice["logprobs"] == {
                "tokens": ["x", "y", "bytes:\\xc3", "bytes:\\xa9"],
                "token_logprobs": [-7.5, -0.25, -7.5, -0.25],
                "top_logprobs": [
                    {"y": -0.25, "z": -0.5, "x": -7.5},
                    {"y": -0.25, "z": -0.5},
                    {"bytes:\\xc4": -0.25, "bytes:\\xc5": -0.5, "bytes:\\xc3": -7.5},
                    {"bytes:\\xa9": -0.25, "bytes:\\xaa": -0.5},
                ],
                "text_offset": [0, 1, 2, 2],
            }
            [choice] = choices(await server.complete(prompt=[5], logprobs=0))
            assert choice["logprobs"]["top_logprobs"][:2] == [{"x": -7.5}, {"y": -0.25}]
            [choice] = choices(await server.complete(prompt=[5]))
            assert choice["logprobs"] is None

    run(test())


@pytest.mark.parametrize("prompt", ["hé", ["hé", "b"], [104, 105], [[104], [105, 106]]])
@pytest.mark.parametrize("chunk", [1, 100])
def test_a_stream_scores_as_the_whole_answer_does(prompt: Any, chunk: int) -> None:
    async def test() -> None:
        async with serving(scores("ab", chunk=chunk)) as server:
            for logprobs, echo in itertools.product([None, 0, 3], [False, True]):
                await check(server, {"prompt": prompt, "logprobs": logprobs, "echo": echo, "n": 2})

    async def check(server: Server, fields: dict[str, Any]) -> None:
        whole = choices(await server.complete(**fields))
        chunks = events(await server.complete(**fields, stream=True))
        for choice in whole:
            streamed = merged(chunks, choice["index"])
            assert streamed["text"] == choice["text"]
            assert streamed["logprobs"] == (choice["logprobs"] or {})
            assert streamed["finish_reason"] == choice["finish_reason"] == "stop"

    run(test())


def test_an_echo_begins_with_the_prompt() -> None:
    async def test() -> None:
        async with serving(scores("b")) as server:
            [choice] = choices(await server.complete(prompt="hé", echo=True, logprobs=1))
            assert choice["text"] == "héb"
            assert choice["logprobs"] == {
                "tokens": ["<s>", "h", "bytes:\\xc3", "bytes:\\xa9", "b"],
                "token_logprobs": [None, -7.5, -0.25, -7.5, -0.25],
                "top_logprobs": [
                    None,
                    {"i": -0.25, "h": -7.5},
                    {"bytes:\\xc3": -0.25},
                    {"bytes:\\xaa": -0.25, "bytes:\\xa9": -7.5},
                    {"b": -0.25},
                ],
                "text_offset": [0, 0, 1, 1, 2],
            }
            assert server.engine.added[-1].params.prompt_logprobs == 1
            [choice] = choices(await server.complete(prompt=[104, BOS, 105], echo=True))
            assert (choice["text"], choice["logprobs"]) == ("hib", None)
            assert server.engine.added[-1].params.prompt_logprobs is None

    run(test())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_scoring_only(stream: bool, n: int) -> None:
    """As evaluation harnesses ask: nothing is generated."""

    async def test() -> None:
        async with serving(scores("never said")) as server:
            response = await server.complete(
                prompt=["abc", "d"],
                echo=True,
                logprobs=1,
                max_tokens=0,
                n=n,
                stream=stream,
                stream_options={"include_usage": True} if stream else None,
            )
            if stream:
                chunks = events(response)
                found = [merged(chunks, index) for index in range(2 * n)]
                usage = chunks[-2]["usage"]
            else:
                found, usage = choices(response), response.json()["usage"]
            assert [each["text"] for each in found] == ["abc"] * n + ["d"] * n
            assert {each["finish_reason"] for each in found} == {"length"}
            assert {each["logprobs"]["token_logprobs"][0] for each in found} == {None}
            assert [len(each["logprobs"]["tokens"]) for each in found] == [4] * n + [2] * n
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (6, 0)

    run(test())


def test_one_token_after_the_prompt_is_scored_too() -> None:
    async def test() -> None:
        async with serving(scores("xyz")) as server:
            [choice] = choices(
                await server.complete(prompt="ab", echo=True, logprobs=1, max_tokens=1)
            )
            assert choice["text"] == "abx"
            assert choice["logprobs"]["token_logprobs"] == [
                None,
                *(score(place, id, 1).chosen for place, id in enumerate(b"abx", start=1)),
            ]

    run(test())


def test_a_stop_string_in_the_prompt_stops_nothing() -> None:
    async def test() -> None:
        async with serving(scores("b;c")) as server:
            [choice] = choices(await server.complete(prompt="a;", echo=True, logprobs=0, stop=";"))
            assert choice["text"] == "a;b"
            assert choice["logprobs"]["tokens"] == ["<s>", "a", ";", "b"]

    run(test())


def test_a_sibling_that_is_ahead_waits_for_the_echo() -> None:
    """Only the first choice's rows bring the prompt's scores, here after the other has ended."""

    def script(add: Add) -> Iterator[Output]:
        assert add.params.logprobs is not None
        one = [score(0, 97, 1)]
        yield Output(add.id, 1, [97], logprobs=one, finish="length")
        yield Output(add.id, 0, prompt_logprobs=[score(1, 97, 1), score(2, 98, 1)])
        yield Output(add.id, 0, [97], logprobs=one, finish="length", last=True)

    async def test() -> None:
        async with serving(script) as server:
            fields = {"prompt": "ab", "echo": True, "logprobs": 1, "n": 2}
            chunks = events(await server.complete(**fields, stream=True))
            whole = choices(await server.complete(**fields))
            for choice in whole:
                streamed = merged(chunks, choice["index"])
                assert (streamed["text"], streamed["logprobs"]) == ("aba", choice["logprobs"])

    run(test())


def test_likelier_of_two_tokens_that_look_alike() -> None:
    class Twins(ByteTokenizer):
        def token_bytes(self, id: int) -> bytes:
            return b"a" if id == 98 else super().token_bytes(id)

    def script(add: Add) -> Iterator[Output]:
        scored = Logprobs(-2.0, [97, 99], [-0.5, -1.5])
        yield Output(add.id, 0, [98], logprobs=[scored], finish="length", last=True)

    async def test() -> None:
        async with serving(script, tokenizer=Twins()) as server:
            [choice] = choices(await server.complete(logprobs=2))
            assert choice["logprobs"]["token_logprobs"] == [-2.0]
            assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5, "c": -1.5}]

    run(test())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 2, "stream": True}, "prompt_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_a_completion_cannot_ask(fields: dict[str, Any], param: str) -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            response = await server.complete(**fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param

    run(test())


# -- the prompt, vLLM's way ------------------------------------------------------------------


async def prompt_scores(server: Server, path: str, **fields: Any) -> list[Any]:
    """``prompt_logprobs``, which a chat has on the answer and a completion on each choice."""
    if path == CHAT:
        found: list[Any] = (await server.chat(**fields)).json()["prompt_logprobs"]
    else:
        [found, again] = [c["prompt_logprobs"] for c in choices(await server.complete(**fields))]
        assert found == again
    return found


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_prompt_logprobs(path: str) -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            found = await prompt_scores(server, path, prompt_logprobs=2, n=2)
            prompt = server.engine.added[0].prompt
            assert len(found) == len(prompt)
            assert found[0] is None
            assert list(found[1]) == [str(prompt[1] + 1), str(prompt[1] + 2), str(prompt[1])]
            assert found[1][str(prompt[1])] == {
                "logprob": -7.5,
                "decoded_token": chr(prompt[1]),
            }
            assert found[2][str(prompt[2])] == {
                "logprob": -0.25,
                "decoded_token": chr(prompt[2]),
                "rank": 1,
            }
            assert len(found[2]) == 2
            only = await prompt_scores(server, path, prompt_logprobs=0, n=2)
            assert [list(each) for each in only[1:]] == [[str(id)] for id in prompt[1:]]

    run(test())


def test_without_being_asked_there_are_none() -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            assert "prompt_logprobs" not in (await server.chat()).text
            assert "prompt_logprobs" not in (await server.complete(echo=True, logprobs=1)).text

    run(test())


def test_both_ways_to_score_a_prompt_keep_to_their_own_counts() -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            [choice] = choices(
                await server.complete(prompt="abc", echo=True, logprobs=1, prompt_logprobs=3)
            )
            assert server.engine.added[0].params.prompt_logprobs == 3
            assert server.engine.added[0].params.logprobs == 1
            assert len(choice["prompt_logprobs"][2]) == 3
            assert len(choice["logprobs"]["top_logprobs"][2]) == 1

    run(test())


def test_no_more_tokens_are_asked_for_than_there_are() -> None:
    sampling = Sampling(Defaults(), vocab_size=3, max_model_len=9)
    params = sampling.params(SamplingFields(), 5, logprobs=5, prompt_logprobs=20)
    assert (params.logprobs, params.prompt_logprobs) == (3, 3)


# -- max_tokens = 0 --------------------------------------------------------------------------


def test_a_prompt_may_fill_the_context_if_nothing_follows() -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            full = [97] * MAX_MODEL_LEN
            response = await server.complete(prompt=full, max_tokens=0)
            assert response.json()["usage"]["prompt_tokens"] == MAX_MODEL_LEN
            assert choices(response)[0]["text"] == ""
            assert (await server.complete(prompt=full)).status_code == 400
            assert (await server.complete(prompt=[*full, 97], max_tokens=0)).status_code == 400

    run(test())


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_chat_may_be_only_scored_too(field: str) -> None:
    async def test() -> None:
        async with serving(scores("x")) as server:
            response = await server.chat(**{field: 0}, prompt_logprobs=0)
            [choice] = choices(response)
            assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
            assert len(response.json()["prompt_logprobs"]) > 1
            chunks = events(await server.chat(**{field: 0}, stream=True))
            assert merged(chunks, 0)["finish_reason"] == "length"

    run(test())

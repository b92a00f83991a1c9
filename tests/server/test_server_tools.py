"""Tools over HTTP: what the model is shown, and what its answers come to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.messages import Add, Output
from tests.examples import examples
from tests.server.asking import (
    ADD,
    NOW,
    THINKING,
    TOOLS,
    ask,
    call,
    called,
    plain,
    refused,
    same,
    served,
)
from tests.server.fakes import (
    ByteTokenizer,
    Script,
    events,
    says,
    scores,
    serving,
)


def test_a_call() -> None:
    whole, stream, prompt = ask(f"Let me see.\n{call('add', a=1)}", tools=TOOLS, n=2)
    same(whole, stream)
    for choice in whole["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see."
        assert called(choice["message"]) == [("add", {"a": 1})]
        assert choice["message"]["tool_calls"][0]["id"].startswith("call_")
    assert '{"name": "add", "description": "Adds.", "parameters": {"type": "object"' in prompt
    assert '{"name": "now", "parameters": {"type": "object", "properties": {}}}' in prompt


def test_several_calls_and_nothing_else() -> None:
    whole, stream, _ = ask(call("now", a=1) + "\n" + call("now"), tools=[NOW])
    same(whole, stream)
    [choice] = whole["choices"]
    assert called(choice["message"]) == [("now", {"a": 1}), ("now", {})]
    assert choice["message"]["content"] is None


def test_no_call_is_an_answer_like_any_other() -> None:
    for text in ("No <need>.", "", " \n"):
        whole, stream, _ = ask(text, tools=TOOLS)
        same(whole, stream)
        assert whole["choices"][0]["message"]["content"] == text
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert "tool_calls" not in whole["choices"][0]["message"]


@pytest.mark.parametrize(
    "text", [call("nobody"), "<tool_call>{]</tool_call>", "<tool_call>", call("add", a=1)[:-20]]
)
def test_what_is_no_call_comes_back_as_content(text: str) -> None:
    whole, stream, _ = ask(f"So: {text}", tools=TOOLS)
    same(whole, stream)
    [choice] = whole["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (f"So: {text}", "stop")


def test_an_answer_that_ends_in_a_call() -> None:
    """Before its arguments there is none; in them it is cut off; then it is one."""
    text = call("add", a=1, b="two")
    arguments = '{"a": 1, "b": "two"}'
    begin = text.index(arguments)
    for limit in range(1, len(text) + 1):
        whole, stream, _ = ask(says(text[:limit], finish="length"), tools=TOOLS)
        same(whole, stream)
        [choice] = whole["choices"]
        calls = choice["message"].get("tool_calls", [])
        told = "".join(each["function"]["arguments"] for each in calls)
        complete = limit >= begin + len(arguments)
        assert choice["finish_reason"] == ("tool_calls" if complete else "length")
        if limit < begin + len('{"a":'):
            assert (calls, choice["message"]["content"]) == ([], text[:limit])
        else:
            assert told == arguments[: limit - begin]
            assert choice["message"]["content"] is None


def test_arguments_are_streamed_while_they_are_written() -> None:
    text = f"{call('now', a=1, b='two words')}\n{call('now', x=[1, 2])}"

    async def test() -> None:
        async with served(says(text, size=1)) as server:
            chunks = events(await server.chat(tools=[NOW], stream=True, n=2))
            for index in range(2):
                pieces = [
                    piece["delta"]["tool_calls"][0]
                    for chunk in chunks[:-1]
                    for piece in chunk["choices"]
                    if piece["index"] == index and piece["delta"].get("tool_calls")
                ]
                heads = [each for each in pieces if "id" in each]
                assert [each["function"] for each in heads] == [
                    {"name": "now", "arguments": ""},
                    {"name": "now", "arguments": ""},
                ]
                assert [each["index"] for each in pieces] == sorted(e["index"] for e in pieces)
                fragments = [each["function"]["arguments"] for each in pieces if "id" not in each]
                assert all(fragments)
                assert len(fragments) > 20
                assert "".join(fragments) == '{"a": 1, "b": "two words"}{"x": [1, 2]}'

    asyncio.run(test())


def test_a_call_that_breaks_when_it_has_begun() -> None:
    broken = call("add", a=1).replace("1}", "[1}")
    whole, stream, _ = ask(f"{broken} so", tools=TOOLS)
    same(whole, stream)
    [choice] = whole["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": [1}}'
    assert choice["message"]["content"] == " so"


def test_no_tools_no_calls() -> None:
    text = call("add", a=1)
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}):
        whole, stream, prompt = ask(text, **fields)
        same(whole, stream)
        assert whole["choices"][0]["message"]["content"] == text
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert "add" not in prompt


def test_only_allowed_tools_are_called() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NOW]}}
    for name in ("now", "add"):
        whole, stream, prompt = ask(call(name), tools=TOOLS, tool_choice=allowed)
        same(whole, stream)
        assert called(whole["choices"][0]["message"]) == [("now", {})] * (name == "now")
        assert '"add"' in prompt


def test_one_call_ends_an_answer_without_parallel_ones() -> None:
    text = call("add", a=1) + call("now") + "and more"

    async def test() -> None:
        async with served(text) as server:
            answer = (await server.chat(tools=TOOLS, parallel_tool_calls=False)).json()
            assert called(answer["choices"][0]["message"]) == [("add", {"a": 1})]
            assert answer["choices"][0]["finish_reason"] == "tool_calls"
            assert answer["usage"]["completion_tokens"] == len(call("add", a=1))
            assert server.engine.aborted == [server.engine.added[0].id]

    asyncio.run(test())
    same(*ask(text, tools=TOOLS, parallel_tool_calls=False)[:2])


def test_stop_strings_come_first() -> None:
    whole, stream, _ = ask(f"Hm. {call('add', a=1)} so", tools=TOOLS, stop=["so"])
    same(whole, stream)
    assert called(whole["choices"][0]["message"]) == [("add", {"a": 1})]
    whole, stream, _ = ask(f"Hm. {call('add', a=1)}", tools=TOOLS, stop=["arg"])
    same(whole, stream)
    assert whole["choices"][0]["message"]["content"] == 'Hm. <tool_call>\n{"name": "add", "'
    whole, stream, _ = ask(call("add", a="stop it"), tools=TOOLS, stop=["it"])
    same(whole, stream)
    [choice] = whole["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": "stop '


def test_logprobs_are_of_all_tokens() -> None:
    text = f"Ok {call('now')}"
    whole, stream, _ = ask(scores(text), tools=TOOLS, logprobs=True)
    same(whole, stream)
    spelt = [bytes(each["bytes"]) for each in whole["choices"][0]["logprobs"]["content"]]
    assert b"".join(spelt).decode() == text


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tool_choice", {"tool_choice": "auto"}),
        ("tool_choice", {"tool_choice": "required", "tools": []}),
        ("tool_choice", {"tool_choice": "some", "tools": TOOLS}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "x"}},
                         "tools": TOOLS}),
        ("tool_choice.type", {"tool_choice": {"type": "custom", "custom": {"name": "x"}},
                              "tools": TOOLS}),
        ("tool_choice.allowed_tools.mode", {
            "tool_choice": {"type": "allowed_tools",
                            "allowed_tools": {"mode": "none", "tools": TOOLS}}, "tools": TOOLS}),
        ("parallel_tool_calls", {"parallel_tool_calls": False}),
        ("tools", {"tools": [ADD, ADD]}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        ("tools[1].function.name", {"tools": [ADD, {"type": "function", "function": {}}]}),
        ("tools[0].function.name", {"tools": [{**NOW, "function": {"name": "a b"}}]}),
        ("tools[0].function.name", {"tools": [{**NOW, "function": {"name": "a" * 65}}]}),
        ("tools[0].function.parameters", {
            "tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(param: str, fields: Any) -> None:
    assert param in refused(param, **fields)


def test_a_model_that_cannot_be_told_of_tools_says_so() -> None:
    assert "takes no tools" in refused("tools", template="{{ messages }}", tools=TOOLS)
    assert "takes no tools" in refused("tools", template="", tools=TOOLS)
    assert "--tool-parser" in refused("tools", template="{{ messages }}{{ tools }}", tools=TOOLS)


# -- special tokens --------------------------------------------------------------------------


class Marked(ByteTokenizer):
    """Bytes, and markers that are special tokens, which a text does not show."""

    MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<other>")

    def __init__(self, chat_template: str | None = None) -> None:
        super().__init__(chat_template)
        self._ids = {marker: self.vocab_size + i for i, marker in enumerate(self.MARKERS)}
        self._names = {id: marker.encode() for marker, id in self._ids.items()}
        self.vocab_size += len(self.MARKERS)
        self.special_ids |= set(self._names)

    def token_bytes(self, id: int) -> bytes:
        return self._names[id] if id in self._names else super().token_bytes(id)

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token, super().token_to_id(token))

    def ids(self, text: str) -> list[int]:
        found: list[int] = []
        while text:
            marker = next((each for each in self.MARKERS if text.startswith(each)), None)
            found += [self._ids[marker]] if marker else text[0].encode()
            text = text[len(marker or "x") :]
        return found


def speaks(ids: Sequence[int]) -> Script:
    def rows(add: Add) -> Any:
        for token in ids:
            yield Output(add.id, 0, [token])
        yield Output(add.id, 0, [257], finish="stop", last=True)

    return rows


def test_markers_that_are_special_tokens_reach_the_parser() -> None:
    tokenizer = Marked(THINKING)
    text = f"<think>Hm.</think>\n<other>Ok.{call('add', a=1)}"

    async def test() -> None:
        async with serving(speaks(tokenizer.ids(text)), tokenizer=tokenizer) as server:
            answer = (await server.chat(tools=TOOLS)).json()["choices"][0]
            assert answer["message"]["reasoning"] == "Hm."
            assert answer["message"]["content"] == "Ok."
            assert called(answer["message"]) == [("add", {"a": 1})]
            answer = (await server.chat()).json()["choices"][0]
            assert answer["message"]["content"] == f"Ok.{call('add', a=1)[11:-12]}"
            shown = (await server.chat(skip_special_tokens=False)).json()["choices"][0]
            assert shown["message"]["content"] == f"<other>Ok.{call('add', a=1)}"

    asyncio.run(test())


# -- any answer ------------------------------------------------------------------------------


WORDS = st.sampled_from(
    ["Hi", " ", "\n", "é", "🌹", "<", "<think>", "</think>", "<tool_call>", "</tool_call>",
     call("now"), call("add", a=1), call("nobody"), '{"name": "now"}', "stop", "st"]
)  # fmt: skip


@settings(max_examples=examples(60), deadline=None)
@given(
    words=st.lists(WORDS, max_size=8),
    size=st.integers(1, 40),
    limit=st.none() | st.integers(1, 120),
    stop=st.sampled_from([None, ["stop"], ["</tool"], ["\n"]]),
    parallel=st.booleans(),
)
def test_a_stream_is_the_whole_answer(
    words: list[str], size: int, limit: int | None, stop: Any, parallel: bool
) -> None:
    """However the engine's rows cut it, and wherever it ends."""
    text = "".join(words)
    fields = {"tools": TOOLS, "max_tokens": limit, "stop": stop, "parallel_tool_calls": parallel}
    whole, stream, _ = ask(says(text, size=size), THINKING, **fields)
    same(whole, stream)
    small, _, _ = ask(says(text, size=1), THINKING, **fields)
    [choice], [other] = whole["choices"], small["choices"]
    assert plain(choice["message"]) == plain(other["message"])
    calls = choice["message"].get("tool_calls", [])
    if choice["finish_reason"] == "tool_calls":
        assert calls
        called(choice["message"])
    else:
        assert choice["finish_reason"] in ("stop", "length")

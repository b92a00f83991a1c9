"""Tools and reasoning over HTTP: what the model is shown, and what its answers come to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rosellm
from rosellm.roseinfer.config import ReasoningParser, ToolParser
from rosellm.roseinfer.messages import Add, Output
from tests.server.fakes import (
    HELLO,
    ByteTokenizer,
    Script,
    Server,
    events,
    says,
    scores,
    serving,
)

TEMPLATE = (Path(rosellm.__file__).parent / "data/rosellm-demo/chat_template.jinja").read_text()
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
TOOLS = [ADD, NOW]
THINKING = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{{ tools }}"
    "{{ '<tool_call>' if 0 }}{{ '\"arguments\"' if 0 }}a:"
    "{% if enable_thinking is false %}<think>\n\n</think>\n{% endif %}"
)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@asynccontextmanager
async def served(
    script: Script | str, template: str = TEMPLATE, **more: Any
) -> AsyncIterator[Server]:
    script = says(script) if isinstance(script, str) else script
    async with serving(script, chat_template=template, **more) as server:
        yield server


def prompt_of(server: Server) -> str:
    return bytes(id for id in server.engine.added[-1].prompt if id < 256).decode()


def ask(script: Script | str, template: str = TEMPLATE, **fields: Any) -> tuple[Any, Any, str]:
    """The answer, what its stream assembles to, and the prompt."""

    async def test() -> tuple[Any, Any, str]:
        async with served(script, template) as server:
            response = await server.chat(**fields)
            assert response.status_code == 200, response.text
            options = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = events(await server.chat(**fields, **options))
            return response.json(), assembled(chunks), prompt_of(server)

    return asyncio.run(test())


def refused(param: str, script: str = "x", template: str = TEMPLATE, **fields: Any) -> str:
    async def test() -> Any:
        async with served(script, template) as server:
            response = await server.chat(**fields)
            assert response.status_code == 400, response.text
            return response.json()["error"]

    error = asyncio.run(test())
    assert error["param"] == param, error
    return str(error["message"])


def assembled(chunks: list[Any]) -> Any:
    """What a client makes of a stream, by the rules that OpenAI's own client follows."""
    assert chunks.pop() == "[DONE]"
    usage = chunks[-1]["usage"] if not chunks[-1]["choices"] else None
    choices: dict[int, Any] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            fresh: dict[str, Any] = {"message": {}, "finish_reason": None}
            choice = choices.setdefault(piece["index"], fresh)
            assert choice["finish_reason"] is None
            choice["finish_reason"] = piece["finish_reason"]
            add(choice["message"], piece["delta"])
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for each in value:
                add_call(message.setdefault(name, []), dict(each))
        elif isinstance(value, str) and isinstance(message.get(name), str):
            message[name] += value
        elif value is not None or name not in message:
            message[name] = value


def add_call(calls: list[Any], piece: dict[str, Any]) -> None:
    index = piece.pop("index")
    if index == len(calls):  # the name comes first, with nothing of the arguments
        assert set(piece) == {"id", "type", "function"}
        assert set(piece["function"]) == {"name", "arguments"}
        calls.append(piece)
        return
    assert set(piece) == {"function"}
    assert set(piece["function"]) == {"arguments"}
    calls[index]["function"]["arguments"] += piece["function"]["arguments"]


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its ids, which differ from answer to answer."""
    calls = message.get("tool_calls", [])
    assert len({each["id"] for each in calls}) == len(calls)
    return {**message, "tool_calls": [{**each, "id": ""} for each in calls]}


def same(whole: Any, stream: Any) -> None:
    for one, other in zip(whole["choices"], stream["choices"], strict=True):
        assert plain(one["message"]) == plain(other["message"])
        assert one["finish_reason"] == other["finish_reason"]
    assert whole["usage"] == stream["usage"]


def called(message: Any) -> list[Any]:
    return [
        (each["function"]["name"], json.loads(each["function"]["arguments"]))
        for each in message.get("tool_calls", [])
    ]


# -- calls -----------------------------------------------------------------------------------


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
    whole, stream, _ = ask(call("add", a=1), tools=TOOLS, max_tokens=20)
    same(whole, stream)
    [choice] = whole["choices"]
    assert choice["message"]["content"] == call("add", a=1)[:20]
    assert choice["finish_reason"] == "length"


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


# -- histories -------------------------------------------------------------------------------


def history(arguments: str = '{"a": 1}') -> list[Any]:
    function = {"name": "add", "arguments": arguments}
    made = [{"id": "id1", "type": "function", "function": function}]
    return [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": made, "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "id1", "content": [{"type": "text", "text": "2"}]},
    ]


def test_calls_and_their_results_reach_the_template() -> None:
    _, _, prompt = ask("2", messages=history())
    assert prompt.endswith(
        f"<|im_start|>assistant\n{call('add', a=1)}<|im_end|>\n"
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
    )


AS_OBJECT = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{{ m.name }}{{ m.reasoning_content }}"
    "{% endfor %}"
)
AS_TEXT = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}"
    "{{ '' + c.function.arguments }}{% endfor %}{{ m.name }}{{ m.reasoning_content }}{% endfor %}"
)


@pytest.mark.parametrize("template", [AS_OBJECT, AS_TEXT])
def test_arguments_are_what_the_template_wants(template: str) -> None:
    _, _, prompt = ask("2", template, messages=history())
    assert prompt == 'id1{"a": 1}Hm.add'


def test_a_template_that_leaves_calls_out_gets_them_as_text() -> None:
    template = THINKING.replace("{{ tools }}", "{{ tools if 0 }}")
    _, _, prompt = ask("2", template, messages=history(), tools=TOOLS)
    assert f"assistant:{call('add', a=1)}\ntool:2\n" in prompt


@pytest.mark.parametrize("arguments", ["{", "[1]", "1", "nothing"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    refused("messages[1].tool_calls[0].function.arguments", messages=history(arguments))


def test_no_arguments_are_an_empty_object() -> None:
    assert call("add") in ask("2", messages=history(""), tools=TOOLS)[2]


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("messages[0].content", {"role": "assistant"}),
        ("messages[0].content", {"role": "assistant", "content": None, "tool_calls": []}),
        ("messages[0].tool_call_id", {"role": "tool", "content": "2"}),
        ("messages[0].tool_calls[0].id", {"role": "assistant", "tool_calls": [{}]}),
        ("messages[0].tool_calls", {"role": "user", "content": "x", "tool_calls": []}),
    ],
)
def test_messages_that_lack_something(param: str, message: Any) -> None:
    refused(param, messages=[message])


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


# -- reasoning -------------------------------------------------------------------------------


def test_reasoning_is_a_field_of_its_own() -> None:
    text = "<think>\nHm.\n</think>\n\nOk."
    whole, stream, _ = ask(text, THINKING)
    same(whole, stream)
    [choice] = whole["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Ok.",
        "refusal": None,
        "reasoning_content": "Hm.",
        "reasoning": "Hm.",
    }
    details = whole["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == text.index("\n\nOk")
    assert whole["usage"]["completion_tokens"] == len(text) + 1


def test_reasoning_without_an_end_is_all_there_is() -> None:
    whole, stream, _ = ask("<think>for ever", THINKING, max_completion_tokens=10)
    same(whole, stream)
    [choice] = whole["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"] == "for"
    assert choice["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 10


def test_an_answer_without_reasoning() -> None:
    whole, stream, _ = ask("Ok.", THINKING)
    same(whole, stream)
    assert "reasoning" not in whole["choices"][0]["message"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "prompted", "answer"),
    [
        ({}, "a:", ("Hm.", "Ok.")),
        ({"reasoning_effort": "high"}, "a:", ("Hm.", "Ok.")),
        ({"reasoning_effort": "none"}, "</think>\n", (None, "<think>Hm.</think>Ok.")),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "</think>\n",
         (None, "<think>Hm.</think>Ok.")),
    ],
)  # fmt: skip
def test_thinking_can_be_turned_off(fields: Any, prompted: str, answer: Any) -> None:
    whole, stream, prompt = ask("<think>Hm.</think>Ok.", THINKING, **fields)
    same(whole, stream)
    message = whole["choices"][0]["message"]
    assert (message.get("reasoning"), message["content"]) == answer
    assert prompt.endswith(prompted)


def test_a_template_may_have_opened_the_reasoning() -> None:
    template = "{{ messages[0].content }}<｜Assistant｜><think>\n{{ '</think>' if 0 }}"
    whole, stream, _ = ask("Hm.\n</think>\n\nOk.", template)
    same(whole, stream)
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Ok.")
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12


def test_the_effort_is_the_templates_to_understand() -> None:
    template = "{{ messages[0].content }} {{ reasoning_effort }}"
    for effort in ("low", "xhigh"):
        assert ask("x", template, reasoning_effort=effort)[2].endswith(effort)
    assert "does not reason" in refused("reasoning_effort", reasoning_effort="high")
    for effort in ("none", "medium"):
        ask("x", reasoning_effort=effort)
    refused("reasoning_effort", reasoning_effort="some")


def test_settings_say_otherwise() -> None:
    async def test(tools: ToolParser, reasoning: ReasoningParser) -> Any:
        text = "<think>Hm.</think>" + call("now")
        parsers = {"tool_parser": tools, "reasoning_parser": reasoning}
        async with served(text, THINKING, parsers=parsers) as server:
            response = await server.chat(tools=TOOLS)
            return response.json()["choices"][0]["message"] if response.is_success else response

    message = asyncio.run(test("auto", "none"))
    assert (message["content"], called(message)) == ("<think>Hm.</think>", [("now", {})])
    message = asyncio.run(test("mistral", "mistral"))
    assert message["content"] == "<think>Hm.</think>" + call("now")
    assert asyncio.run(test("none", "auto")).json()["error"]["param"] == "tools"


# -- any answer ------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["Hi", " ", "\n", "é", "🌹", "<", "<think>", "</think>", "<tool_call>", "</tool_call>",
     call("now"), call("add", a=1), call("nobody"), '{"name": "now"}', "stop", "st"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
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
    assert (choice["finish_reason"] == "tool_calls") == ("tool_calls" in choice["message"])

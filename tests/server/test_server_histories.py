"""Calls and their results in a conversation, as templates want them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.asking import (
    THINKING,
    TOOLS,
    ask,
    call,
    refused,
)
from tests.server.fakes import (
    HELLO,
)


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

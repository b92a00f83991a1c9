"""Reasoning over HTTP: a field of its own, and what turns it on and off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rosellm.roseinfer.config import ReasoningParser, ToolParser
from tests.server.asking import (
    THINKING,
    TOOLS,
    ask,
    call,
    called,
    refused,
    same,
    served,
)


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

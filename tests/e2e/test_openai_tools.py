"""The official client and the demo model, which calls tools, on a real server."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.e2e.conftest import WEATHER, Server

PARIS: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def asked(messages: Any = PARIS, **more: Any) -> Any:
    common = {"model": "rosellm-demo", "tools": [WEATHER], "temperature": 0, "max_tokens": 120}
    return {**common, "messages": messages, **more}


def test_a_call_and_its_result(demo: Server) -> None:
    create = demo.openai.chat.completions.create
    [choice] = create(**asked()).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    answer = create(**asked([*PARIS, choice.message.model_dump(exclude_none=True), result]))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content


def test_the_streaming_helper(demo: Server) -> None:
    whole = demo.openai.chat.completions.create(**asked()).choices[0]
    names, fragments = [], []
    with demo.openai.chat.completions.stream(**asked()) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                names.append(event.name)
                fragments.append(event.arguments_delta)
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == whole.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call], [expected] = choice.message.tool_calls, whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == (
        expected.function.name,
        expected.function.arguments,
    )
    assert "".join(fragments) == expected.function.arguments
    assert len(fragments) > 1
    assert set(names) == {"get_weather"}


def test_calls_that_max_tokens_cuts_off(demo: Server) -> None:
    """Wherever: a stream has the same, its end is called the same, and whole calls are JSON."""
    create = demo.openai.chat.completions.create
    arguments = create(**asked()).choices[0].message.tool_calls[0].function.arguments
    finishes = []
    for limit in range(8, 40, 2):
        [choice] = create(**asked(max_tokens=limit)).choices
        finishes.append(choice.finish_reason)
        calls = choice.message.tool_calls or []
        told, finish = "", None
        for chunk in create(**asked(max_tokens=limit, stream=True)):
            [piece] = chunk.choices
            told += "".join(each.function.arguments for each in piece.delta.tool_calls or [])
            finish = piece.finish_reason or finish
        assert (told, finish) == ("".join(e.function.arguments for e in calls), finishes[-1])
        assert arguments.startswith(told)
        assert (finish == "tool_calls") == (told == arguments)
    assert {"length", "tool_calls"} == set(finishes)


def test_no_tool_is_called_where_none_fits_or_none_may_be(demo: Server) -> None:
    create = demo.openai.chat.completions.create
    hello: Any = [{"role": "user", "content": "Hello! How are you?"}]
    for answer in (create(**asked(hello)), create(**asked(tool_choice="none"))):
        [choice] = answer.choices
        assert choice.finish_reason in ("stop", "length")
        assert choice.message.tool_calls is None
        assert choice.message.content


def test_the_demo_model_does_not_reason(demo: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        demo.openai.chat.completions.create(**asked(reasoning_effort="high"))
    assert caught.value.param == "reasoning_effort"

"""langchain-openai: bound tools, structured output by each of its methods, streaming."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from tests.e2e.conftest import Server

langchain_openai = pytest.importorskip("langchain_openai")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours

PARIS = "What is the weather in Paris?"


class get_weather(BaseModel):
    """Get the weather in a city."""

    city: str = Field(max_length=20)


class Report(BaseModel):
    """What the weather is like."""

    sky: Literal["clear", "cloudy"]
    degrees: int = Field(ge=-80, le=60)


@pytest.fixture
def model(demo: Server) -> Any:
    return langchain_openai.ChatOpenAI(
        model=demo.model,
        base_url=f"{demo.url}/v1",
        api_key="none",
        max_tokens=200,
        max_retries=0,
        seed=1,
        stream_usage=True,
    )


def test_a_bound_tool_is_called(model: Any) -> None:
    bound = model.bind_tools([get_weather], tool_choice="required")
    whole = bound.invoke(PARIS)
    assert [call["name"] for call in whole.tool_calls] == ["get_weather"] * len(whole.tool_calls)
    assert whole.tool_calls
    assert whole.response_metadata["finish_reason"] == "tool_calls"
    for call in whole.tool_calls:
        get_weather.model_validate(call["args"])


def test_a_stream_adds_up_to_the_same_calls(model: Any) -> None:
    bound = model.bind_tools([get_weather], tool_choice="get_weather")
    first, *others = bound.stream(PARIS)
    whole = first
    for chunk in others:
        whole += chunk
    said = [(call["name"], call["args"]) for call in whole.tool_calls]
    assert said == [(call["name"], call["args"]) for call in bound.invoke(PARIS).tool_calls]
    assert whole.usage_metadata["output_tokens"] > 0


def test_the_result_of_a_call_is_answered(model: Any) -> None:
    messages = pytest.importorskip("langchain_core.messages")
    bound = model.bind_tools([get_weather])
    asked = [messages.HumanMessage(PARIS)]
    called = model.bind_tools([get_weather], tool_choice="get_weather").invoke(asked)
    results = [messages.ToolMessage("Sunny.", tool_call_id=c["id"]) for c in called.tool_calls]
    answer = bound.invoke([*asked, called, *results])
    assert answer.content or answer.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: Any, method: str) -> None:
    structured = model.with_structured_output(Report, method=method, include_raw=True)
    answer = structured.invoke("The sky is clear, 20 degrees.")
    assert answer["parsing_error"] is None
    assert isinstance(answer["parsed"], Report)


def test_json_mode(model: Any) -> None:
    structured = model.with_structured_output(None, method="json_mode")
    assert isinstance(structured.invoke("Give me JSON with city Paris."), dict)


def test_a_plain_stream(model: Any) -> None:
    chunks = [chunk.content for chunk in model.stream("Hello!")]
    assert "".join(chunks) == model.invoke("Hello!").content

"""litellm: completion, streams, tools and schemas through its OpenAI route."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.e2e.conftest import WEATHER, Server

litellm = pytest.importorskip("litellm")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours


class Report(BaseModel):
    sky: Literal["clear", "cloudy"]
    wind: bool


def ask(demo: Server, content: str = "What is the weather in Paris?", **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{demo.model}",
        api_base=f"{demo.url}/v1",
        api_key="none",
        messages=[{"role": "user", "content": content}],
        max_tokens=200,
        temperature=0,
        num_retries=0,
        **more,
    )


def test_a_stream_is_the_answer(demo: Server) -> None:
    whole = ask(demo, "Hello!")
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(demo, "Hello!", stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0


def test_tools(demo: Server) -> None:
    whole = ask(demo, tools=[WEATHER], tool_choice="required")
    assert whole.choices[0].finish_reason == "tool_calls"
    chunks = list(ask(demo, tools=[WEATHER], tool_choice="required", stream=True))
    built = litellm.stream_chunk_builder(chunks)
    for choice in (whole.choices[0], built.choices[0]):
        [call] = choice.message.tool_calls
        assert call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city"}


def test_a_schema(demo: Server) -> None:
    whole = ask(demo, "The sky is clear.", response_format=Report)
    Report.model_validate_json(whole.choices[0].message.content)


def test_an_error_is_the_clients_own(demo: Server) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(
            model=f"openai/{demo.model}",
            api_base=f"{demo.url}/v1",
            api_key="none",
            messages=[{"role": "user", "content": "Hello!"}],
            temperature=9,
            num_retries=0,
        )

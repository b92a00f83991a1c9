"""pydantic-ai: an agent that calls tools, and outputs by each of its modes."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from tests.e2e.conftest import Server

pydantic_ai = pytest.importorskip("pydantic_ai")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours


class Report(BaseModel):
    """What the weather is like."""

    sky: Literal["clear", "cloudy"]
    degrees: int = Field(ge=-80, le=60)


@pytest.fixture
def model(demo: Server) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(
        demo.model, provider=OpenAIProvider(base_url=f"{demo.url}/v1", api_key="none")
    )


def agent(model: Any, **more: Any) -> Any:
    return pydantic_ai.Agent(
        model, model_settings={"max_tokens": 200, "temperature": 0.0, "seed": 1}, **more
    )


def test_text(model: Any) -> None:
    made = agent(model).run_sync("Hello!")
    assert made.output
    assert made.usage.output_tokens > 0


@pytest.mark.parametrize("mode", ["ToolOutput", "NativeOutput"])
def test_an_output_type(model: Any, mode: str) -> None:
    output_type = getattr(pydantic_ai, mode)(Report)
    made = agent(model, output_type=output_type).run_sync("The sky is clear, 20 degrees.")
    assert isinstance(made.output, Report)


def test_a_tool_is_run_and_its_result_goes_back(model: Any) -> None:
    asked: list[str] = []
    with_tool = agent(model)

    @with_tool.tool_plain
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        asked.append(city)
        return "Sunny."

    made = with_tool.run_sync("What is the weather in Paris?")
    assert asked == ["Paris"]
    assert made.output


def test_a_stream(model: Any) -> None:
    async def streamed() -> str:
        async with agent(model).run_stream("Hello!") as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True)]
        return "".join(pieces)

    assert asyncio.run(streamed()) == agent(model).run_sync("Hello!").output

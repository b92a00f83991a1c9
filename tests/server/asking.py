"""Chats over HTTP with tools and reasoning, each asked whole and as a stream, which must agree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import rosellm
from tests.server.fakes import (
    Script,
    Server,
    events,
    says,
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

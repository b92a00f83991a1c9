"""Calls that have to be made fit their schemas, with a random model and with the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import rosellm
from tests import bfcl
from tests.e2e.conftest import Server, start_server, write_tokenizer
from tests.tiny_models import write_llama

DEMO = Path(rosellm.__file__).parent / "data" / "rosellm-demo"


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


OWN = [
    tool("nothing"),
    tool("math.gcd", a={"type": "integer"}, b={"type": "integer"}),
    tool("find_all", where={"type": "string", "enum": ["here", "there"]},
         limits={"type": "array", "items": {"type": "number"}}, deep={"type": "boolean"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Weights that mean nothing, and the demo model's chat template."""
    folder = tmp_path_factory.mktemp("tools") / "tiny-llama"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    write_llama(folder, vocab_size=size, hidden_size=64, max_position_embeddings=8192, **ends)
    template = (DEMO / "chat_template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    running = start_server(str(folder), model="tiny-llama")
    yield running
    assert running.stop() == 0


def check_calls(tools: list[Any], choice: Any) -> None:
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        schema = schemas[call.function.name]
        jsonschema.Draft202012Validator(schema).validate(json.loads(call.function.arguments))


def check_required(server: Server, tools: list[Any], seed: int, **more: Any) -> None:
    """A call is made whole and streamed, and both say the same."""
    ask: Any = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Do something."}],
        "tools": tools,
        "tool_choice": "required",
        "max_tokens": 300,
        "seed": seed,
        **more,
    }
    [whole] = server.openai.chat.completions.create(**ask).choices
    check_calls(tools, whole)
    with server.openai.chat.completions.stream(**ask) as stream:
        for _ in stream:
            pass
        [streamed] = stream.get_final_completion().choices
    check_calls(tools, streamed)
    assert said(streamed) == said(whole)


def said(choice: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]


@pytest.mark.slow  # tests/server/test_server_enforced_calls.py has no model at all
def test_a_random_model(random_model: Server) -> None:
    for seed in range(3):
        check_required(random_model, OWN, seed)
    check_required(random_model, OWN, 3, parallel_tool_calls=False)
    named = {"type": "function", "function": {"name": "math.gcd"}}
    check_required(random_model, OWN, 4, tool_choice=named)


def test_the_demo_model(demo: Server) -> None:
    for seed in range(3):
        check_required(demo, OWN, seed)


@pytest.mark.skipif(not bfcl.FOLDER.is_dir(), reason="no ../shared/data beside this checkout")
@pytest.mark.parametrize("every", [130, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["demo", pytest.param("random_model", marks=pytest.mark.slow)])
def test_tools_of_the_leaderboard(request: pytest.FixtureRequest, model: str, every: int) -> None:
    server: Server = request.getfixturevalue(model)
    tools = list(bfcl.tools())
    with ThreadPoolExecutor(16) as pool:
        checks = {
            pool.submit(check_required, server, tools[index : index + 1], index): index
            for index in range(0, len(tools), every)
        }
    for check, index in checks.items():
        assert check.exception() is None, (tools[index], check.exception())

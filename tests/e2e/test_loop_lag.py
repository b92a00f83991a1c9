"""The API's event loop waits for nobody's prompt, however long: seen from inside, as its lag."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server, start_server, write_tokenizer
from tests.tiny_models import write_llama

pytestmark = pytest.mark.alone

LIMIT_S = 0.05
LAG = "rosellm:event_loop_lag_seconds"
WORDS = "the quick brown fox, née Zorro, jumps over the lazy dog and 1234 others. "
LONG = (WORDS * (1 + (1 << 20) // len(WORDS)))[: 1 << 20]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose context is so long that a megabyte has to be tokenised to be refused."""
    folder = tmp_path_factory.mktemp("roomy") / "tiny-llama"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    write_llama(folder, vocab_size=size, max_position_embeddings=32768, bos_token_id=0)
    running = start_server(str(folder), model="tiny-llama")
    yield running
    assert running.stop() == 0


def lags(server: Server) -> dict[float, float]:
    """How many were at most so long, by the histogram's bounds."""
    text = httpx.get(f"{server.url}/metrics").text
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{LAG}_bucket"
    }


def late(server: Server, body: dict[str, Any], path: str) -> tuple[int, httpx.Response]:
    """How often the loop was late while a request was answered."""
    before = lags(server)
    answer = httpx.post(f"{server.url}{path}", content=json.dumps(body), timeout=60)
    after = lags(server)
    grown = {bound: after[bound] - before[bound] for bound in after}
    assert grown[float("inf")] > 0, "nothing was measured"
    return round(grown[float("inf")] - grown[LIMIT_S]), answer


def in_time(server: Server, fields: dict[str, Any], path: str) -> httpx.Response:
    """The answer to a request that does not hold up the loop."""
    tries = []
    for _ in range(3):  # what the server does it does each time; the machine may be late once
        count, answer = late(server, {"model": "tiny-llama", **fields}, path)
        tries.append(count)
        if not count:
            return answer
    pytest.fail(f"the loop was late {tries} times")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/completions", {"prompt": [1] * ((1 << 18) - 9)}),
        slow("/v1/completions", {"prompt": ["a", *[1] * (1 << 17)]}),
        slow("/v1/chat/completions", {"messages": [{"role": "user", "content": 8 * WORDS}] * 1700}),
        slow("/v1/embeddings", {"input": LONG}),
        ("/tokenize", {"prompt": LONG}),
    ],
    ids=["completion", "chat", "ids", "mistakes", "messages", "embedding", "tokenize"],
)
def test_a_long_prompt_holds_the_loop_up_for_less_than_50_ms(
    roomy: Server, path: str, fields: dict[str, Any]
) -> None:
    answer = in_time(roomy, fields, path)
    if path == "/tokenize":
        assert answer.json()["count"] > 100_000
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in ("context_length_exceeded", "invalid_type")


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ([1] * 2_700_000, "262144 values"),
        slow([[1]] * 1_300_000, "50000 members"),
        (["a"] * 1_300_000, "131072 texts"),
        slow(['\\"' * 50] * 20_000 + [None] * 300_000, "262144 values"),
    ],
    ids=["ids", "lists", "texts", "escapes"],
)
def test_eight_megabytes_of_small_values_are_refused_in_time(
    roomy: Server, prompt: list[Any], what: str
) -> None:
    answer = in_time(roomy, {"prompt": prompt}, "/v1/completions")
    assert answer.status_code == 400
    assert what in answer.json()["error"]["message"]


@pytest.mark.parametrize("place", ["form", slow("tool")])
def test_a_large_schema_is_refused_in_time(roomy: Server, place: str) -> None:
    schema = {"type": "object", "enum": list(range(100_000)), "minProperties": 5}
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "Once"}]}
    if place == "form":
        named = {"name": "large", "schema": schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    else:
        function = {"name": "large", "parameters": schema}
        fields |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    answer = in_time(roomy, fields, "/v1/chat/completions")
    assert answer.status_code == 400
    assert "minProperties" in answer.text or place == "tool"


def test_a_thousand_prompts_are_begun_in_time(roomy: Server) -> None:
    fields = {"prompt": ["Once", "A rose"] * 500, "max_tokens": 1, "timeout": 60}
    answer = in_time(roomy, fields, "/v1/completions")
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 1000
    roomy.wait_until_idle()

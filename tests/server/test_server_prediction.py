"""``prediction`` over HTTP: what the engine is told, what the usage says, what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.fakes import MAX_MODEL_LEN, Script, Server, events, says, serving

SAID = "roses are red, violets are blue"


def predicted(text: Any) -> dict[str, Any]:
    return {"type": "content", "content": text}


def ask(script: Script, **fields: Any) -> tuple[dict[str, Any], Server]:
    async def test() -> tuple[dict[str, Any], Server]:
        async with serving(script) as server:
            response = await server.chat(**fields)
            assert response.status_code == 200, response.text
            if fields.get("stream"):
                return {"chunks": events(response)[:-1]}, server
            body: dict[str, Any] = response.json()
            return body, server

    return asyncio.run(test())


def counts(usage: dict[str, Any]) -> tuple[int, int]:
    details = usage["completion_tokens_details"]
    return details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]


PARTS = [{"type": "text", "text": "roses "}, {"type": "text", "text": "are"}]


@pytest.mark.parametrize(("content", "text"), [("roses are", "roses are"), (PARTS, "roses are")])
def test_the_engine_is_told_the_prediction_in_tokens(content: Any, text: str) -> None:
    body, server = ask(says(SAID), prediction=predicted(content))
    assert server.engine.added[0].prediction == list(text.encode())
    assert body["choices"][0]["message"]["content"] == SAID
    assert counts(body["usage"]) == (9, 0)
    assert body["usage"]["completion_tokens"] == len(SAID) + 1


@pytest.mark.parametrize(
    ("text", "accepted", "rejected"),
    [
        (SAID, 31, 0),
        (SAID.replace("red", "white"), 27, 6),  # the comma was not expected yet
        (SAID + ", said he", 31, 9),
        ("0123456789", 0, 10),
        ("", 0, 0),
    ],
)
def test_the_usage_tells_what_the_answer_has_of_it(text: str, accepted: int, rejected: int) -> None:
    for size in (1, 4, 50):
        body, _ = ask(says(SAID, size=size), prediction=predicted(text))
        assert counts(body["usage"]) == (accepted, rejected)


def test_every_choice_is_counted() -> None:
    body, _ = ask(says(SAID, size=3), n=3, prediction=predicted(SAID + "!"))
    assert counts(body["usage"]) == (93, 3)


def test_what_comes_after_a_stop_string_is_rejected() -> None:
    """Rows hold more tokens than the answer takes."""
    body, _ = ask(says(SAID, size=50), stop=" red", prediction=predicted(SAID))
    assert body["choices"][0]["message"]["content"] == "roses are"
    assert counts(body["usage"]) == (13, 18)
    assert body["usage"]["completion_tokens"] == 13


def test_a_stream_says_the_same() -> None:
    fields = {"prediction": predicted(SAID.replace("red", "white")), "logprobs": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer, _ = ask(says(SAID, size=7), stream=True, stream_options=options, **fields)
    *chunks, last = answer["chunks"]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert text == SAID
    assert counts(last["usage"]) == (27, 6)
    course = [counts(chunk["usage"]) for chunk in chunks]
    assert course == sorted(course)
    assert course[1] == (7, 0)


def test_without_a_prediction_nothing_is_counted() -> None:
    body, server = ask(says(SAID))
    assert server.engine.added[0].prediction == []
    assert counts(body["usage"]) == (0, 0)


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "text", "content": "x"}, "prediction.type"),
        (predicted([]), "prediction.content"),
        (predicted(5), "prediction.content"),
        (predicted([{"type": "image_url", "image_url": {"url": "x"}}]), "prediction.content[0]"),
        (predicted([{"type": "text"}]), "prediction.content[0].text"),
        ({**predicted("x"), "length": 5}, "prediction.length"),
        ("x", "prediction"),
        (predicted("x" * 100 * MAX_MODEL_LEN), "prediction"),
    ],
)
def test_what_is_no_prediction_is_refused(prediction: Any, param: str) -> None:
    async def test() -> None:
        async with serving(says(SAID)) as server:
            response = await server.chat(prediction=prediction)
            assert response.status_code == 400
            assert response.json()["error"]["param"].startswith(param)
            assert not server.engine.added

    asyncio.run(test())

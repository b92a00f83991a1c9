"""Answers that have a form, from the library."""

from __future__ import annotations

import json

import pytest

from rosellm import LLM, SamplingParams
from rosellm.roseinfer.errors import RequestError
from tests.library.conftest import idle

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PERSON = SamplingParams(structured_outputs={"json": SCHEMA}, max_tokens=80, seed=1)
LIGHTS = ["red", "yellow", "green"]


def test_text_chats_and_streams_fit(llm: LLM) -> None:
    hello = [{"role": "user", "content": "hello"}]
    answers = [*llm.generate(["a", "b", "c"], PERSON), llm.chat(hello, PERSON)]
    for answer in answers:
        found = json.loads(answer.text)
        assert isinstance(found["name"], str)
        assert isinstance(found["age"], int)
        assert answer.finish_reason == "stop"
    assert "".join(llm.stream(hello, PERSON)) == answers[-1].text


def test_a_form_and_none_may_stand_side_by_side(llm: LLM) -> None:
    light = SamplingParams(structured_outputs={"choice": LIGHTS}, n=3, seed=2, max_tokens=20)
    free = SamplingParams(seed=3, max_tokens=8)
    formed, plain = llm.generate(["The light is ", "Once"], [light, free])
    assert {choice.text for choice in formed.choices} <= {*LIGHTS}
    assert plain == llm.generate("Once", free)


def test_what_cannot_be_enforced_is_refused_and_nothing_is_kept(llm: LLM) -> None:
    bad = SamplingParams(structured_outputs={"json": {"type": "object", "not": {}}})
    with pytest.raises(RequestError, match=r"structured_outputs\.json at /not"):
        llm.generate("a", bad)
    with pytest.raises(RequestError, match="exactly one"):
        SamplingParams(structured_outputs={"json": {}, "regex": "a"})
    idle(llm)

"""instructor: answers as pydantic models, by every way in which it asks for them."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from tests.e2e.conftest import Server

instructor = pytest.importorskip("instructor")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours
Mode = instructor.Mode


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    mood: Literal["good", "bad"]


ASK: dict[str, Any] = {
    "model": "rosellm-demo",
    "messages": [{"role": "user", "content": "Anna is 33 and feels good."}],
    "max_tokens": 200,
    "seed": 1,
}
MODES = ["TOOLS", "JSON_SCHEMA"]


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_a_model(demo: Server, mode: str) -> None:
    client = instructor.from_openai(demo.openai, mode=Mode[mode])
    made = client.chat.completions.create(response_model=Person, max_retries=0, **ASK)
    assert isinstance(made, Person)


@pytest.mark.parametrize("mode", MODES)
def test_a_partial_answer_grows_to_a_model(demo: Server, mode: str) -> None:
    client = instructor.from_openai(demo.openai, mode=Mode[mode])
    grown = list(client.chat.completions.create_partial(response_model=Person, **ASK))
    assert grown
    Person.model_validate(grown[-1].model_dump())


def test_many_answers(demo: Server) -> None:
    client = instructor.from_openai(demo.openai, mode=Mode.TOOLS)
    people = list(client.chat.completions.create_iterable(response_model=Person, **ASK))
    assert people
    assert all(isinstance(person, Person) for person in people)

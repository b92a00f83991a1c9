"""Grammars on the wire: what is asked for reaches the engine, and what cannot be used is a 400."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server import grammars
from rosellm.roseinfer.server.grammar_messages import Check, Verdict
from rosellm.roseinfer.server.grammars import Grammars
from rosellm.roseinfer.text.grammar_source import (
    Choice,
    GrammarSource,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    grammar_text,
)
from tests.server.fakes import CHAT, COMPLETIONS, HELLO, ByteTokenizer, says, serving

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.fixture(scope="module")
def checker() -> Grammars:
    return Grammars(ByteTokenizer(), 300)


def check(checker: Grammars, source: GrammarSource) -> str:
    return asyncio.run(checker.checked(source, "field"))


@pytest.mark.parametrize(
    "source",
    [
        JsonObject(),
        JsonSchema(PERSON),
        JsonSchema({"type": "array", "minItems": 100_000}),
        Regex("[a-z]+"),
        Regex("(a{1,1000}){1,1000}"),
        Choice(tuple(f"choice {number}" for number in range(20_000))),
        Lark("start: a\na: a a | /[0-9]/"),
    ],
    ids=str,
)
def test_what_is_good_is_handed_on(checker: Grammars, source: GrammarSource) -> None:
    assert check(checker, source) == grammar_text(source)


def test_a_schema_may_be_written_out(checker: Grammars) -> None:
    written = JsonSchema(json.dumps(PERSON))  # type: ignore[arg-type]
    assert check(checker, written) == grammar_text(JsonSchema(PERSON))


def test_gbnf_becomes_lark(checker: Grammars) -> None:
    text = check(checker, Lark('root ::= "a" digit+\ndigit ::= [0-9]'))
    assert check(checker, Lark(text)) == text
    assert "start" in text


BAD: list[tuple[GrammarSource, str]] = [
    (
        JsonSchema({"properties": {"a": {"not": {"type": "string"}}}}),
        "field at /properties/a/not: ",
    ),
    (
        JsonSchema({"$defs": {"x": {"uniqueItems": True}}, "items": {"$ref": "#/$defs/x"}}),
        "/$defs/x/uniqueItems: ",
    ),
    (JsonSchema({"items": {"anyOf": [{}, {"format": "nope"}]}}), "/items/anyOf/1/format: "),
    (JsonSchema({"properties": {"a/b": {"pattern": "("}}}), "/properties/a~1b/pattern: "),
    (JsonSchema({"properties": {"a": {"$ref": "http://x/y"}}}), "/properties/a/$ref: "),
    (JsonSchema({"type": "nonsense"}), "field at /type: "),
    (JsonSchema({"properties": {"a": {"minProperties": 2}}}), "/properties/a/minProperties: "),
    (JsonSchema({"$ref": "#"}), "field at /"),
    (JsonSchema(False), "field at /"),
    (JsonSchema(deep(300)), "nested too deeply"),
    (JsonSchema("{"), "not valid JSON"),  # type: ignore[arg-type]
    (JsonSchema("[]"), "an object or a boolean"),  # type: ignore[arg-type]
    (Regex("(?=a)b"), "look-ahead"),
    (Regex("("), "unclosed"),
    (Lark("start: nothing"), "nothing"),
    (Lark("root ::= ("), "field: "),
    (Lark(""), "field: "),
    (Regex("a" * 2_000_000), "characters"),
]


@pytest.mark.parametrize(("source", "says"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_what_is_bad_is_refused(checker: Grammars, source: GrammarSource, says: str) -> None:
    with pytest.raises(RequestError) as refused:
        check(checker, source)
    assert refused.value.status == 400
    assert refused.value.param == "field"
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_takes_too_long_is_killed(checker: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    check(checker, Regex("warm"))
    monkeypatch.setattr(grammars, "MAX_SECONDS", 0.0)
    with pytest.raises(RequestError, match="takes more than"):
        check(checker, Choice(tuple(f"a {number}" for number in range(15_000))))
    monkeypatch.undo()
    assert check(checker, Regex("afterwards")) == "start: /afterwards/\n"


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"json": PERSON}}, grammar_text(JsonSchema(PERSON))),
    ({"structured_outputs": {"regex": "a+"}}, grammar_text(Regex("a+"))),
    ({"structured_outputs": {"choice": ["a", "b"]}}, grammar_text(Choice(("a", "b")))),
    ({"structured_outputs": {"grammar": 'start: "x"'}}, 'start: "x"'),
    ({"structured_outputs": None}, ""),
]
FORMATS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "text"}}, ""),
    ({"response_format": {"type": "json_object"}}, grammar_text(JsonObject())),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "p", "strict": True, "schema": PERSON},
            }
        },
        grammar_text(JsonSchema(PERSON)),
    ),
]


def test_what_is_asked_for_reaches_the_engine() -> None:
    async def test() -> None:
        async with serving(says("hello")) as server:
            for path, bodies in ((CHAT, FIELDS + FORMATS), (COMPLETIONS, FIELDS)):
                asked = {"messages": HELLO} if path == CHAT else {"prompt": "hi"}
                for body, grammar in bodies:
                    response = await server.client.post(path, json={"model": "m", **asked, **body})
                    assert response.status_code == 200, response.text
                    assert server.engine.added[-1].grammar == grammar

    asyncio.run(test())


REFUSED = [
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
        "response_format.json_schema.name",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"not": {}}},
            }
        },
        "response_format.json_schema.schema",
    ),
    (
        {
            "response_format": {"type": "json_object"},
            "structured_outputs": {"regex": "a"},
        },
        "response_format",
    ),
]


def test_what_cannot_be_used_is_a_400_that_names_the_field() -> None:
    async def test() -> None:
        async with serving(says("hello")) as server:
            for body, param in REFUSED:
                response = await server.client.post(
                    CHAT, json={"model": "m", "messages": HELLO, **body}
                )
                error = response.json()["error"]
                assert (response.status_code, error["param"]) == (400, param), error
            assert server.engine.added == []

    asyncio.run(test())


@pytest.mark.alone
def test_the_event_loop_does_not_wait_for_a_check() -> None:
    async def test() -> float:
        checker = Grammars(ByteTokenizer(), 300)
        checking = asyncio.ensure_future(checker.checked(Regex("[a-z]+"), "field"))
        longest, last = 0.0, time.monotonic()
        while not checking.done():
            await asyncio.sleep(0.001)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest

    assert asyncio.run(test()) < 1.0


def test_what_is_asked_for_often_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    async def judge(check: Check) -> Verdict:
        judged.append(check.text)
        return Verdict(check.text)

    async def test() -> None:
        checker = Grammars(ByteTokenizer(), 300)
        monkeypatch.setattr(checker, "_judged", judge)
        monkeypatch.setattr(grammars, "_KEPT", 4)
        for number in range(20):
            await checker.checked(Regex(f"other {number}"), "field")
            await checker.checked(Regex("often"), "field")

    asyncio.run(test())
    assert judged.count(grammar_text(Regex("often"))) == 1
    assert len(judged) == 21


def test_what_several_ask_for_at_once_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = 0

    async def judge(check: Check) -> Verdict:
        nonlocal judged
        judged += 1
        await asyncio.sleep(0.01)
        return Verdict(check.text)

    async def test() -> None:
        checker = Grammars(ByteTokenizer(), 300)
        monkeypatch.setattr(checker, "_judged", judge)
        await asyncio.gather(*(checker.checked(Regex("a"), "field", "key") for _ in range(20)))

    asyncio.run(test())
    assert judged == 1


def test_who_asks_for_many_holds_up_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    released = asyncio.Event()

    async def judge(check: Check) -> Verdict:
        if "slow" in check.text:
            await released.wait()
        return Verdict(check.text)

    async def test() -> None:
        checker = Grammars(ByteTokenizer(), 300)
        monkeypatch.setattr(checker, "_judged", judge)
        slow = [
            asyncio.ensure_future(checker.checked(Regex(f"slow {number}"), "field", "greedy"))
            for number in range(10)
        ]
        for number in range(3):
            quick = checker.checked(Regex(f"quick {number}"), "field", "other")
            await asyncio.wait_for(quick, 5)
        assert not any(each.done() for each in slow)
        released.set()
        await asyncio.wait_for(asyncio.gather(*slow), 5)
        assert not checker._turns_of, "nothing is kept of who has asked"

    asyncio.run(test())

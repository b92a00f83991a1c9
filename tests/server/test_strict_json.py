"""What a body may hold is counted before it is read, and as a reader would count it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.server import strict_json
from tests.examples import examples

TRICKY = st.text(alphabet='a:[],{}"\\\n', max_size=8)
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=30,
)


def texts(value: Any) -> int:
    if isinstance(value, dict):
        return sum(1 + texts(each) for each in value.values())
    return sum(map(texts, value)) if isinstance(value, list) else isinstance(value, str)


def members(value: Any) -> int:
    """Of objects, and lists."""
    if isinstance(value, dict):
        return sum(1 + members(each) for each in value.values())
    return 1 + sum(map(members, value)) if isinstance(value, list) else 0


def neighbours(value: Any) -> int:
    """Values that stand behind another one."""
    if not isinstance(value, dict | list):
        return 0
    inside = list(value.values()) if isinstance(value, dict) else value
    return max(0, len(inside) - 1) + sum(map(neighbours, inside))


def refusal(body: bytes, **limits: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items():
            patch.setattr(strict_json, name, limit)
        try:
            strict_json._check_counts(body)
        except HTTPException as error:
            return str(error.detail)
    return ""


@settings(max_examples=examples(200), deadline=None)
@given(VALUES, st.sampled_from([None, 1]))
def test_counts_are_those_of_the_value(value: Any, indent: int | None) -> None:
    body = json.dumps([value], indent=indent, ensure_ascii=False).encode()
    value = [value]
    for name, count in (
        ("MOST_TEXTS", texts(value)),
        ("MOST_MEMBERS", members(value)),
        ("MOST_VALUES", neighbours(value) + 1),
    ):
        assert refusal(body, **{name: count}) == ""
        if count > 1:
            assert str(count - 1) in refusal(body, **{name: count - 1})


def test_texts_full_of_signs_are_read() -> None:
    text = '[1, 2, {"a": "\\\\"}], ' * 50_000
    assert refusal(json.dumps({"prompt": text}).encode()) == ""


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"[" + b"1," * strict_json.MOST_VALUES + b"1]", "262144 values"),
        (b"[" * 100_000, "50000 members"),
        (b'{"a":' * 60_000, "50000 members"),
        (b"[" + b'"",' * strict_json.MOST_TEXTS + b'""]', "131072 texts"),
    ],
)
def test_more_than_is_read_in_one_go_is_refused(body: bytes, what: str) -> None:
    assert what in refusal(body)

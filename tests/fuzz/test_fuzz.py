"""Requests that chance makes: whatever they are, an answer or a refusal, and nothing remains."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import strategies as st

from tests.fuzz.bodies import requests
from tests.fuzz.conftest import Target, check, try_many


def test_request_bodies(target: Target) -> None:
    """Made of the schemas by which bodies are read, then damaged."""

    def attempt(request: tuple[str, bytes]) -> None:
        path, body = request
        check(target.send("POST", path, body))

    try_many(requests(), attempt, few=60, share=0.8)


def test_what_is_made_is_mostly_served(target: Target) -> None:
    """Or else the test above would test refusals alone."""
    statuses: list[int] = []

    def attempt(request: tuple[str, bytes]) -> None:
        statuses.append(target.send("POST", *request).status_code)

    try_many(requests(), attempt, few=40, share=0.0001)
    assert statuses.count(200) > len(statuses) / 10
    assert statuses.count(400) > len(statuses) / 10


def test_paths_methods_and_headers(target: Target) -> None:
    """Of any bytes that HTTP allows."""
    token = st.text("!#$%&'*+-.^_`|~0189azAZ", min_size=1, max_size=12)
    value = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
    paths = st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map("/".__add__),
        st.sampled_from(["/v1/completions", "/v1/models/%2e%2e", "/health/..", "/v1//models"]),
    )

    def attempt(case: tuple[str, str, dict[str, str], bytes]) -> None:
        method, path, headers, body = case
        request = target.client.build_request(method, "http://fuzz/", headers=headers, content=body)
        raw = path.encode()
        request.url = request.url.copy_with(raw_path=raw.replace(b"#", b"?"))
        check(target.runner.run(target.client.send(request)))

    reserved = {"host", "content-length", "transfer-encoding", "connection"}
    headers = st.dictionaries(token.filter(lambda name: name.lower() not in reserved), value)
    cases = st.tuples(
        st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "HEAD", "BREW"]),
        paths,
        headers,
        st.binary(max_size=20),
    )
    try_many(cases, attempt, few=40, share=0.1)


@pytest.fixture(scope="module")
def api(target: Target) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", target.app)


def test_the_servers_own_description(target: Target, api: Any) -> None:
    """Schemathesis over each operation that ``/openapi.json`` tells of."""
    operations = [found.ok() for found in api.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/completions", "/health"}

    def attempt(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url="http://fuzz")
        sent.pop("cookies", None)
        check(target.runner.run(target.client.request(**sent)))

    for operation in operations:
        try_many(operation.as_strategy(), attempt, few=2, share=0.1 / len(operations))

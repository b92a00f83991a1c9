"""Limits of keys: buckets over a clock of the test's, and what clients see of them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.messages import Add, Output
from rosellm.roseinfer.server.delta import Delta
from rosellm.roseinfer.server.keys import Key, KeyLimits, Keys, digest
from rosellm.roseinfer.server.limits import Account, Accounts, Bucket, duration
from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Server,
    endless,
    gives_vectors,
    refuses,
    says,
    serving,
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def account(clock: Clock, **limits: int) -> Account:
    return Account(Key("alice", b"", KeyLimits(**limits)), clock)


def refused(work: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        work()
    assert caught.value.status == 429
    assert caught.value.code == "rate_limit_exceeded"
    return caught.value


# -- buckets ---------------------------------------------------------------------------------


def test_requests_come_back_one_by_one() -> None:
    clock = Clock()
    alice = account(clock, requests_per_minute=3)
    for _ in range(3):
        alice.enter(spends=True)
    error = refused(lambda: alice.enter(spends=True))
    assert error.kind == "requests"
    assert error.retry_after_s == pytest.approx(20)
    assert alice.headers() == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.now += 19.9
    refused(lambda: alice.enter(spends=True))
    clock.now += 0.2
    alice.enter(spends=True)
    refused(lambda: alice.enter(spends=True))
    clock.now += 1e6
    assert alice.headers()["x-ratelimit-remaining-requests"] == "3"
    assert alice.headers()["x-ratelimit-reset-requests"] == "0s"


def test_tokens_may_be_overdrawn_and_are_paid_back() -> None:
    clock = Clock()
    alice = account(clock, tokens_per_minute=60)
    alice.enter(spends=True)
    spending = alice.spend(50)
    spending.see(Delta(0, "", ids=(1,) * 40))
    assert alice.headers()["x-ratelimit-remaining-tokens"] == "0"
    error = refused(alice.check_tokens)
    assert error.kind == "tokens"
    assert error.retry_after_s == pytest.approx(31)
    refused(lambda: alice.enter(spends=True))
    alice.enter(spends=False)  # a list of models takes none
    clock.now += 29
    refused(alice.check_tokens)
    clock.now += 2
    alice.check_tokens()


def test_the_prompt_of_a_refused_request_is_given_back() -> None:
    alice = account(Clock(), tokens_per_minute=60)
    alice.spend(50).see(RequestError("the queue is full", status=503))
    assert alice.headers()["x-ratelimit-remaining-tokens"] == "60"
    spending = alice.spend(50)
    spending.see(Delta(0, "", ids=(1,)))
    spending.see(RequestError("too late", status=504))
    spending.end()
    assert alice.headers()["x-ratelimit-remaining-tokens"] == "9"


def test_a_prompt_whose_time_ran_out_is_paid_for() -> None:
    """Else a client that waits for nothing could have any number of them computed."""
    alice = account(Clock(), tokens_per_minute=60)
    alice.spend(50).see(RequestError("it did not end in time", status=504))
    assert alice.headers()["x-ratelimit-remaining-tokens"] == "10"


def test_what_is_refused_costs_nothing() -> None:
    alice = account(Clock(), requests_per_minute=5, max_concurrent=1, tokens_per_minute=5)
    alice.enter(spends=True)
    for _ in range(10):
        assert refused(lambda: alice.enter(spends=True)).kind == "requests"
    alice.leave()
    alice.spend(5)
    for _ in range(10):
        assert refused(lambda: alice.enter(spends=True)).kind == "tokens"
    assert alice.headers()["x-ratelimit-remaining-requests"] == "4"
    alice.enter(spends=False)


def test_without_limits_there_is_nothing_to_say() -> None:
    nobody = Account()
    for _ in range(1000):
        nobody.enter(spends=True)
    nobody.spend(10**9)
    nobody.check_tokens()
    assert (nobody.headers(), nobody.tenant) == ({}, "")


STEPS = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=50)


@given(STEPS, st.integers(1, 1000))
def test_no_more_is_let_through_than_a_bucket_and_what_drips(
    steps: list[tuple[float, int]], per_minute: int
) -> None:
    """Over any time: what asks politely gets at most the limit and one minute's worth."""
    clock = Clock()
    alice, begun, admitted = account(clock, requests_per_minute=per_minute), clock.now, 0
    for wait, tries in steps:
        clock.now += wait
        for _ in range(tries):
            try:
                alice.enter(spends=True)
                admitted += 1
            except RequestError:
                pass
        most = per_minute + (clock.now - begun) * per_minute / 60
        assert admitted <= most + 1e-6


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 40), st.integers(0, 40)), max_size=50),
    st.integers(1, 1000),
)
def test_tokens_are_overdrawn_by_one_request_at_most(
    steps: list[tuple[float, int, int]], per_minute: int
) -> None:
    """Where requests come one after the other; of several at once, each may have its answer."""
    clock = Clock()
    alice, begun, taken = account(clock, tokens_per_minute=per_minute), clock.now, 0
    for wait, prompt, answer in steps:
        clock.now += wait
        try:
            alice.check_tokens()
        except RequestError:
            continue
        spending = alice.spend(prompt)
        for _ in range(answer):
            spending.see(Delta(0, "", ids=(1,)))
        taken += prompt + answer
        assert taken <= per_minute + (clock.now - begun) * per_minute / 60 + 40 + 40


@given(STEPS, st.integers(1, 1000))
def test_what_is_told_to_wait_gets_in_afterwards(
    steps: list[tuple[float, int]], per_minute: int
) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    for wait, amount in steps:
        bucket.take(amount)
        clock.now += wait
        assert bucket.level() <= per_minute
    seconds = bucket.seconds_until(1)
    clock.now += seconds + 1e-6
    assert bucket.level() >= 1 - 1e-6


@given(st.floats(0, 1e7))
def test_durations_are_go_like_and_never_too_short(seconds: float) -> None:
    text = duration(seconds)
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?|(\d+)ms", text)
    assert parts is not None, text
    hours, minutes, rest, milliseconds = (float(part or 0) for part in parts.groups())
    read = hours * 3600 + minutes * 60 + rest + milliseconds / 1000
    assert seconds - 1e-6 <= read <= seconds + 0.0011


# -- over HTTP -------------------------------------------------------------------------------


KEYS = Keys(
    [
        Key("free", digest(b"free")),
        Key("requests", digest(b"requests"), KeyLimits(requests_per_minute=2)),
        Key("tokens", digest(b"tokens"), KeyLimits(tokens_per_minute=20)),
        Key("one", digest(b"one"), KeyLimits(max_concurrent=1)),
    ]
)


async def ask(server: Server, key: str, path: str = COMPLETIONS, **more: Any) -> httpx.Response:
    fields: dict[str, Any] = {"model": "m", "prompt": "hi", **more}
    headers = {"authorization": f"Bearer {key}"}
    return await server.client.post(path, json=fields, headers=headers)


def check_refused(response: httpx.Response, kind: str) -> None:
    assert response.status_code == 429
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, "rate_limit_exceeded")
    assert int(response.headers["retry-after"]) >= 1
    assert "x-request-id" in response.headers


def limits_in(response: httpx.Response) -> dict[str, str]:
    return {
        name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")
    }


def test_a_limit_of_requests() -> None:
    async def test() -> None:
        async with serving(says("x"), keys=KEYS) as server:
            answers = [await ask(server, "requests") for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            check_refused(answers[2], "requests")
            remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
            assert remaining == ["1", "0", "0"]
            assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
            assert re.fullmatch(r"29\.\d+s|30s", answers[0].headers["x-ratelimit-reset-requests"])
            assert len(server.engine.added) == 2
            neighbour = await ask(server, "free")
            assert neighbour.status_code == 200
            assert limits_in(neighbour) == {}

    asyncio.run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_of_tokens(stream: bool) -> None:
    """Three of the prompt and six of the answer, its end included."""

    async def test() -> None:
        async with serving(says("hello"), keys=KEYS) as server:
            answers = []
            for _ in range(4):
                answers.append(await ask(server, "tokens", stream=stream))
                assert (await ask(server, "free", stream=stream)).status_code == 200
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            check_refused(answers[3], "tokens")
            assert answers[3].headers["x-ratelimit-limit-tokens"] == "20"
            assert answers[3].headers["x-ratelimit-remaining-tokens"] == "0"
            for path in (CHAT, EMBEDDINGS, "/generate"):
                check_refused(await ask(server, "tokens", path), "tokens")
            headers = {"authorization": "Bearer tokens"}
            models = await server.client.get("/v1/models", headers=headers)
            assert models.status_code == 200
            assert models.headers["x-ratelimit-remaining-tokens"] == "0"

    asyncio.run(test())


def test_vectors_take_tokens_too() -> None:
    async def test() -> None:
        async with serving(gives_vectors, keys=KEYS, generates=False) as server:
            asked = {"model": "m", "input": ["a" * 15, "b" * 15]}
            headers = {"authorization": "Bearer tokens"}
            first = await server.client.post(EMBEDDINGS, json=asked, headers=headers)
            assert first.status_code == 200
            assert {add.tenant for add in server.engine.added} == {"tokens"}
            check_refused(
                await server.client.post(EMBEDDINGS, json=asked, headers=headers), "tokens"
            )

    asyncio.run(test())


def test_requests_that_came_at_once_are_held_to_the_tokens_too() -> None:
    """Each is let in, since none has paid yet, but is charged before it is queued."""

    async def test() -> None:
        async with serving(says("x"), keys=KEYS) as server:
            asked = (ask(server, "tokens", prompt="a" * 30) for _ in range(5))
            answers = await asyncio.gather(*asked)
            assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429, 429]

    asyncio.run(test())


def test_other_keys_may_come_while_requests_go_on() -> None:
    clock = Clock()
    before = Keys(
        [
            Key("stays", digest(b"one"), KeyLimits(tokens_per_minute=60, max_concurrent=1)),
            Key("goes", digest(b"two")),
            Key("turns", digest(b"three"), KeyLimits(requests_per_minute=1)),
        ]
    )
    accounts = Accounts(before, clock)
    stays, goes, turns = (accounts.of(key) for key in (b"one", b"two", b"three"))
    assert stays is not None
    assert goes is not None
    assert turns is not None
    stays.enter(spends=True)
    stays.spend(40)
    turns.enter(spends=False)
    accounts.replace(
        Keys(
            [
                Key("stays", digest(b"one"), KeyLimits(tokens_per_minute=30, max_concurrent=1)),
                Key("turns", digest(b"another"), share=2.0),
                Key("comes", digest(b"two"), KeyLimits(requests_per_minute=1)),
            ]
        )
    )
    assert accounts.of(b"one") is stays
    with pytest.raises(RequestError, match="1 requests at one time"):
        stays.enter(spends=False)
    stays.leave()
    with pytest.raises(RequestError, match="30 tokens per minute"):
        stays.enter(spends=True)
    clock.now += 60
    stays.enter(spends=True)
    assert accounts.of(b"three") is None
    assert accounts.of(b"another") is turns
    assert turns.share == 2.0
    turns.enter(spends=False)
    assert accounts.of(b"two") is not goes
    goes.leave()


def test_a_limit_of_requests_at_one_time() -> None:
    async def test() -> None:
        async with serving(endless, keys=KEYS) as server:
            first = asyncio.ensure_future(ask(server, "one", max_tokens=400))
            while not server.engine.added:
                await asyncio.sleep(0.001)
            check_refused(await ask(server, "one"), "requests")
            first.cancel()
            await asyncio.wait([first])
            server.engine.script = says("x")
            assert (await ask(server, "one")).status_code == 200
            assert (await ask(server, "one")).status_code == 200

    asyncio.run(test())


def test_the_share_of_the_key_goes_along() -> None:
    async def test() -> None:
        keys = Keys([Key("alice", digest(b"one"), share=2.5), Key("bob", digest(b"two"))])
        async with serving(says("x"), keys=keys) as server:
            for key in ("one", "two"):
                server.client.headers["authorization"] = f"Bearer {key}"
                await server.chat()
            assert [add.share for add in server.engine.added] == [2.5, 1.0]

    asyncio.run(test())


def test_the_name_of_the_key_is_the_tenant() -> None:
    async def test() -> None:
        async with serving(says("x"), keys=KEYS) as server:
            await ask(server, "free")
            await ask(server, "tokens", stream=True)
            assert [add.tenant for add in server.engine.added] == ["free", "tokens"]
        async with serving(says("x"), api_key="mine") as server:
            await ask(server, "mine")
            assert [add.tenant for add in server.engine.added] == ["default"]
        async with serving(says("x")) as server:
            await ask(server, "whoever")
            assert [add.tenant for add in server.engine.added] == [""]

    asyncio.run(test())


def test_every_answer_to_a_limited_key_says_what_is_left() -> None:
    """Errors of every kind included."""

    def breaks(add: Add) -> list[Output]:
        return [Output(add.id, choice=7, tokens=[1])]

    async def test() -> None:
        key = Key("a", digest(b"a"), KeyLimits(requests_per_minute=100, tokens_per_minute=10_000))
        async with serving(breaks, keys=Keys([key])) as server:
            headers = {"authorization": "Bearer a"}
            client = server.client
            answers = [
                await ask(server, "a"),
                await ask(server, "a", model="other"),
                await ask(server, "a", nonsense=1),
                await client.post(COMPLETIONS, content=b"{", headers=headers),
                await client.get("/nowhere", headers=headers),
                await client.delete("/v1/models", headers=headers),
            ]
            assert [each.status_code for each in answers] == [500, 404, 400, 400, 404, 405]
            assert all(len(limits_in(each)) == 6 for each in answers)
            assert limits_in(await client.get("/health", headers=headers)) == {}
            stranger = await client.get("/v1/models")
            assert (stranger.status_code, limits_in(stranger)) == (401, {})

    asyncio.run(test())


def test_every_503_says_when_to_come_again() -> None:
    async def test() -> None:
        async with serving(refuses(503, "queue_full"), keys=KEYS) as server:
            for stream in (False, True):
                answer = await ask(server, "tokens", stream=stream)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.headers["x-ratelimit-remaining-tokens"] == "20"  # it got nothing
            server.engine.die("it was killed")
            for answer in (await ask(server, "free"), await server.client.get("/readyz")):
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"

    asyncio.run(test())

"""A server with several keys, some of them limited: nobody gets in who should not, and nobody pays
for what another one takes."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI, RateLimitError

from tests.e2e.conftest import Server, start_server
from tests.faults.conftest import Answer, say

KEYS = """
[keys.alice]
key = "key-of-alice"

[keys.requests]
key = "key-of-requests"
requests_per_minute = 3

[keys.tokens]
key = "key-of-tokens"
tokens_per_minute = 60

[keys.concurrent]
key = "key-of-concurrent"
max_concurrent = 2

[keys.refused]
key = "key-of-refused"
requests_per_minute = 1
"""
APP = "https://app.example"
ASK: dict[str, Any] = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 12, "seed": 7}
HOST = b"Host: here\r\nConnection: close\r\n"
BEARER = b"Authorization: Bearer key-of-alice\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def keyed(model_folder: Path, folder: Path) -> Iterator[Server]:
    file = folder / "keys.toml"
    file.write_text(KEYS)
    with (folder / "log").open("wb") as log:
        running = start_server(
            str(model_folder),
            f"--api-key-file={file}",
            f"--cors-origin={APP}",
            model="tiny-llama",
            stderr=log,
        )
    yield running
    assert running.stop() == 0


def ask(server: Server, name: str = "alice", **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer key-of-{name}"}
    fields = {**ASK, **more}
    return httpx.post(f"{server.url}/v1/completions", json=fields, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def undisturbed(keyed: Server) -> str:
    return str(ask(keyed).json()["choices"][0]["text"])


@pytest.fixture(autouse=True)
def _neighbours(keyed: Server, undisturbed: str) -> Iterator[None]:
    """After every fault: the same tokens, no block in use, healthy."""
    yield
    assert ask(keyed).json()["choices"][0]["text"] == undisturbed
    keyed.wait_until_idle()


def get(server: Server, target: bytes, more: bytes = b"", host: bytes = HOST) -> Answer:
    return say(server, b"GET " + target + b" HTTP/1.1\r\n" + host + more + b"\r\n")


# -- keys ------------------------------------------------------------------------------------


def test_every_route_but_the_probes_wants_a_key(keyed: Server) -> None:
    headers = {"authorization": "Bearer key-of-alice"}
    described = httpx.get(f"{keyed.url}/openapi.json", headers=headers).json()["paths"]
    routes = [(method, path) for path, methods in described.items() for method in methods]
    routes += [("get", path) for path in ("/openapi.json", "/docs", "/redoc", "/", "/nowhere")]
    open_ones = {"/health", "/livez", "/readyz"}
    assert open_ones < {path for _, path in routes}
    assert len(routes) > 15
    wrong = ("", "Bearer wrong", "Bearer key-of-alic", "Basic key-of-alice", "key-of-alice")
    with httpx.Client() as client:
        for method, path in routes:
            target = keyed.url + re.sub(r"\{.*?\}", "x", path)
            for sent in wrong:
                more = {"authorization": sent} if sent else {}
                answer = client.request(method, target, headers=more)
                if path in open_ones:
                    assert answer.status_code == 200
                    continue
                assert answer.status_code == 401, (method, path, sent)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.request(method, target, headers=headers).status_code != 401, path


TARGETS = [
    b"/%68ealth",
    b"/health%20",
    b"/%2fhealth",
    b"//health",
    b"///health",
    b"/health/",
    b"/health/.",
    b"/./health",
    b"/health/../v1/models",
    b"/health/..%2fv1/models",
    b"/health%2f..%2fv1%2fmodels",
    b"/health\\..\\v1\\models",
    b"/readyz/%2e%2e/metrics",
    b"/health;x",
    b"/health;/v1/models",
    b"/health%00/v1/models",
    b"/health%3fx",
    b"/health%23x",
    b"/HEALTH",
    b"/v1/models",
    b"/v1/models?/health",
    b"/v1/models?x=/health",
    b"/v1/models#/health",
    b"/v1/models;/health",
    b"/v1//models",
    b"/metrics",
    b"http://here/v1/models",
    b"http://here//health",
    b"http://here/%68ealth",
    b"http://health/v1/models",
    b"http://here/health@here/v1/models",
    b"http://user:word@here/v1/models",
    b"https://livez/metrics",
    b"http://here?/health",
    b"http://here",
    b"*",
    b"here:80",
    b"health",
    b"\xc3\xa9",
]


@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS", b"HEAD"])
def test_a_path_is_not_mistaken_for_an_open_one(keyed: Server, method: bytes) -> None:
    for target in TARGETS:
        answer = say(keyed, method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answer.status in (400, 401), target
        if method != b"HEAD":
            assert set(answer.error) == {"message", "type", "param", "code"}


def test_the_probes_are_open_however_they_are_asked_for(keyed: Server) -> None:
    for target in (b"/health", b"/livez", b"/readyz?x", b"http://there/health"):
        assert get(keyed, target).status == 200, target


HEADERS = [
    b"Host: /health\r\n",
    b"X-Original-URL: /health\r\n",
    b"X-Rewrite-URL: /health\r\n",
    b"X-Forwarded-Path: /health\r\n",
    b"X-Forwarded-Prefix: /health\r\n",
    b"X-HTTP-Method-Override: GET\r\n",
    b"Forwarded: for=127.0.0.1;host=health\r\n",
    b"X-Forwarded-For: 127.0.0.1\r\n",
    b"Authorization: Bearer\r\n",
    b"Authorization: Bearer \r\n",
    b"Authorization: Bearer key-of-alice,Bearer key-of-alice\r\n",
    b"Authorization: Bearer wrong\r\n" + BEARER,
    BEARER + b"Authorization: Bearer wrong\r\n",
    b"Authorization: Bearer \xff\xfe\r\n",
    b"Authorization: Bearer " + b"a" * 30_000 + b"\r\n",
    b"Proxy-Authorization: Bearer key-of-alice\r\n",
    b"Cookie: Authorization=Bearer key-of-alice\r\n",
]


def test_no_header_opens_a_route_but_one_key(keyed: Server) -> None:
    for more in HEADERS:
        for target in (b"/v1/models", b"/v1/models?api_key=key-of-alice&key=key-of-alice"):
            assert get(keyed, target, more).status in (400, 401), more


NO_HOSTS = [
    b"",
    b"Host: here\r\nHost: there\r\n",
    b"Host: here/health?\r\n",
    b"Host: here/health#\r\n",
    b"Host: /health\r\n",
    b"Host: here there\r\n",
    b"Host: user@here\r\n",
    b"Host: he\xffre\r\n",
    b'Host: "here"\r\n',
    b"Host: http://here\r\n",
]


def test_a_host_that_is_none(keyed: Server) -> None:
    for host in NO_HOSTS:
        for target in (b"/health", b"/v1/models", b"http://here/v1/models"):
            line = host + b"Connection: close\r\n"
            assert get(keyed, target, BEARER, line).status == 400, host


def test_a_host_of_another_name_changes_nothing(keyed: Server) -> None:
    for host in (b"evil.example", b"127.0.0.1:1", b"[::1]:80", b"health", b""):
        line = b"Host: " + host + b"\r\nConnection: close\r\n"
        assert get(keyed, b"/v1/models", b"", line).status == 401
        assert get(keyed, b"/v1/models", BEARER, line).status == 200
        assert b"/nowhere" in get(keyed, b"/nowhere", BEARER, line).body


# -- what is asked for -----------------------------------------------------------------------


def test_a_wrong_method_or_path(keyed: Server) -> None:
    for method, path, status in [
        ("GET", "/v1/completions", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/metrics", 405),
        ("TRACE", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v2/completions", 404),
        ("GET", "/v1/../../etc/passwd", 404),
    ]:
        line = f"{method} {path} HTTP/1.1\r\n".encode()
        answer = say(keyed, line + HOST + BEARER + b"\r\n")
        assert answer.status == status, (method, path)
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert path in answer.error["message"]


def test_a_wrong_content_type(keyed: Server) -> None:
    kinds = ("text/xml", "application/octet-stream", "multipart/form-data; boundary=x", "x")
    with httpx.Client(headers={"authorization": "Bearer key-of-alice"}) as client:
        for kind in kinds:
            for content in (json.dumps(ASK).encode(), b"<a/>", b"--x--"):
                answer = client.post(
                    f"{keyed.url}/v1/completions", content=content, headers={"content-type": kind}
                )
                assert answer.status_code in (400, 415), (kind, content)
                assert answer.json()["error"]["type"] == "invalid_request_error"


# -- limits ----------------------------------------------------------------------------------


def check_refused(answer: httpx.Response, kind: str) -> None:
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == (kind, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1


class Flood:
    """Many requests of one key at once, until it is told to stop."""

    def __init__(self, server: Server, name: str, **more: Any) -> None:
        self.answers: list[httpx.Response] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(8)
        self._work = [
            self._pool.submit(self._run, lambda: ask(server, name, **more)) for _ in range(8)
        ]

    def _run(self, ask_once: Any) -> None:
        while not self._stop.is_set():
            self.answers.append(ask_once())
            time.sleep(0.005)

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._work:
            each.result(60)
        self._pool.shutdown()


def test_a_limit_of_requests_per_minute(keyed: Server, undisturbed: str) -> None:
    with Flood(keyed, "requests") as flood:
        for _ in range(3):
            assert ask(keyed).json()["choices"][0]["text"] == undisturbed
    good = [answer for answer in flood.answers if answer.status_code == 200]
    assert len(good) == 3
    assert {answer.json()["choices"][0]["text"] for answer in good} == {undisturbed}
    for answer in flood.answers:
        if answer.status_code != 200:
            check_refused(answer, "requests")
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert re.fullmatch(
                r"\d+m?s|\d+\.\d+s|1m0s", answer.headers["x-ratelimit-reset-requests"]
            )
    assert len(flood.answers) > 3


def test_a_limit_of_tokens_per_minute(keyed: Server, undisturbed: str) -> None:
    """Two or three answers, and then no more; each is whole."""
    with Flood(keyed, "tokens", max_tokens=30, ignore_eos=True) as flood:
        for _ in range(3):
            assert ask(keyed).json()["choices"][0]["text"] == undisturbed
    good = [answer for answer in flood.answers if answer.status_code == 200]
    assert 1 <= len(good) <= 8  # those that came before the first one had paid
    assert all(answer.json()["usage"]["completion_tokens"] == 30 for answer in good)
    check_refused(ask(keyed, "tokens"), "tokens")
    check_refused(ask(keyed, "tokens", stream=True), "tokens")


def test_a_limit_of_requests_at_one_time(keyed: Server, undisturbed: str) -> None:
    """The place of a client that has left is free again."""
    long = {"max_tokens": 480, "ignore_eos": True, "stream": True}
    headers = {"authorization": "Bearer key-of-concurrent"}
    url = f"{keyed.url}/v1/completions"
    with httpx.Client(timeout=60) as client:
        for _ in range(2):
            with (
                client.stream("POST", url, json={**ASK, **long}, headers=headers) as first,
                client.stream("POST", url, json={**ASK, **long}, headers=headers) as second,
            ):
                assert (first.status_code, second.status_code) == (200, 200)
                check_refused(ask(keyed, "concurrent"), "requests")
                assert ask(keyed).json()["choices"][0]["text"] == undisturbed
            keyed.wait_until_idle()
    assert ask(keyed, "concurrent").json()["choices"][0]["text"] == undisturbed


def test_the_openai_client_understands_a_refusal(keyed: Server) -> None:
    client = OpenAI(base_url=f"{keyed.url}/v1", api_key="key-of-refused", max_retries=0)
    client.models.list()
    with pytest.raises(RateLimitError) as caught:
        client.models.list()
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_keys_are_read_again_on_a_hangup_while_answers_go_on(keyed: Server, folder: Path) -> None:
    file, log = folder / "keys.toml", folder / "log"
    engine = keyed.engine_pid()
    asked = {**ASK, "max_tokens": 200, "ignore_eos": True, "stream": True}
    new = KEYS.replace("key-of-concurrent", "key-of-newcomer").replace("concurrent", "newcomer", 1)
    headers = {"authorization": "Bearer key-of-concurrent"}
    with httpx.Client(base_url=keyed.url, headers=headers, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            assert answer.status_code == 200
            pieces = answer.iter_text()
            next(pieces)
            file.write_text(new)
            keyed.process.send_signal(signal.SIGHUP)
            until(lambda: ask(keyed, "newcomer").status_code == 200)
            assert ask(keyed, "concurrent").status_code == 401
            assert "".join(pieces).endswith("data: [DONE]\n\n")
        assert client.get("/v1/models").status_code == 401, "the connection is still open"
    assert keyed.engine_pid() == engine
    file.write_text("[keys.alice]\nkey = 3\n")
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: "the API keys stay as they were" in log.read_text())
    (line,) = (each for each in log.read_text().splitlines() if "stay as they were" in each)
    assert line.endswith("keys.alice.key must be a text that is not empty")
    assert ask(keyed, "newcomer").status_code == 200
    file.write_text(KEYS)
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: ask(keyed, "concurrent").status_code == 200)
    assert ask(keyed, "newcomer").status_code == 401


def test_what_is_no_http_is_one_line_of_the_log(keyed: Server, folder: Path) -> None:
    def lines() -> list[str]:
        return (folder / "log").read_text().splitlines()

    httpx.get(f"{keyed.url}/livez", headers={"x-request-id": "the-line-before"})
    until(lambda: any("the-line-before" in line for line in lines()))
    before = len(lines())
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n"
    assert say(keyed, b"NONSENSE\r\n\r\n").status == 400
    assert say(keyed, b"GET /livez HTTP/1.1\r\nHost: here\r\n" + upgrade + b"\r\n").status == 200
    until(lambda: len(lines()) >= before + 2)
    time.sleep(0.1)
    told = lines()[before:]
    assert len(told) == 2, told
    refused, answered = told
    assert "refused: 400" in refused
    assert "GET /livez 200" in answered


# -- other pages, other keys -----------------------------------------------------------------


def test_a_page_asks_without_a_key_and_reads_errors(keyed: Server) -> None:
    asked = {"origin": APP, "access-control-request-method": "POST"}
    answer = httpx.options(f"{keyed.url}/v1/completions", headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, APP)
    answer = httpx.get(f"{keyed.url}/v1/models", headers={"origin": APP})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, APP)


def test_keys_do_not_share_the_prefix_cache(keyed: Server) -> None:
    """Else one could find out by the time it takes what another one has asked."""
    prompt = "a secret that only alice knows, and it is a long one, too long to be guessed " * 2

    def cached(name: str) -> int:
        usage = ask(keyed, name, prompt=prompt, max_tokens=1).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("alice") == 0
    assert cached("alice") > 0
    assert cached("concurrent") == 0
    assert cached("concurrent") > 0

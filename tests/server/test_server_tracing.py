"""Traces of requests: one server span with its phases, in the caller's trace, without content."""

from __future__ import annotations

import asyncio
import http.server
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.server import tracing_options
from tests.server.fakes import Exchange, Server, endless, gives_vectors, refuses, says, serving
from tests.server.test_server_logs import process
from tests.server.test_timeline import slow

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is absent")

import itertools

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rosellm.roseinfer.server.tracing import Tracing

SECRET = "topsecret"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def memory() -> Any:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(memory: Any) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider, "m")


def of(memory: Any) -> tuple[Any, list[Any]]:
    """The one server span that there is, and those in it."""
    spans = memory.get_finished_spans()
    [server] = [each for each in spans if each.kind is SpanKind.SERVER]
    children = [each for each in spans if each is not server]
    for child in children:
        assert child.parent.span_id == server.context.span_id
        assert child.context.trace_id == server.context.trace_id
    memory.clear()
    return server, sorted(children, key=lambda each: each.start_time)


def seconds(span: Any) -> float:
    return float(span.end_time - span.start_time) / 1e9


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_phases_inside(
    memory: Any, tracing: Any, stream: bool
) -> None:
    async def test() -> None:
        async with serving(says(""), tracing=tracing) as server:
            slow(server)
            answer = await server.chat(
                messages=[{"role": "user", "content": SECRET}], user="alice-7", stream=stream
            )
            assert answer.status_code == 200

    asyncio.run(test())
    server, children = of(memory)
    assert server.name == "POST /v1/chat/completions"
    assert server.parent is None
    found = dict(server.attributes)
    assert found["http.request.method"] == "POST"
    assert found["http.route"] == "/v1/chat/completions"
    assert found["http.response.status_code"] == 200
    assert found["rosellm.request_id"].startswith("req_")
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "m"
    assert found["gen_ai.usage.input_tokens"] > len(SECRET)
    assert found["gen_ai.usage.cache_read.input_tokens"] == 1
    assert found["gen_ai.usage.output_tokens"] == 3
    assert found["gen_ai.response.finish_reasons"] == ("stop",)
    assert server.status.status_code is not StatusCode.ERROR

    names = [each.name for each in children]
    assert names == [*names[:-5], "queue", "prefill", "decode", "engine", "respond"]
    assert set(names[:-5]) <= {"receive", "tokenise", "grammar"}
    spent = {each.name: seconds(each) for each in children}
    for name, slept in (("queue", 0.1), ("prefill", 0.2), ("decode", 0.3)):
        assert spent[name] >= slept
    assert sum(map(seconds, children)) == pytest.approx(seconds(server), rel=0.01)
    for earlier, later in itertools.pairwise(children):
        assert earlier.end_time == later.start_time
    everything = " ".join(each.to_json() for each in [server, *children])
    assert SECRET not in everything
    assert "alice-7" not in everything


@pytest.mark.parametrize("sampled", [True, False])
def test_a_span_belongs_to_the_callers_trace(memory: Any, tracing: Any, sampled: bool) -> None:
    async def test() -> None:
        async with serving(says("x"), tracing=tracing) as server:
            sent = f"00-{TRACE}-{PARENT}-0{int(sampled)}"
            body = {"model": "m", "prompt": "x"}
            headers = {"traceparent": sent, "tracestate": "vendor=1"}
            await server.client.post("/v1/completions", json=body, headers=headers)

    asyncio.run(test())
    if not sampled:
        assert memory.get_finished_spans() == ()
        return
    server, children = of(memory)
    assert f"{server.context.trace_id:032x}" == TRACE
    assert f"{server.parent.span_id:016x}" == PARENT
    assert server.context.trace_state.get("vendor") == "1"
    assert children


def test_a_traceparent_that_is_none_begins_a_trace(memory: Any, tracing: Any) -> None:
    async def test() -> None:
        async with serving(says("x"), tracing=tracing) as server:
            body = {"model": "m", "prompt": "x"}
            headers = {"traceparent": f"00-{'0' * 32}-{SECRET}-01"}
            await server.client.post("/v1/completions", json=body, headers=headers)

    asyncio.run(test())
    server, _ = of(memory)
    assert server.parent is None


def test_what_goes_wrong_is_told_and_nothing_that_was_said(memory: Any, tracing: Any) -> None:
    async def ask(server: Server, what: Any) -> Any:
        await what
        return of(memory)[0]

    async def test() -> None:
        async with serving(refuses(500, "boom"), tracing=tracing) as server:
            failed = await ask(server, server.chat())
            assert failed.attributes["error.type"] == "500"
            assert failed.status.status_code is StatusCode.ERROR
            refused = await ask(server, server.chat(temperature=9, user=SECRET))
            assert refused.attributes["http.response.status_code"] == 400
            assert refused.status.status_code is not StatusCode.ERROR
            assert "gen_ai.usage.input_tokens" not in refused.attributes
            nowhere = await ask(server, server.client.get(f"/{SECRET}?{SECRET}"))
            assert nowhere.name == "GET"
            assert SECRET not in nowhere.to_json()
            other = await ask(server, server.chat(model=SECRET))
            assert SECRET not in other.to_json()

    asyncio.run(test())


def test_a_client_that_left_is_told(memory: Any, tracing: Any) -> None:
    async def test() -> None:
        async with serving(endless, tracing=tracing) as server:
            body = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 400}
            exchange = Exchange(server.app, "/v1/completions", body)
            await exchange.sent.get()
            exchange.leave()
            await exchange.task

    asyncio.run(test())
    server, _ = of(memory)
    assert server.attributes["rosellm.client_disconnected"] is True
    assert server.attributes["gen_ai.operation.name"] == "text_completion"


def test_vectors_are_traced_and_probes_are_not(memory: Any, tracing: Any) -> None:
    async def test() -> None:
        async with serving(gives_vectors, tracing=tracing) as server:
            for path in ("/health", "/livez", "/readyz", "/metrics"):
                await server.client.get(path)
            await server.embed(input=[SECRET, "b"])

    asyncio.run(test())
    server, children = of(memory)
    assert server.attributes["gen_ai.operation.name"] == "embeddings"
    assert server.attributes["gen_ai.usage.input_tokens"] == len(SECRET) + 3
    assert "engine" in [each.name for each in children]


# -- how it is asked for -----------------------------------------------------------------------


class Collector(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("by", ["flag", pytest.param("variable", marks=pytest.mark.slow)])
def test_spans_reach_a_collector_at_the_latest_when_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    received: list[tuple[str, bytes]] = []
    handler = type("Handler", (Collector,), {"received": received})
    collector = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}"
    flags = ["--otlp-endpoint", url] if by == "flag" else []
    if by == "variable":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    (tmp_path / "m").mkdir()
    with process(tmp_path / "m", *flags) as (running, client):
        body = {"model": "m", "prompt": SECRET}
        assert client.post("/v1/completions", json=body).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0
    collector.shutdown()
    collector.server_close()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    assert b"POST /v1/completions" in sent
    assert (b"mine" if by == "variable" else b"rosellm") in sent
    assert SECRET.encode() not in sent


@pytest.mark.slow
def test_a_collector_that_is_not_there_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    gone = ["--otlp-endpoint", "http://127.0.0.1:9"]
    with process(tmp_path / "m", *gone, stderr=subprocess.DEVNULL) as (running, client):
        body = {"model": "m", "prompt": "x"}
        assert client.post("/v1/completions", json=body).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0


WITHOUT = """
import sys
sys.modules["opentelemetry.sdk"] = None
from rosellm.roseinfer.server.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [("http://localhost:4318", "pip install 'rosellm[otel]'"), ("localhost:4318", "not a URL")],
)
def test_a_mistake_is_one_line(tmp_path: Path, endpoint: str, complaint: str) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), "--otlp-endpoint", endpoint]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --otlp-endpoint ")
    assert complaint in line


def test_opentelemetrys_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing_options.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not tracing_options.asked_by_environment()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x/v1/traces")
    assert tracing_options.asked_by_environment()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not tracing_options.asked_by_environment()
    tracing_options.check_tracing(ServerConfig())
    assert tracing_options.traces_url("http://c:4318/") == "http://c:4318/v1/traces"
    assert tracing_options.traces_url("http://c/v1/traces") == "http://c/v1/traces"

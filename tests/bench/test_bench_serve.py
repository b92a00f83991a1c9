"""``rosellm bench serve`` from its command line, against a server whose answers are known."""

from __future__ import annotations

import json
import socket

import pytest

from rosellm.cli import main
from tests.bench.fake_server import FakeServer, running

LATENCY = {"mean", "p50", "p90", "p99", "max"}
SCHEMA = {
    "benchmark": str, "model": str, "endpoint": str, "mode": str, "trace": str | None,
    "input_tokens_asked": str | None, "output_tokens_asked": str | None, "ignore_eos": bool,
    "temperature": float, "seed": int, "requests": int, "completed": int, "failed": int,
    "errors": dict, "duration_s": float, "requests_per_s": float | None,
    "output_tokens_per_s": float | None, "total_tokens_per_s": float | None,
    "prompt_tokens": dict | None, "output_tokens": dict | None, "text_chunks": int,
    "without_usage": int, "ttft_ms": dict | None, "itl_ms": dict | None, "tpot_ms": dict | None,
    "e2e_ms": dict | None, "connect_ms": dict | None, "late_ms": dict | None, "client_cpu": float,
}  # fmt: skip


@pytest.fixture
def bench(capfd):
    """Return a function that runs the command and returns its exit code, figures and output."""

    def run(server, *flags):
        with running(server):
            code = main(["bench", "serve", "--base-url", server.url, *flags])
        out, err = capfd.readouterr()
        lines = out.splitlines()
        return code, json.loads(lines[-1]) if lines else None, out + err

    return run


def test_the_last_line_is_the_whole_report(bench):
    code, found, _ = bench(FakeServer(), "--num-requests", "3", "--output-tokens", "2:4")
    assert code == 0
    assert set(found) == set(SCHEMA)
    wrong = [name for name, kind in SCHEMA.items() if not isinstance(found[name], kind)]
    assert wrong == []
    assert {frozenset(found[name]) for name in found if name.endswith("_ms")} == {
        frozenset(LATENCY)
    }


def test_times_are_the_servers(bench):
    server = FakeServer(first_s=0.05, gap_s=0.01)
    flags = ("--num-requests", "4", "--concurrency", "2", "--output-tokens", "5")
    _, found, _ = bench(server, *flags)
    assert 50 <= found["ttft_ms"]["p50"] < 500
    assert 9 <= found["itl_ms"]["p50"] < 200
    assert 9 <= found["tpot_ms"]["p50"] < 200
    assert 90 <= found["e2e_ms"]["p50"] < 1000
    assert found["output_tokens"]["total"] == found["text_chunks"] == 20
    assert found["duration_s"] >= 0.18  # two after two


def test_an_event_counts_when_it_is_complete(bench):
    _, found, _ = bench(FakeServer(pieces=7), "--num-requests", "1", "--output-tokens", "3")
    assert found["text_chunks"] == 3
    assert found["itl_ms"]["p50"] >= 5  # six sleeps of a millisecond before the last piece


def test_prompts_have_the_length_asked_for(bench):
    server = FakeServer()
    _, found, _ = bench(server, "--num-requests", "5", "--input-tokens", "101:301")
    assert 100 <= found["prompt_tokens"]["min"] <= found["prompt_tokens"]["max"] <= 302
    prompts = [request["messages"][0]["content"] for request in server.requests]
    assert len(set(prompts)) == 7  # two probes among them


def test_only_fields_that_openai_has(bench):
    server = FakeServer()
    bench(server, "--num-requests", "1", "--output-tokens", "3")
    sent = server.requests[-1]
    assert set(sent) == {
        "model", "messages", "max_tokens", "temperature", "stream", "stream_options",
    }  # fmt: skip
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("fake", 3, 0)
    assert sent["stream_options"] == {"include_usage": True}


def test_token_ids_seeds_and_ignore_eos(bench):
    server = FakeServer()
    code, found, _ = bench(
        server,
        *("--endpoint", "completions", "--token-ids", "5:9", "--input-tokens", "33"),
        *("--num-requests", "2", "--ignore-eos", "--temperature", "0.5", "--model", "other"),
    )
    assert code == 0
    assert found["prompt_tokens"]["total"] == 66
    assert [request.get("seed") for request in server.requests[1:]] == [0, 1]
    for request in server.requests[1:]:
        assert request["ignore_eos"] is True
        assert request["model"] == "other"
        assert set(request["prompt"]) <= set(range(5, 10))


def test_an_api_key_is_sent_from_the_named_variable(bench, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "Secret")
    server = FakeServer()
    _, _, output = bench(server, "--num-requests", "1", "--api-key-env", "SOME_KEY")
    assert {headers["authorization"] for headers in server.headers} == {"bearer secret"}
    assert "Secret" not in output


def test_failures_are_counted_and_shown(bench):
    server = FakeServer(fail={3: "busy", 4: "broken", 5: "in stream"})
    code, found, output = bench(server, "--num-requests", "4", "--output-tokens", "3")
    assert code == 0
    assert (found["completed"], found["failed"]) == (1, 3)
    assert sorted(found["errors"]) == [
        "HTTP 503: the queue is full",
        "in the stream: out of memory",
        "the connection closed before the answer was whole",
    ]
    assert "the queue is full" in output.rpartition("\n{")[0]


def test_the_exit_code_is_1_if_nothing_worked(bench):
    server = FakeServer(fail={3: "busy", 4: "busy"})
    code, found, _ = bench(server, "--num-requests", "2")
    assert code == 1
    assert (found["completed"], found["failed"], found["ttft_ms"]) == (0, 2, None)


def test_a_server_that_never_answers_is_not_waited_for(bench):
    flags = ("--num-requests", "1", "--timeout", "0.2", "--output-tokens", "50")
    code, found, _ = bench(FakeServer(gap_s=0.05), *flags)
    assert code == 1
    assert list(found["errors"]) == ["no whole answer within 0.2 s"]


def test_without_usage_there_is_no_length_to_go_by(bench):
    code, _, output = bench(FakeServer(usage=False), "--num-requests", "1")
    assert code == 2
    assert "reports no usage" in output


def test_no_server_is_one_clear_line(capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert main(["bench", "serve", "--base-url", url]) == 2
    assert "no connection" in capfd.readouterr().err


def test_an_open_loop_sends_when_requests_are_due(bench):
    server = FakeServer(first_s=0.3)
    flags = ("--rate", "100", "--num-requests", "20", "--output-tokens", "1")
    _, found, _ = bench(server, *flags)
    assert found["completed"] == 20
    assert found["duration_s"] < 3  # 6 s one after another
    assert found["mode"] == "open loop, Poisson, 100 requests/s"


def test_a_trace_is_replayed_at_its_own_times(bench, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(
            json.dumps({"timestamp": at, "input_length": 40, "output_length": 2}) + "\n"
            for at in (0, 100, 400)
        )
    )
    _, found, _ = bench(FakeServer(), "--trace", str(trace))
    assert (found["completed"], found["trace"]) == (3, "trace.jsonl")
    assert 0.4 <= found["duration_s"] < 3
    _, found, _ = bench(FakeServer(), "--trace", str(trace), "--concurrency", "1")
    assert found["mode"] == "closed loop, concurrency 1"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--token-ids", "1:5"], "--endpoint completions"),
        (["--rate", "1", "--concurrency", "1"], "pass one of them"),
        (["--input-tokens", "9:3"], "must rise"),
        (["--rate", "0"], "more than 0"),
        (["--base-url", "nowhere"], "--base-url"),
    ],
)
def test_flags_that_make_no_sense(flags, complaint, capfd):
    assert main(["bench", "serve", *flags]) == 2
    assert complaint in capfd.readouterr().err

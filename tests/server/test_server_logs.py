"""Log lines: one a request, for people or as JSON, and never in the way of an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from rosellm.roseinfer import logs
from rosellm.roseinfer.messages import Output
from tests.server.fakes import Exchange, Server, endless, says, serving
from tests.server.test_server_life import wait_until_healthy

ROOT = Path(__file__).parents[2]
SECRET = "topsecret"


def lines(caplog: pytest.LogCaptureFixture, *, json_form: bool = True) -> list[Any]:
    """The access log's lines in either form."""
    form = logs.Json() if json_form else logs.Text()
    found = [form.format(each) for each in caplog.records if each.name == "rosellm.access"]
    return [json.loads(each) for each in found] if json_form else found


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="rosellm.access")
    return caplog


# -- what is in a line -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_one_line_with_what_it_cost(access: Any, stream: bool) -> None:
    async def test() -> None:
        async with serving(says("hello", cached=2)) as server:
            headers = {"x-request-id": "mine"}
            body = {"model": "m", "prompt": SECRET, "stream": stream, "n": 2}
            answer = await server.client.post("/v1/completions", json=body, headers=headers)
            assert answer.headers["x-request-id"] == "mine"

    asyncio.run(test())
    [line] = lines(access)
    written = datetime.fromisoformat(line["time"])
    assert abs(written.timestamp() - time.time()) < 60
    assert (line["level"], line["logger"]) == ("info", "rosellm.access")
    assert (line["request_id"], line["method"], line["path"]) == ("mine", "POST", "/v1/completions")
    assert (line["status"], line["disconnected"], line["key_name"]) == (200, False, None)
    assert (line["prompt_tokens"], line["cached_tokens"]) == (1 + len(SECRET), 2)
    assert (line["completion_tokens"], line["finish_reasons"]) == (12, ["stop"])
    assert 0 < line["timings"]["total_s"] <= line["seconds"] * 1.01 + 0.001
    assert SECRET not in json.dumps(line)
    [text] = lines(access, json_form=False)
    for part in ("POST /v1/completions 200 ", " mine ", f"tokens={1 + len(SECRET)}(2 cached)+12"):
        assert part in text
    assert SECRET not in text


def test_a_request_that_asks_nothing_of_the_engine_has_no_tokens(access: Any) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.client.get("/v1/models?key=" + SECRET)
            await server.chat(temperature=9, messages=[{"role": "user", "content": SECRET}])
            await server.client.get("/a%0Ab")

    asyncio.run(test())
    models, refused, nowhere = lines(access)
    assert (models["path"], models["status"]) == ("/v1/models", 200)
    assert "timings" not in models
    assert refused["status"] == 400
    assert nowhere["path"] == "/a\\nb"
    assert all("\n" not in line for line in lines(access, json_form=False))
    assert SECRET not in json.dumps([models, refused])


def test_the_name_of_a_key_is_told_and_never_the_key(access: Any) -> None:
    async def test() -> None:
        async with serving(says("x"), api_key=SECRET) as server:
            assert (await server.chat()).status_code == 401
            server.client.headers["authorization"] = f"Bearer {SECRET}"
            assert (await server.chat()).status_code == 200

    asyncio.run(test())
    refused, answered = lines(access)
    assert (refused["key_name"], answered["key_name"]) == (None, "default")
    told = lines(access, json_form=False)
    assert " key=default " in told[1]
    assert SECRET not in json.dumps([refused, answered]) + "".join(told)


def test_a_client_that_left_is_told_from_one_that_was_answered(access: Any) -> None:
    async def test() -> None:
        async with serving(endless) as server:
            for stream in (True, False):
                exchange = Exchange(server.app, "/v1/completions", body(stream))
                if stream:
                    await exchange.sent.get()
                else:
                    while len(server.engine.added) < 2:
                        await asyncio.sleep(0)
                exchange.leave()
                await exchange.task

    def body(stream: bool) -> dict[str, Any]:
        return {"model": "m", "prompt": "x", "stream": stream, "max_tokens": 400}

    asyncio.run(test())
    streamed, waiting = lines(access)
    assert (streamed["status"], waiting["status"]) == (200, None)
    assert streamed["disconnected"] is waiting["disconnected"] is True
    assert streamed["finish_reasons"] == []
    assert streamed["timings"]["total_s"] > 0
    told = lines(access, json_form=False)
    assert told[0].endswith("unfinished client left")
    assert " gone " in told[1]


def test_what_is_said_is_logged_only_where_that_is_asked_for(access: Any) -> None:
    async def ask(server: Server) -> None:
        await server.chat(messages=[{"role": "user", "content": SECRET}])

    async def test() -> None:
        async with serving(says("x"), log_prompts=True) as server:
            await ask(server)

    asyncio.run(test())
    [line] = lines(access)
    assert line["request"]["messages"][0]["content"] == SECRET
    assert SECRET in lines(access, json_form=False)[0]


def test_a_line_of_json_holds_what_a_record_has() -> None:
    try:
        raise ValueError("bad \udcff name")
    except ValueError:
        caught: Any = sys.exc_info()
    record = logging.LogRecord("a.b", logging.ERROR, "", 0, "%s\n%d", ("x", 7), caught)
    record.fields = {"seconds": 1.5, "level": "mine", "other": object()}
    text = logs.Json().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["level"], line["seconds"]) == ("x\n7", "error", 1.5)
    assert "ValueError" in line["exception"]


def test_a_line_that_a_request_causes_carries_its_id() -> None:
    written: list[Any] = []

    class Kept(logs.Writer):
        def put(self, line: Any) -> None:
            written.append(json.loads(logs.Json().format(line)))

    def breaks(add: Any) -> Any:
        yield Output(add.id, 5, [1])  # there is no such choice

    async def test() -> None:
        async with serving(breaks) as server:
            headers = {"x-request-id": "guilty"}
            body = {"model": "m", "prompt": SECRET}
            answer = await server.client.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 500

    handler = Kept(os.open(os.devnull, os.O_WRONLY))
    logging.getLogger("rosellm").addHandler(handler)
    try:
        asyncio.run(test())
    finally:
        logging.getLogger("rosellm").removeHandler(handler)
    [line] = [each for each in written if each["level"] == "error"]
    assert line["request_id"] == "guilty"
    assert "IndexError" in line["exception"]
    assert SECRET not in json.dumps(line)


# -- where lines go ----------------------------------------------------------------------------


@pytest.mark.alone
def test_nobody_waits_for_a_line_that_cannot_be_written(monkeypatch: Any) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING", 5)
    reading, writing = os.pipe()
    os.set_blocking(writing, True)
    writer = logs.Writer(writing)
    writer.setFormatter(logs.Text())
    begun = time.monotonic()
    for index in range(2000):
        writer.put(f"{index} " + "x" * 200)
    assert time.monotonic() - begun < 1
    received = b""
    thread = threading.Thread(target=writer.flush)
    thread.start()
    while thread.is_alive() or b"lost" not in received:
        received += os.read(reading, 1 << 16)
        writer.put("later")
    assert b"log lines could not be written and are lost" in received
    thread.join()


PROGRAM = """
import sys
from tests.server import fakes
from rosellm.roseinfer import logs
from rosellm.roseinfer.server import flags, listen, load, run

load.load_tokenizer = lambda *_: fakes.ByteTokenizer()
load.check_checkpoint = lambda *_: None
run.GRACE_S = 0.3
options = flags.parse(sys.argv[1:])
logs.configure(options.server.log_format)
sock = listen.bind("127.0.0.1", options.server.port)
sys.exit(run.run(options, sock, fakes.FakeEngine(fakes.says("hello"))))
"""


@contextmanager
def process(model: Path, *flags: str, **where: Any) -> Iterator[Any]:
    from tests.e2e.conftest import free_port

    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(model), "--port", str(port), *flags]
    with subprocess.Popen(command, cwd=ROOT, **where) as running:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                wait_until_healthy(client)
                yield running, client
        finally:
            running.kill()


def answered(client: httpx.Client) -> None:
    body = {"model": "m", "prompt": "x"}
    for _ in range(20):
        assert client.post("/v1/completions", json=body).status_code == 200


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


@pytest.mark.parametrize("form", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_a_full_disk_costs_no_answer(model: Path, form: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with process(model, "--log-format", form, stderr=full) as (running, client):
        answered(client)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
    os.close(full)


def test_a_closed_stderr_costs_no_answer(model: Path) -> None:
    def close() -> None:
        os.close(2)

    with process(model, preexec_fn=close) as (running, client):
        answered(client)
        descriptor = Path(f"/proc/{running.pid}/fd/2").readlink()
        assert str(descriptor) == os.devnull, "no socket may have the number of stderr"
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0


@pytest.mark.slow
def test_a_stderr_that_nobody_reads_costs_no_answer(model: Path) -> None:
    reading, writing = os.pipe()
    with process(model, stderr=writing) as (running, client):
        while True:  # fill it
            os.set_blocking(writing, False)
            try:
                os.write(writing, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writing, True)
        answered(client)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
    os.close(reading)
    os.close(writing)


def test_with_json_every_line_is_json(model: Path) -> None:
    with process(model, "--log-format", "json", stderr=subprocess.PIPE) as (running, client):
        answered(client)
        running.send_signal(signal.SIGTERM)
        said = running.stderr.read().decode().splitlines()
        assert running.wait(10) == 0
    found = [json.loads(line) for line in said]
    [serving_line] = [each for each in found if each["message"] == "serving"]
    assert serving_line["model"] == "m"
    assert serving_line["url"].startswith("http://127.0.0.1:")
    requests = [each for each in found if each["logger"] == "rosellm.access"]
    assert sum(each["path"] == "/v1/completions" for each in requests) == 20


def test_with_text_it_is_for_people(model: Path) -> None:
    with process(model, stderr=subprocess.PIPE) as (running, client):
        answered(client)
        running.send_signal(signal.SIGTERM)
        said = running.stderr.read().decode()
        assert running.wait(10) == 0
    assert "  serving on http://127.0.0.1:" in said
    assert said.count("POST /v1/completions 200") == 20


def test_what_ends_the_process_is_one_line_too(model: Path) -> None:
    command = [sys.executable, "-m", "rosellm.roseinfer.server", str(model)]
    command += ["--otlp-endpoint", "nowhere", "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = map(json.loads, done.stderr.splitlines())
    assert "--otlp-endpoint 'nowhere'" in line["message"]
    assert line["level"] == "error"


def test_the_engines_process_writes_as_its_server_does() -> None:
    program = (
        "import logging; from rosellm.roseinfer import logs; logs.configure_child();"
        "logging.getLogger('rosellm').error('it failed')"
    )
    for form in ("json", "text"):
        environment = {**os.environ, logs.FORMAT_VARIABLE: form}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True
        )
        [line] = done.stderr.splitlines()
        message = json.loads(line)["message"] if form == "json" else line.split(maxsplit=2)[2]
        assert message == "it failed"


def test_configuring_again_leaves_one_writer(monkeypatch: Any) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "text")
    handlers = list(logging.root.handlers)
    level = logging.root.level
    try:
        for _ in range(2):
            logs.configure("text")
        assert sum(isinstance(each, logs.Writer) for each in logging.root.handlers) == 1
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)

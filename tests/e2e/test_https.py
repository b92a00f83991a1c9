"""A server with a certificate: https, with the same limits as http, and nothing else."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import START_TIMEOUT_S, Server, free_port

FILES = Path(__file__).parents[1] / "data" / "tls"
CERT, KEY = FILES / "cert.pem", FILES / "key.pem"
RECEIPT_S = 0.8
CONNECTIONS = 20


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("https") / "log"


@pytest.fixture(scope="module")
def trusted() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERT))


@pytest.fixture(scope="module")
def secure(model_folder: Path, log: Path, trusted: ssl.SSLContext) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "rosellm.roseinfer.server", str(model_folder)]
    flags = [
        f"--port={port}",
        f"--request-timeout-s={RECEIPT_S}",
        f"--max-connections={CONNECTIONS}",
    ]
    files = {"ROSELLM_TLS_CERT": str(CERT), "ROSELLM_TLS_KEY": str(KEY)}
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *flags], stderr=stderr, env={**os.environ, **files})
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(port, trusted):
        assert time.monotonic() < deadline, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    running = Server(process, port, "tiny-llama")
    yield running
    with socket.create_connection(("127.0.0.1", port)):  # a handshake that is not waited for
        assert running.stop() == 0


def is_ready(port: int, trusted: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"https://localhost:{port}/readyz", verify=trusted).status_code == 200
    except httpx.TransportError:
        return False


def test_it_answers(secure: Server, trusted: ssl.SSLContext, log: Path) -> None:
    url = f"https://127.0.0.1:{secure.port}"
    asked = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 5}
    answers = [
        httpx.post(f"{url}/v1/completions", json={**asked, "stream": stream}, verify=trusted)
        for stream in (False, True)
    ]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[1].text.endswith("data: [DONE]\n\n")
    assert f"serving on {url}\n" in log.read_text()
    assert f"curl {url}/v1/" in log.read_text()


def test_what_is_no_tls_is_hung_up_on(secure: Server, trusted: ssl.SSLContext) -> None:
    for sent in (b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n", b"\0" * 100):
        with socket.create_connection(("127.0.0.1", secure.port), timeout=20) as connection:
            connection.sendall(sent)
            assert b"HTTP" not in drained(connection)
    assert is_ready(secure.port, trusted)


def test_old_versions_are_refused(secure: Server) -> None:
    context = ssl.create_default_context(cafile=str(CERT))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://localhost:{secure.port}/health", verify=context)


def test_the_edge_refuses_here_too(secure: Server, trusted: ssl.SSLContext) -> None:
    for sent, status in (
        (b"GET /health HTTP/1.1\r\nHost: here\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: ", 408),
    ):
        plain = socket.create_connection(("127.0.0.1", secure.port), timeout=20)
        with trusted.wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(sent)
            assert drained(connection).startswith(b"HTTP/1.1 %d " % status)
    assert is_ready(secure.port, trusted)


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.mark.alone
def test_a_handshake_that_is_not_finished_in_time_is_hung_up_on(
    secure: Server, trusted: ssl.SSLContext
) -> None:
    before = open_files(secure)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # of a longer first message
    for sent in (b"", hello):
        with socket.create_connection(("127.0.0.1", secure.port), timeout=20) as connection:
            connection.sendall(sent)
            begun = time.monotonic()
            assert drained(connection) == b""
            assert RECEIPT_S - 0.1 < time.monotonic() - begun < RECEIPT_S + 5
    assert is_ready(secure.port, trusted)
    until = time.monotonic() + 5
    while open_files(secure) > before:
        assert time.monotonic() < until


@pytest.mark.alone
def test_handshakes_count_as_connections(secure: Server, trusted: ssl.SSLContext) -> None:
    idle = [
        socket.create_connection(("127.0.0.1", secure.port), timeout=20) for _ in range(CONNECTIONS)
    ]
    try:
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", secure.port), timeout=20) as connection:
            assert drained(connection) == b""
        assert time.monotonic() - begun < RECEIPT_S / 2, "it does not wait for its deadline"
        assert not is_ready(secure.port, trusted)
    finally:
        for each in idle:
            each.close()
    until = time.monotonic() + 5
    while not is_ready(secure.port, trusted):
        assert time.monotonic() < until


def drained(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except OSError:
        pass
    return received

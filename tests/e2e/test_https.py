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
    flags = [f"--port={port}", f"--request-timeout-s={RECEIPT_S}"]
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


def drained(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except OSError:
        pass
    return received

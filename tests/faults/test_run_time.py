"""What happens to requests on their way: clients that leave, and everything that can run out."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server
from tests.faults.conftest import BLOCKS, QUEUE, SEQUENCES, Cramped, connect, post, refused
from tests.faults.neighbours import CLIENT, KINDS, undisturbed

pytestmark = pytest.mark.alone

COMPLETIONS = "/v1/completions"
ASK: dict[str, Any] = {"model": "tiny-llama", "prompt": "Once", "ignore_eos": True, "seed": 7}
FREED_S = 0.1  # and the step that runs when a client leaves
ATTEMPTS = 5  # one in time will do: the others tell of the machine's other work
SLOW_GRAMMAR = {"regex": "(a{1,1000}){1,1000}"}

Health = dict[str, Any]


# -- clients that leave ----------------------------------------------------------------------


@contextmanager
def asked(server: Server, **fields: Any) -> Iterator[socket.socket]:
    """A request on a connection that is closed in the end, whatever has come until then."""
    salt = str(time.monotonic_ns())  # nothing of it is in the cache
    body = json.dumps({**ASK, "cache_salt": salt, **fields}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head.encode() + body)
        yield connection


def until(server: Server, holds: Callable[[Health], bool], seconds: float) -> Health | None:
    """The first report of which it holds, if it comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        health: Health = CLIENT.get(f"{server.url}/health").json()["engine"]
        if holds(health):
            return health
    return None


def only_neighbours(health: Health) -> bool:
    alone = health["running"] + health["waiting"] <= len(KINDS)
    return alone and health["blocks_used"] <= 5 * len(KINDS)


def check_freed(server: Server, during: Callable[[Health], bool], **fields: Any) -> None:
    """A client that leaves while ``during`` holds: all that it held is free within the limit."""
    took = []
    for _ in range(ATTEMPTS):
        with asked(server, **fields):
            before = until(server, during, 10)
            assert before, "that moment never came"
            left = time.monotonic()
        after = until(server, only_neighbours, 10)
        assert after, "it was never freed"
        took.append(time.monotonic() - left)
        step = took[-1] / max(1, after["steps"] - before["steps"])
        if took[-1] < FREED_S + step:
            return
    raise AssertionError(f"freed after {took} s")


def test_disconnect_while_queued(cramped: Server) -> None:
    took = []
    with undisturbed(cramped):
        for _ in range(ATTEMPTS):
            with asked(cramped, n=5, max_tokens=450):
                assert until(cramped, lambda health: health["running"] >= 5, 10)
                with asked(cramped, n=SEQUENCES, max_tokens=100):
                    assert until(cramped, lambda health: health["waiting"] >= 5, 10)
                    left = time.monotonic()
                assert until(cramped, lambda health: health["waiting"] <= len(KINDS), 10)
                took.append(time.monotonic() - left)
            assert until(cramped, only_neighbours, 10)
            if took[-1] < 2 * FREED_S:  # the report's own way and time come on top
                break
    assert min(took) < 2 * FREED_S


def test_disconnect_in_prefill(cramped: Server) -> None:
    prompts = [[5 + number, *range(5, 400)] for number in range(12)]
    with undisturbed(cramped):
        check_freed(cramped, lambda health: health["waiting"] > 2, prompt=prompts, max_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_in_decode(cramped: Server, stream: bool) -> None:
    def decodes(health: Health) -> bool:
        return bool(health["blocks_used"] > 5 * len(KINDS) + 2)

    with undisturbed(cramped):
        check_freed(cramped, decodes, max_tokens=480, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_with_several_choices(cramped: Server, stream: bool) -> None:
    def decodes(health: Health) -> bool:
        return bool(health["running"] >= 5)

    with undisturbed(cramped):
        check_freed(cramped, decodes, n=5, max_tokens=480, stream=stream)


def test_disconnect_while_a_grammar_compiles(cramped: Server) -> None:
    """Whoever asks for a grammar next does not wait for those that nobody wants any more."""
    quick = {**ASK, "max_tokens": 4, "structured_outputs": {"regex": "[ab]{3}"}}
    assert post(cramped, COMPLETIONS, quick).status_code == 200
    with undisturbed(cramped):
        for again in range(3):
            regex = {"regex": f"(b{{1,{900 + again}}}){{1,1000}}"}
            with asked(cramped, structured_outputs=regex), asked(cramped, structured_outputs=regex):
                time.sleep(0.3)
        began = time.monotonic()
        other = {**quick, "structured_outputs": {"regex": "[bc]{3}"}}
        assert post(cramped, COMPLETIONS, other).status_code == 200
        assert time.monotonic() - began < 3
        assert until(cramped, only_neighbours, 5)


# -- what can run out ------------------------------------------------------------------------


def test_queue_full(cramped: Server) -> None:
    """Refused with a hint when to come again."""
    full = {"n": SEQUENCES, "max_tokens": 450}
    with undisturbed(cramped, again=False):
        for stream in (False, True):
            with asked(cramped, **full):
                assert until(cramped, lambda health: health["running"] == SEQUENCES, 10)
                with asked(cramped, **{**full, "n": QUEUE - 4}):
                    assert until(cramped, lambda health: health["waiting"] >= QUEUE - 4, 10)
                    answer = post(cramped, COMPLETIONS, {**ASK, **full, "stream": stream})
            assert "queue" in refused(answer, 503)
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0
            assert until(cramped, only_neighbours, 10)


def test_kv_exhausted(cramped: Server, guarded: Server) -> None:
    """Preempted sequences have the tokens of those that never were."""
    ask = {**ASK, "n": 6, "max_tokens": 480, "return_token_ids": True, "temperature": 1}
    expected = [each["token_ids"] for each in post(guarded, COMPLETIONS, ask).json()["choices"]]
    assert 16 * BLOCKS < 6 * 481
    before = cramped.health()["preemptions"]
    with undisturbed(cramped):
        answer = post(cramped, COMPLETIONS, ask)
    assert [each["token_ids"] for each in answer.json()["choices"]] == expected
    assert cramped.health()["preemptions"] > before


def test_prompt_that_never_fits(cramped: Server) -> None:
    with undisturbed(cramped):
        answer = post(cramped, COMPLETIONS, {**ASK, "prompt": [5] * 512})
        assert "context" in refused(answer)
        assert CLIENT.get(f"{cramped.url}/health").json()["engine"]["waiting"] <= len(KINDS)


def test_port_taken(cramped: Server, model_folder: Path) -> None:
    """The second one says who has it, and the first one does not notice."""
    command = [sys.executable, "-m", "rosellm.roseinfer.server", str(model_folder)]
    with undisturbed(cramped):
        done = subprocess.run(
            [*command, f"--port={cramped.port}"], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert str(cramped.port) in line
    assert "tiny-llama" in line


def test_file_descriptors_exhausted(cramped: Server) -> None:
    """Who is served already is served to the end; when some are free again, everyone is."""
    pid = cramped.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    held: list[socket.socket] = []
    with undisturbed(cramped, tokens=300, again=False):
        used = len(os.listdir(f"/proc/{pid}/fd"))
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 4, limits[1]))
            held += [connect(cramped) for _ in range(20)]
            answered = sum(is_answered(connection) for connection in held)
            assert answered <= 4 + len(KINDS) + 2  # two that may have just ended
        finally:
            for connection in held:
                connection.close()
    try:
        assert comes_back(cramped, 10), "although descriptors are free"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def is_answered(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    try:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        return bool(connection.recv(1))
    except OSError:
        return False


def comes_back(server: Server, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return CLIENT.get(f"{server.url}/livez", timeout=1).status_code == 200
        except httpx.TransportError:
            time.sleep(0.05)
    return False


def test_no_process_can_be_started(cramped: Server) -> None:
    """For checking a grammar, say: that request is refused, and may be sent again."""
    pid = cramped.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with undisturbed(cramped, tokens=300, again=False):
        used = len(os.listdir(f"/proc/{pid}/fd"))
        kill_workers(pid)
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, limits[1]))
            ask = {**ASK, "max_tokens": 3, "structured_outputs": {"regex": "[cd]{3}"}}
            answer = post(cramped, COMPLETIONS, ask)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert answer.status_code in (200, 503), answer.text
        assert post(cramped, COMPLETIONS, ask).status_code == 200


def kill_workers(pid: int) -> None:
    """The processes that check grammars: a server has to live without them."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"grammar_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)


def test_disk_full_for_logs(cramped: Cramped) -> None:
    """The log's file takes nothing: that is said once, and requests are answered."""
    with undisturbed(cramped):
        for _ in range(5):
            assert post(cramped, COMPLETIONS, {**ASK, "max_tokens": 2}).status_code == 200
    lines = cramped.log.read_text().splitlines()
    assert sum("No space left" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)


# -- who goes on without whom ----------------------------------------------------------------


def test_parent_killed(launch: Callable[..., Server], model_folder: Path) -> None:
    """The engine has nobody left to serve, in the middle of a step too."""
    server = launch(str(model_folder), model="tiny-llama")
    engine = server.engine_pid()
    busy = threading.Thread(target=_ask_in_vain, args=(server,))
    busy.start()
    assert until(server, lambda health: health["running"] > 0, 10)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    killed = time.monotonic()
    while runs(engine) and time.monotonic() - killed < 10:
        time.sleep(0.01)
    assert time.monotonic() - killed < 2
    busy.join(10)
    assert not busy.is_alive()


def runs(pid: int) -> bool:
    """Whether there is such a process, and more of it than its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _ask_in_vain(server: Server) -> None:
    with pytest.raises(httpx.TransportError):
        post(server, COMPLETIONS, {**ASK, "n": 8, "max_tokens": 490})

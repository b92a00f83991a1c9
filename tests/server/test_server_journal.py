"""The log of requests: what it says of each, and what it costs nobody."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rosellm.commands import replay
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server import journal as journal_module
from rosellm.roseinfer.server.journal import Build, Chosen, Journal, Logged, decode_line
from tests.server.fakes import (
    BOS,
    CHAT,
    COMPLETIONS,
    EOS,
    Exchange,
    endless,
    refuses,
    says,
    serving,
)


def lines(path: Path) -> list[Any]:
    return [decode_line(line) for line in path.read_bytes().splitlines()]


async def written(path: Path, count: int) -> list[Any]:
    """The log, once it has so many lines."""
    for _ in range(500):
        if path.read_bytes().count(b"\n") >= count:
            break
        await asyncio.sleep(0.01)
    found = lines(path)
    assert len(found) == count
    return found


def test_a_request_is_logged_as_the_engine_was_told_it(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"

    async def test() -> None:
        async with serving(says("abc"), journal=Journal(str(path))) as server:
            body = {"prompt": ["x", "y"], "n": 2, "stop": "b", "user": "ann"}
            headers = {"x-request-id": "mine"}
            sent = {"model": "m", **body}
            await server.client.post(COMPLETIONS, json=sent, headers=headers)
            [logged] = await written(path, 1)
            assert (logged.id, logged.path, logged.body) == ("mine", COMPLETIONS, sent)
            assert logged.fingerprint == "fp_test"
            assert [job.prompt for job in logged.jobs] == [[BOS, ord("x")], [BOS, ord("y")]]
            assert [job.params for job in logged.jobs] == [a.params for a in server.engine.added]
            assert [(job.n, job.stop) for job in logged.jobs] == [(2, ("b",))] * 2
            assert logged.choices == [Chosen([*b"ab"], "stop")] * 4
            assert logged.error is None

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_route_that_makes_text_logs(tmp_path: Path, path: str, stream: bool) -> None:
    file = tmp_path / "requests.jsonl"

    async def test() -> None:
        async with serving(says("abc"), journal=Journal(str(file))) as server:
            body: dict[str, Any] = {"stream": stream, "prompt": "x", "model": "m"}
            if path == CHAT:
                body = {
                    "stream": stream,
                    "model": "m",
                    "messages": [{"role": "user", "content": "x"}],
                }
            if path == "/generate":
                del body["model"]
            assert (await server.client.post(path, json=body)).status_code == 200
            [logged] = await written(file, 1)
            assert logged.choices == [Chosen([*b"abc", EOS], "stop")]

    asyncio.run(test())


def test_what_failed_or_was_left_is_logged_as_far_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"

    async def test() -> None:
        journal = Journal(str(path))
        async with serving(refuses(500, "boom", after="ab"), journal=journal) as server:
            await server.chat()
            [failed] = await written(path, 1)
            assert failed.choices == [Chosen([*b"ab"], None)]
            assert failed.error == "no room"
        async with serving(endless, journal=journal) as server:
            body = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 400}
            exchange = Exchange(server.app, COMPLETIONS, body)
            for _ in range(5):
                await exchange.sent.get()
            exchange.leave()
            _, left = await written(path, 2)
            assert left.choices[0].finish_reason is None
            assert set(left.choices[0].token_ids) == {ord("x")}

    asyncio.run(test())


def test_what_is_refused_unseen_is_not_logged(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"

    async def test() -> None:
        async with serving(says("a"), journal=Journal(str(path))) as server:
            assert (await server.chat(n=0)).status_code == 400
            assert (await server.chat()).status_code == 200
            assert [line.body.get("n") for line in await written(path, 1)] == [None]

    asyncio.run(test())


def test_it_is_appended_to_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"

    async def test() -> None:
        for count in (1, 2):
            async with serving(says("a"), journal=Journal(str(path))) as server:
                await server.chat()
                await written(path, count)

    asyncio.run(test())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log-requests .*No such file"):
        Journal(str(tmp_path / "nowhere" / "requests.jsonl"))
    with pytest.raises(ConfigError, match=r"--log-requests .*directory"):
        Journal(str(tmp_path))


def test_a_full_disk_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        journal = Journal("/dev/full")
        async with serving(says("a"), journal=journal) as server:
            assert (await server.chat()).status_code == 200
            assert (await server.chat()).status_code == 200
            await asyncio.to_thread(journal.flush, 10)

    asyncio.run(test())
    assert caplog.text.count("requests are not logged") == 1


def test_a_disk_that_is_full_for_a_while_leaves_no_half_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requests.jsonl"
    journal = Journal(str(path))
    room = [3, 0]
    write = os.write

    def into_little_room(descriptor: int, data: bytes) -> int:
        if descriptor != journal._file or not room:
            return write(descriptor, data)
        if not (space := room.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:space])

    monkeypatch.setattr(os, "write", into_little_room)
    for id in ("lost", "kept"):
        journal.write(Logged(id, 0.0, "/", {}, "fp", [], []))
    assert journal.flush(10)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["kept"]


def delay(monkeypatch: pytest.MonkeyPatch, journal: Journal, wait: Callable[[], object]) -> None:
    """Let the disk wait before it takes anything of this log."""
    write = os.write

    def late(descriptor: int, data: bytes) -> int:
        if descriptor == journal._file:
            wait()
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", late)


def test_a_disk_that_hangs_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "requests.jsonl"
    monkeypatch.setattr(journal_module, "MOST_WAITING", 4 * journal_module.LINE_BYTES)
    journal = Journal(str(path))
    goes_on = threading.Event()
    delay(monkeypatch, journal, lambda: goes_on.wait(20))
    for number in range(50):
        journal.write(Logged(str(number), 0.0, "/", {}, "fp", [], []))
    goes_on.set()
    assert journal.flush(10)
    assert len(path.read_text().splitlines()) == 4
    assert caplog.text.count("requests are not logged") == 1


def test_long_prompts_wait_in_smaller_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is counted by its size, not by lines."""
    path = tmp_path / "requests.jsonl"
    goes_on = threading.Event()

    async def test() -> None:
        journal = Journal(str(path))
        delay(monkeypatch, journal, lambda: goes_on.wait(20))
        monkeypatch.setattr(journal_module, "MOST_WAITING", 3 * (4096 + 100 * 200))
        async with serving(says("a"), journal=journal) as server:
            for _ in range(9):
                answer = await server.complete(prompt="x" * 200, max_tokens=1)
                assert answer.status_code == 200
            goes_on.set()
            assert await asyncio.to_thread(journal.flush, 10)

    asyncio.run(test())
    assert len(path.read_text().splitlines()) in (2, 3)


def test_a_slow_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not again with each line that it has managed to write."""
    monkeypatch.setattr(journal_module, "MOST_WAITING", 4 * journal_module.LINE_BYTES)
    journal = Journal(str(tmp_path / "requests.jsonl"))
    delay(monkeypatch, journal, lambda: time.sleep(0.005))
    for number in range(150):
        journal.write(Logged(str(number), 0.0, "/", {}, "fp", [], []))
        time.sleep(0.001)
    assert journal.flush(10)
    assert caplog.text.count("requests are not logged") == 1


# -- reading it --------------------------------------------------------------------------------


BUILD = b'{"type":"build","fingerprint":"fp","engine":{}}\n'


def logged(id: str = "a", tokens: tuple[int, ...] = (1,)) -> bytes:
    choices = [{"token_ids": list(tokens), "finish_reason": "stop"}]
    line = {"type": "request", "id": id, "time": 0, "path": "/", "body": {}, "fingerprint": "fp"}
    return json.dumps({**line, "jobs": [], "choices": choices}).encode() + b"\n"


def test_requests_belong_to_the_build_above_them(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(BUILD + logged("a") + BUILD + BUILD + logged("b") + logged("c"))
    found = [[each.id for each in requests] for _, requests in replay.read(str(path))]
    assert found == [["a"], ["b", "c"]]
    assert [len(requests) for _, requests in replay.read(str(path), "b")] == [1]
    assert list(replay.read(str(path), "z")) == []


def test_a_line_that_was_cut_is_left_out(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "log"
    path.write_bytes(BUILD + logged("a") + logged("b")[:-20])
    [(build, [request])] = replay.read(str(path))
    assert (build.fingerprint, request.id) == ("fp", "a")
    assert "line 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello\n", "line 1"),
        (BUILD + b"{}\n", "line 2"),
        (BUILD + b'{"type":"other"}\n', "line 2"),
        (logged("a"), "line 1: a request before"),
        (BUILD + b"\xff\n" + logged(), "line 2"),
    ],
)
def test_what_is_no_log_is_one_clear_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        list(replay.read(str(path)))
    with pytest.raises(ConfigError, match="No such file"):
        list(replay.read(str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("before", "finish", "now", "difference"),
    [
        ([1, 2], "stop", [1, 2], []),
        ([1, 2], None, [1, 2, 3], []),
        ([1, 2], "length", [1, 2, 3], ["choice 0 differs from token 2 on"]),
        ([1, 2, 3], "stop", [1, 5, 3], ["choice 0 differs from token 1 on"]),
        ([1, 2, 3], None, [1, 2], ["choice 0 differs from token 2 on"]),
    ],
)
def test_where_answers_differ(
    before: list[int], finish: Any, now: list[int], difference: list[str]
) -> None:
    request = Logged("a", 0.0, "/", {}, "fp", [], [Chosen(before, finish)])
    assert list(replay.different(request, [now])) == difference


def test_a_build_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    journal = Journal(str(path))
    build = decode_line(BUILD)
    journal.write(build)
    assert journal.flush(10)
    assert lines(path) == [build]
    assert isinstance(build, Build)

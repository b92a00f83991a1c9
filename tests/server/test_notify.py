"""The service manager is told over a datagram socket, and nobody is told where there is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rosellm.roseinfer.server.notify import notify, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The service manager's end of the socket."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rosellm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name if name[0] == "/" else "\0" + name[1:])
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_each_state_is_a_datagram(manager: socket.socket) -> None:
    notify("READY=1\nSTATUS=serves")
    notify("STOPPING=1")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serves"
    assert manager.recv(4096) == b"STOPPING=1"


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    for _ in range(10_000):
        notify("WATCHDOG=1")
    assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("name", [None, "", "relative", "/no/such/socket", "@no-such-socket"])
def test_nobody_there(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if name is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [
        (None, None, None),
        ("30000000", None, 15.0),
        pytest.param("30000000", str(os.getpid()), 15.0, id="this process"),
        ("30000000", "1", None),
        ("0", None, None),
        ("many", None, None),
    ],
)
def test_watchdog_interval(
    microseconds: str | None,
    pid: str | None,
    interval: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == interval

"""A server under a service manager says when it is ready, that it lives, and that it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server


@pytest.mark.slow  # tests/server/test_notify.py has the parts
def test_ready_watchdog_and_stopping(
    launch: Callable[..., Server], model_folder: Path, tmp_path: Path
) -> None:
    name = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(name))
        manager.settimeout(20)
        running = launch(
            str(model_folder), model="tiny-llama", NOTIFY_SOCKET=str(name), WATCHDOG_USEC="400000"
        )
        assert manager.recv(4096).startswith(b"READY=1\nSTATUS=serves tiny-llama on http://")
        started = time.monotonic()
        assert [manager.recv(4096) for _ in range(4)] == [b"WATCHDOG=1"] * 4
        assert time.monotonic() - started > 0.3
        assert running.stop() == 0
        said = b""
        while said != b"STOPPING=1":
            said = manager.recv(4096)

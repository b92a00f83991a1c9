"""What a service manager is told: systemd's notification protocol (sd_notify(3)), nothing else.

Without ``NOTIFY_SOCKET`` in the environment nobody is told, and nothing fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import NoReturn

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE = "WATCHDOG_PID"

_LONG_S = 3600.0


def notify(state: str) -> None:
    """Send one message, such as ``READY=1``. Never blocks, and never fails for want of a listener.

    Args:
        state: assignments, one a line.
    """
    address = os.environ.get(SOCKET_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract names
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.setblocking(False)
        sock.sendto(state.encode(), address)


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``, half of what is allowed; None where none is asked for."""
    microseconds = os.environ.get(WATCHDOG_VARIABLE, "")
    meant = os.environ.get(WATCHDOG_PID_VARIABLE) or str(os.getpid())
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 2e6 if meant == str(os.getpid()) else None


async def watch() -> NoReturn:
    """Say again and again that the event loop turns, where somebody wants to know; never ends."""
    interval = watchdog_interval()
    while True:
        if interval is not None:
            notify("WATCHDOG=1")
        await asyncio.sleep(interval or _LONG_S)

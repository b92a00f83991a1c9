"""The file of API keys is read again on SIGHUP, while connections and requests go on."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server.keys import exposure, load_keys
from rosellm.roseinfer.server.limits import Accounts

log = logging.getLogger(__name__)


@contextmanager
def keys_on_hangup(accounts: Accounts, file: str | None) -> Iterator[None]:
    """As long as this lasts. Without a file a hang-up ends the process, as it does any other."""
    if file is None:
        yield
        return
    loop = asyncio.get_running_loop()
    again = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, again.set)
    reading = asyncio.ensure_future(_whenever(again, accounts, file))
    try:
        yield
    finally:
        reading.cancel()
        loop.remove_signal_handler(signal.SIGHUP)


async def _whenever(again: asyncio.Event, accounts: Accounts, file: str) -> None:
    while await again.wait():
        again.clear()
        await _read(accounts, file)


async def _read(accounts: Accounts, file: str) -> None:
    """A file that cannot be used changes nothing."""
    try:
        keys = await asyncio.to_thread(load_keys, file)
        warning = await asyncio.to_thread(exposure, file)
    except (ConfigError, OSError) as error:
        log.error("the API keys stay as they were: %s", error)
        return
    accounts.replace(keys)
    if warning:
        log.warning("%s", warning)
    log.info("the API keys were read again: %d of them", len(keys))

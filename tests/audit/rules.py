"""What neither a test nor the code under test may do, by Python's own audit events (PEP 578).

No class is looked up by an unpickler, no socket is bound or connected beyond this machine, and no
program is started that is not expected. Knows the events, and not who asks.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

PYTHON = "python"
Judge = Callable[[tuple[Any, ...], Container[str]], str]


def violation(event: str, args: tuple[Any, ...], expected: Container[str]) -> str:
    """What is wrong with an event; empty where nothing is.

    Args:
        expected: names of programs that may be started; ``python`` is this interpreter. A class
            that may be unpickled is there as ``module.name``, a place that may be bound or
            connected to by its host.
    """
    judge = JUDGES.get(event)
    return "" if judge is None else judge(args, expected)


def _unpickles(args: tuple[Any, ...], expected: Container[str]) -> str:
    name = f"{args[0]}.{args[1]}"
    return "" if name in expected or "unpickling" in expected else f"unpickles {name}"


def _binds(args: tuple[Any, ...], expected: Container[str]) -> str:
    return _goes_to("binds", args[1], expected)


def _connects(args: tuple[Any, ...], expected: Container[str]) -> str:
    return _goes_to("connects to", args[1], expected)


def _goes_to(verb: str, address: Any, expected: Container[str]) -> str:
    if not isinstance(address, tuple) or not isinstance(address[0], str):
        return ""  # a path, or the kernel
    host = address[0]
    return "" if host in expected or _is_here(host) else f"{verb} {address!r}"


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _starts(args: tuple[Any, ...], expected: Container[str]) -> str:
    command = args[1] if len(args) > 1 and args[1] else args[0]
    first = command if isinstance(command, str | bytes | os.PathLike) else command[0]
    name = os.fsdecode(first).partition(" ")[0] if isinstance(command, str) else os.fsdecode(first)
    shown = PYTHON if _is_this_python(name) else Path(name).name
    return "" if shown in expected else f"starts {os.fsdecode(first)!r}"


def _is_this_python(program: str) -> bool:
    return program == sys.executable


def _forks(args: tuple[Any, ...], expected: Container[str]) -> str:
    return "" if "fork" in expected else "forks"


JUDGES: dict[str, Judge] = {
    "pickle.find_class": _unpickles,
    "socket.bind": _binds,
    "socket.connect": _connects,
    "socket.sendto": _connects,
    "subprocess.Popen": _starts,
    "os.posix_spawn": _starts,
    "os.spawn": lambda args, expected: _starts(args[1:], expected),
    "os.exec": _starts,
    "os.system": _starts,
    "os.fork": _forks,
    "os.forkpty": _forks,
}

"""The audit itself: what it stops, here and in the processes that tests start."""

from __future__ import annotations

import collections
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audit.expected import EXPECTED, expected
from tests.audit.rules import violation

ROOT = Path(__file__).parents[2]


def test_what_is_stopped(audit_expects_violations: list[str]) -> None:
    with pytest.raises(RuntimeError, match="unpickles"):
        pickle.loads(pickle.dumps(collections.OrderedDict()))
    with pytest.raises(RuntimeError, match="starts"):
        subprocess.run(["true"], check=True)
    with pytest.raises(RuntimeError, match="starts"):
        os.system("true")
    with socket.socket() as sock:
        for host in ("0.0.0.0", "", "192.0.2.1"):
            with pytest.raises(RuntimeError, match="binds"):
                sock.bind((host, 0))
        with pytest.raises(RuntimeError, match="connects"):
            sock.connect(("192.0.2.1", 80))
        sock.bind(("127.0.0.1", 0))
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sock,
        pytest.raises(RuntimeError, match="connects"),
    ):
        sock.sendto(b"", ("192.0.2.1", 80))
    assert len(audit_expects_violations) == 8


def test_pickles_of_plain_values_are_no_matter() -> None:
    assert pickle.loads(pickle.dumps({"a": [1, b"x"]})) == {"a": [1, b"x"]}


def test_rooms_are_files_or_folders() -> None:
    for room in EXPECTED:
        assert (ROOT / room).exists(), room
    assert expected("tests/faults/test_edge.py::test_x") >= {"python"}
    assert expected("tests/runner/test_sampler.py::test_x") == set()


def test_a_shell_is_no_python() -> None:
    may = frozenset({"python"})
    assert not violation("subprocess.Popen", (sys.executable, [sys.executable, "-c", ""]), may)
    assert violation("subprocess.Popen", ("/bin/sh", ["sh", "-c", sys.executable]), may)
    assert violation("os.system", (b"true",), may)

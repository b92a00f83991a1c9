"""A command run on a pseudo-terminal, as a person would: type, wait for text, press Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping

ROSELLM = (sys.executable, "-c", "import sys, rosellm.cli; sys.exit(rosellm.cli.main())")
TIMEOUT_S = 30.0
# In a session of its own, the first terminal that a process opens is the one whose Ctrl-C it gets.
ON_ITS_OWN_TERMINAL = 'tty=$1; shift; exec "$@" <"$tty" >"$tty" 2>&1'
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


class Terminal:
    """The person's side.

    Attributes:
        text: all that was shown, without escape sequences and carriage returns.
    """

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._process = process
        self._raw = b""
        self._seen = 0
        self.text = ""

    def expect(self, pattern: str) -> str:
        """Wait until what is shown since the last match has this in it; return the match."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (match := re.compile(pattern).search(self.text, self._seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            assert self._read(), f"ended without {pattern!r}: {self.text!r}"
        self._seen = match.end()
        return match[0]

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def press_ctrl(self, letter: str) -> None:
        self.type(chr(ord(letter) & 0x1F))

    def press_ctrl_c_at_the_prompt(self, pattern: str) -> None:
        """Press Ctrl-C until it shows: Python's readline does not notice a signal that comes
        after its prompt is drawn and before it waits for keys. A second one while the first is
        being answered would end the program, so each has its time.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while not re.search(pattern, self.text[self._seen :]):
            assert time.monotonic() < deadline, self.text
            self.press_ctrl("C")
            next_press = time.monotonic() + 2.0
            while time.monotonic() < next_press and not re.search(pattern, self.text[self._seen :]):
                self._read()
        self.expect(pattern)

    def end(self) -> int:
        """Wait for the command to end; return its exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read():
            assert time.monotonic() < deadline, self.text
        return self._process.wait(TIMEOUT_S)

    def _read(self, timeout: float = 0.1) -> bool:
        if select.select([self._master], [], [], timeout)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                return False
            self._raw += data  # a character or an escape sequence may come in two reads
            self.text = ESCAPES.sub("", self._raw.decode(errors="replace"))
            return bool(data)
        return self._process.poll() is None


@contextlib.contextmanager
def terminal(*command: str, environment: Mapping[str, str] = {}) -> Iterator[Terminal]:
    """Run a command on a terminal of 200 columns; what is left of it at the end is killed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        ["sh", "-c", ON_ITS_OWN_TERMINAL, "sh", os.ttyname(slave), *command],
        env={**os.environ, "TERM": "xterm", **environment},
        start_new_session=True,
    )
    try:
        running = Terminal(master, process)
        running.expect("")
        yield running
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)

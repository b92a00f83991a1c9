"""What the server's own process takes, measured: ``python -m rosellm.commands.footprint``.

Run so, it imports what that process imports, loads the tokenizer that it is told of, and says how
large it has become. The engine's process is not part of it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace

import msgspec

from rosellm.roseinfer import host_memory
from rosellm.roseinfer.engine.client import child_environment
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.host_memory import Resident

SERVING_BYTES = 16 << 20
"""What is not there yet: the application, its validators, some connections; as measured."""

_TIMEOUT_S = 60.0


class Footprint:
    """A measurement that runs while something else is done."""

    def __init__(self, tokenizer: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, tokenizer],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
        )

    def result(self) -> Resident | None:
        """What came out; None where it cannot be measured."""
        try:
            out, _ = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            return None
        try:
            found = msgspec.json.decode(out, type=Resident)
        except msgspec.MsgspecError:
            return None
        return replace(found, anonymous=found.anonymous + SERVING_BYTES)

    def stop(self) -> None:
        """End it, if it still runs."""
        self._process.kill()
        self._process.communicate()


def main(tokenizer: str) -> int:
    """Become the process, and print its size. Returns the exit code."""
    import rosellm.roseinfer.server.app
    import rosellm.roseinfer.server.run  # noqa: F401
    from rosellm.roseinfer.server.prompts import TextTools
    from rosellm.roseinfer.text.load import load_tokenizer

    kept: list[object] = []
    with contextlib.suppress(RosellmError):  # `inspect` says what is wrong with it
        kept.append(TextTools.of(load_tokenizer(tokenizer)))
    found = host_memory.resident()
    if found is not None:
        sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""An engine in a process of its own that stays loaded between measurements, so that these can take
turns with others'. It is told what to run by lines of JSON, and answers with lines of JSON.

Workers of peers run under another Python: this module needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.peers.contender import ROOT, Batch, Bits, Speeds, with_threads


@dataclass
class Worker:
    """The near end: a ``Contender``.

    Attributes:
        command: what starts the process.
    """

    name: str
    bits: Bits
    command: list[str]
    threads: int
    weight_bytes: int = 0
    _process: subprocess.Popen[str] | None = None
    _log: Any = field(default_factory=tempfile.TemporaryFile)

    def open(self) -> None:
        self._process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=with_threads(self.threads),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.weight_bytes = self._answer()["weight_bytes"]

    def run(self, batch: Batch) -> Speeds:
        assert self._process is not None, "not open"
        self._process.stdin.write(json.dumps(asdict(batch)) + "\n")
        self._process.stdin.flush()
        return Speeds(**self._answer())

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None, "not open"
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(load: Callable[[], tuple[int, Callable[[Batch], Speeds]]]) -> None:
    """The far end. Nothing else may write to standard output, so that is made to be stderr.

    Args:
        load: gives the bytes of all weights, and what runs a batch.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    weight_bytes, run = load()
    answer({"weight_bytes": weight_bytes})
    for line in sys.stdin:
        answer(asdict(run(Batch(**json.loads(line)))))

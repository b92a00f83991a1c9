"""Tries many hostile files, in processes that may crash or hang: whose file it was is known.

    python -m tests.faults.hostile_files --first 1000 --count 10000
    python -m tests.faults.hostile_files --first 9460 --count 1

Says what goes wrong as it is found, and ends in a JSON line. A seed makes the same file again, as
long as `tests/e2e/conftest.py`, on which its tokenizer is trained, stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
HANG_S = 30.0
START_S = 120.0
EVERY_S = 10.0


@dataclass
class Tally:
    """What came of them all."""

    outcomes: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return self.outcomes.total()

    def line(self) -> str:
        rate = self.tried / max(self.seconds, 1e-9)
        return json.dumps(
            {"tried": self.tried, **self.outcomes, "seconds": round(self.seconds, 1),
             "files_per_s": round(rate, 1), "wrong_files": self.wrong}
        )  # fmt: skip


class Child:
    """A process that tries one seed after another. It imports what it needs once."""

    def __init__(self, command: Sequence[str], errors: IO[bytes]) -> None:
        self._errors = errors
        reading, writing = os.pipe()
        self._replies = os.fdopen(reading)
        self._process = subprocess.Popen(
            [*command, str(writing)],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            pass_fds=[writing],
            cwd=ROOT,
            # One thread each: there are as many processes as there are cores.
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                 "ROSELLM_CPU_THREADS": "1"},
        )  # fmt: skip
        os.close(writing)
        self._patience = START_S

    def attempt(self, seed: int, hang_s: float) -> dict[str, Any] | None:
        """The verdict on this seed's file; nothing if the process crashed or hung over it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"%d\n" % seed)
            self._process.stdin.flush()
        patience, self._patience = max(self._patience, hang_s), hang_s
        ready, _, _ = select.select([self._replies], [], [], patience)
        line = self._replies.readline() if ready else ""
        found: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return found

    def epitaph(self) -> str:
        """What ended it, or that nothing did."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1)
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            return f"the process ended with code {code}: {said}"
        return "no answer: it hangs"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._replies.close()


class Supervisor:
    """Shares the seeds out among children, and replaces those that are lost."""

    def __init__(self, command: Sequence[str], hang_s: float = HANG_S, loud: bool = False) -> None:
        self.tally = Tally()
        self._command, self._hang_s, self._loud = command, hang_s, loud
        self._lock = threading.Lock()
        self._faults: list[BaseException] = []

    def run(self, seeds: Iterable[int], children: int) -> Tally:
        self._seeds = iter(seeds)
        self._started = self._said = time.monotonic()
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(children)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._faults:
            raise self._faults[0]
        self.tally.seconds = time.monotonic() - self._started
        return self.tally

    def _work(self) -> None:
        try:
            while self._use_a_child():
                pass
        except BaseException as error:
            self._faults.append(error)

    def _use_a_child(self) -> bool:
        """Have one try seeds until it is lost; whether there may be more of them."""
        with tempfile.TemporaryFile() as errors:
            child = Child(self._command, errors)
            try:
                while (seed := self._next()) is not None:
                    if (found := child.attempt(seed, self._hang_s)) is None:
                        self._note({"seed": seed, "outcome": "lost", "said": child.epitaph()})
                        return True
                    self._note(found)
            finally:
                child.close()
        return False

    def _next(self) -> int | None:
        with self._lock:
            return next(self._seeds, None)

    def _note(self, found: dict[str, Any]) -> None:
        with self._lock:
            self.tally.outcomes[found["outcome"]] += 1
            self.tally.files[found.get("file", "?")] += 1
            if found["outcome"] in ("wrong", "lost"):
                place = ", ".join(filter(None, (f"seed {found['seed']}", found.get("file"))))
                change = f" [{found['change']}]" if found.get("change") else ""
                self.tally.wrong.append(f"{place}: {found['said']}{change}")
                self._say(self.tally.wrong[-1])
            now = time.monotonic()
            if now - self._said > EVERY_S:
                self._said = now
                rate = self.tally.tried / (now - self._started)
                counts = ", ".join(f"{each} {n}" for each, n in self.tally.outcomes.items())
                self._say(f"{self.tally.tried} tried, {rate:.0f} a second: {counts}")

    def _say(self, line: str) -> None:
        if self._loud:
            print(line, flush=True)


def try_files(first: int, count: int, pristine: Path, loud: bool = False) -> Tally:
    """Try the files of so many seeds on these models."""
    command = [sys.executable, "-m", "tests.faults.loading", str(pristine)]
    supervisor = Supervisor(command, loud=loud)
    return supervisor.run(range(first, first + count), min(os.cpu_count() or 1, count))


def main() -> int:
    from tests.faults.hostile_models import write_models

    parser = argparse.ArgumentParser(description="Try hostile files.")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first one")
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tally = try_files(asked.first, asked.count, write_models(Path(place)), loud=True)
    print(tally.line(), flush=True)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Sends very many requests made at random to a real server, over connections that stay open.

    python -m tests.fuzz.run --cases 1000000 --seed 7
    python -m tests.fuzz.run --seed 7 --case 1234

After each round the server must be idle, hold nothing, and answer what it answered before. Of a
case that goes wrong the smallest request that does is printed as well; the last line is JSON. The
second form sends one case of a run again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from tests.e2e.conftest import Server, start_server, write_tokenizer
from tests.faults.conftest import TEMPLATE
from tests.fuzz.answers import Got, check
from tests.fuzz.bodies import NAMES, Sent, case
from tests.fuzz.connection import Connection
from tests.fuzz.described import try_description
from tests.fuzz.values import smaller
from tests.tiny_models import write_llama

AT_ONCE = 24
ROUND = 5000
MOST_FAILURES = 20
EVERY_S = 10.0
DESCRIBED = 100
"""A case for so many others is one that schemathesis makes of the server's description."""
CONTEXT = 64  # so that an answer is soon at its end
PROBE = {"model": NAMES[1], "prompt": "Once upon", "max_tokens": 12, "temperature": 0}
Case = Callable[[int], Sent]


@dataclass
class Report:
    """What came of a run."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self, **more: Any) -> str:
        cases = self.statuses.total()
        return json.dumps(
            {
                **more,
                "cases": cases,
                "cases_per_s": round(cases / max(self.seconds, 1e-9), 1),
                "seconds": round(self.seconds, 1),
                "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
                "failures": len(self.failures),
            }
        )


class Run:
    """Sends the cases with these numbers to a server on this port."""

    def __init__(self, port: int, case: Case, *, loud: bool = False) -> None:
        self.report = Report()
        self._port, self._case, self._loud = port, case, loud

    async def rounds(self, first: int, count: int) -> Report:
        """As many as are asked for, or until there are enough failures."""
        self._started = self._said = time.monotonic()
        self._expected = await self._probe()
        end = first + count
        while first < end and len(self.report.failures) < MOST_FAILURES:
            self._numbers = iter(range(first, first := min(end, first + ROUND)))
            await asyncio.gather(*(self._client() for _ in range(min(AT_ONCE, count))))
            try:
                await self._as_before()
            except (OSError, TimeoutError, AssertionError) as error:
                self._fail(f"after a round: {type(error).__name__}: {error}")
                break
        self.report.seconds = time.monotonic() - self._started
        return self.report

    async def _client(self) -> None:
        connection = Connection(self._port)
        try:
            for number in self._numbers:
                await self._try(connection, number)
                if len(self.report.failures) >= MOST_FAILURES:
                    break
        finally:
            connection.close()

    async def _try(self, connection: Connection, number: int) -> None:
        sent = self._case(number)
        status, wrong = await attempt(connection, sent)
        self.report.statuses[status] += 1
        if wrong:
            connection.close()
            self._fail(f"case {number}: {wrong}\n  sent {sent}")
            if status and self._loud:  # where there is no answer, each attempt would wait for one
                print(f"  smallest {await smallest(connection, sent)}", flush=True)
        self._progress()

    async def _probe(self) -> Any:
        connection = Connection(self._port)
        body = json.dumps(PROBE).encode()
        got = await connection.ask(Sent("POST", "/v1/completions", body))
        connection.close()
        assert got.status == 200, got.body
        return json.loads(got.body)["choices"]

    async def _as_before(self) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            engine = await self._engine()
            if not (engine["running"] or engine["waiting"] or engine["blocks_used"]):
                break
            await asyncio.sleep(0.02)
        else:
            self._fail(f"not idle after a round: {engine}")
        if (now := await self._probe()) != self._expected:
            self._fail(f"the probe's answer has changed: {now}")

    async def _engine(self) -> Any:
        connection = Connection(self._port)
        got = await connection.ask(Sent("GET", "/health"))
        connection.close()
        return json.loads(got.body)["engine"]

    def _fail(self, what: str) -> None:
        self.report.failures.append(what)
        if self._loud:
            print(f"FAILED {what}", flush=True)

    def _progress(self) -> None:
        now = time.monotonic()
        if self._loud and now - self._said > EVERY_S:
            self._said = now
            self.report.seconds = now - self._started
            print(self.report.line(), flush=True)


async def attempt(connection: Connection, sent: Sent) -> tuple[int, str]:
    """The status (0: none), and what is wrong with the answer, if anything is."""
    try:
        got = await connection.ask(sent)
    except (OSError, TimeoutError) as error:
        return 0, f"{type(error).__name__}: {error}"
    return got.status, fault(sent.method, got)


def fault(method: str, got: Got) -> str:
    """What is wrong with an answer; empty where nothing is."""
    try:
        check(method, got)
    except (AssertionError, ValueError, LookupError, TypeError) as error:
        return f"{got.status} {got.body[:500]!r}: {type(error).__name__}: {str(error)[:300]}"
    return ""


async def smallest(connection: Connection, sent: Sent, most: int = 300) -> Sent:
    """The same request with as little in it as still fails."""
    try:
        body = json.loads(sent.body)
    except ValueError:
        return sent
    tried, again = 0, True
    while again and tried < most:
        again = False
        for less in smaller(body):
            tried += 1
            content = json.dumps(less).encode("utf-8", "surrogatepass")
            smaller_one = Sent(sent.method, sent.path, content, sent.headers)
            if (await attempt(connection, smaller_one))[1]:
                body, sent, again = less, smaller_one, True
                break
            if tried >= most:
                break
    return sent


def write_model(folder: Path) -> Path:
    """A small model that answers at once."""
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    write_llama(
        folder, vocab_size=size, max_position_embeddings=512, bos_token_id=0, eos_token_id=0
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def serve(folder: Path, stderr: IO[bytes]) -> Server:
    options = ["--device=cpu", f"--max-model-len={CONTEXT}", "--tool-parser=hermes"]
    options.append("--engine-restarts=0")  # else what was lost would go on, and nobody notice
    one_thread = {"ROSELLM_CPU_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return start_server(
        str(folder), *options, "--no-access-log", model=NAMES[0], stderr=stderr, **one_thread
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Send requests made at random.")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="send only this one, and show its answer")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as place, (Path(place) / "stderr").open("w+b") as stderr:
        server = serve(write_model(Path(place) / NAMES[0]), stderr)
        try:
            if asked.case is not None:
                return asyncio.run(_show(server.port, case(asked.seed, asked.case)))
            run = Run(server.port, lambda number: case(asked.seed, number), loud=True)
            report = asyncio.run(run.rounds(asked.first, asked.cases))
            described = _described(server, report, asked.cases // DESCRIBED, asked.seed)
        finally:
            code = server.stop()
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    if code or "Traceback" in said:
        report.failures.append(f"the server ended with code {code}, and said: {said[-3000:]}")
        print(f"FAILED {report.failures[-1]}")
    print(report.line(seed=asked.seed, first=asked.first, described=described), flush=True)
    return 1 if report.failures else 0


def _described(server: Server, report: Report, cases: int, seed: int) -> int:
    """Those that schemathesis makes, after the others and beside their number."""
    with httpx.Client(timeout=60) as client:

        def send(request: httpx.Request) -> httpx.Response:
            request.url = request.url.copy_with(port=server.port, host="127.0.0.1")
            return client.send(request)

        try:
            return try_description(server.url, send, lambda of: -(-cases // of), seed)
        except Exception as error:  # several at once, or an answer that it cannot read: as much
            notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
            report.failures.append(f"schemathesis, seed {seed}: {error!r}{notes}")
            print(f"FAILED {report.failures[-1]}", flush=True)
            return 0


async def _show(port: int, sent: Sent) -> int:
    connection = Connection(port)
    status, wrong = await attempt(connection, sent)
    print(f"sent {sent}\nstatus {status}, {wrong or 'as it should be'}")
    connection.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

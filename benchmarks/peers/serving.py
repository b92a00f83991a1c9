"""What clients see of an engine that speaks OpenAI's API, and what it takes of memory."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.first_token import first_text, free_port
from benchmarks.peers.contender import ROOT, Batch, Service, Setup, with_threads
from rosellm.bench import loop
from rosellm.bench.exchange import Server, exchange
from rosellm.bench.record import Recorder
from rosellm.bench.stats import percentile

PATH = "/completions"
SAMPLE_S = 0.1

MIXED_CONTEXT = 1024
DECODING = Batch(streams=16, prompt=64, output=MIXED_CONTEXT - 64)
"""They go on for longer than prompts arrive."""
ARRIVING = Batch(streams=6, prompt=512, output=8)
ARRIVAL_S = 3.0
WAITING = 4
"""Arrivals that a service must be able to take in beside those that decode."""


@dataclass
class Running:
    """A service that has answered its first request.

    Attributes:
        model: its name for its model.
        vocab_size: ids below it are sent.
        first_token_s: from its start to the first text.
    """

    process: subprocess.Popen[bytes]
    port: int
    model: str
    vocab_size: int
    first_token_s: float
    _sent: int = 0

    @property
    def server(self) -> Server:
        return Server.at(f"http://127.0.0.1:{self.port}")

    def body(self, prompt: int, output: int) -> bytes:
        """A request of random ids; no two prompts begin alike."""
        self._sent += 1
        ids = random.Random(self._sent).choices(range(self.vocab_size), k=prompt)
        return _body(self.model, ids, output)


def _body(model: str, ids: list[int], output: int) -> bytes:
    asked: dict[str, Any] = {"model": model, "prompt": ids, "max_tokens": output, "temperature": 0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked | streamed | {"ignore_eos": True}).encode()


@contextmanager
def running(service: Service, setup: Setup, streams: int, context: int) -> Iterator[Running]:
    """Start a service, wait for its first token, and end it."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            service.command(port, streams, context),
            cwd=ROOT,
            env=with_threads(setup.threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            body = _body(setup.model.name, [1, 2, 3], 8)
            first = asyncio.run(first_text(process, port, PATH, body))
            yield Running(process, port, setup.model.name, setup.vocab_size, first - start)
        except RuntimeError as error:
            log.seek(0)
            said = log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{service.name}: {error}:\n{said}") from None
        finally:
            process.terminate()
            process.wait(30)


def steady(service: Running, batch: Batch) -> float:
    """Tokens a second of all streams, from when each has its first until one has its last."""

    async def measure() -> list[Recorder]:
        bodies = [service.body(batch.prompt, batch.output) for _ in range(batch.streams)]
        return await asyncio.gather(*(_answer(service.server, body) for body in bodies))

    answers = loop.run(measure())
    start = max(answer.times[0] for answer in answers)
    end = min(answer.times[-1] for answer in answers)
    return sum(_tokens(answer, start, end) for answer in answers) / (end - start)


def mixed(service: Running) -> float:
    """99th percentile of the seconds between chunks of streams that decode while prompts arrive."""
    gaps = sorted(loop.run(_gaps(service)))
    return percentile(gaps, 0.99)


async def _gaps(service: Running) -> list[float]:
    recorders = [Recorder() for _ in range(DECODING.streams)]
    streams = []
    for recorder in recorders:
        body = service.body(DECODING.prompt, DECODING.output)
        streams.append(asyncio.create_task(_answer(service.server, body, recorder)))
    while not all(recorder.times for recorder in recorders):
        _raise_of(streams)
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    start = time.perf_counter()
    arrivals = []
    for _ in range(ARRIVING.streams):
        body = service.body(ARRIVING.prompt, ARRIVING.output)
        arrivals.append(asyncio.create_task(_answer(service.server, body)))
        await asyncio.sleep(ARRIVAL_S)
    await asyncio.gather(*arrivals)
    end = time.perf_counter()
    _raise_of(streams)
    ended = sum(stream.done() for stream in streams)
    if ended:
        raise RuntimeError(f"{ended} streams came to their end before the last prompt's answer")
    for stream in streams:
        stream.cancel()
    return [
        after - before
        for recorder in recorders
        for before, after in pairwise(recorder.times)
        if before >= start and after <= end
    ]


def _raise_of(streams: list[asyncio.Task[Recorder]]) -> None:
    """What a stream failed with, if one did."""
    for stream in streams:
        if stream.done():
            stream.result()


async def _answer(server: Server, body: bytes, recorder: Recorder | None = None) -> Recorder:
    recorder = recorder or Recorder()
    answer = await exchange(server, PATH, body, recorder.feed)
    if answer.status != 200 or recorder.error or not recorder.times:
        raise RuntimeError(f"no answer: {answer.status} {answer.body!r} {recorder.error}")
    return recorder


def _tokens(answer: Recorder, start: float, end: float) -> float:
    """Tokens that came after start and until end: those of a chunk are taken to be equally many."""
    inside = sum(start < at <= end for at in answer.times)
    counted = answer.usage.completion_tokens if answer.usage else len(answer.times)
    return inside * counted / len(answer.times)


@dataclass
class Watch:
    """The most memory that a process and those it started took: pages that several share are
    counted once, pages of mapped files too.

    Attributes:
        peak: in bytes.
    """

    pid: int
    peak: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(SAMPLE_S):
            self.peak = max(self.peak, sum(map(_share, _tree(self.pid))))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = file.read_text().split()
        except OSError:  # that thread has ended
            continue
        for child in children:
            yield from _tree(int(child))


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # that process has ended
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))

"""What a step costs beside the model: scheduler, and the boundary between the two processes.

The model is a fake one. Counted, for a step in which every sequence decodes one token:

* ``in_process``: from the model's end to its next start in one thread: update, the step's rows,
  schedule. Block tables are those of the context length asked for.
* ``engine_process``: the same in an engine process that serves a real ``ProcessClient``: the
  former, and encoding, framing and queueing the rows, looking into the inbox, and whatever the
  reader and writer threads take away. This is what a step is longer than its model.
* ``delivery``: from the model's end to the rows, decoded, in the API process's callback. It passes
  while the next step computes, so it is latency and no loss of throughput.

Not counted: the model, the sampler, laying out its inputs, text, HTTP.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from benchmarks.fake_engine import VOCAB_SIZE, FakeRunner, add, fake_core
from rosellm.bench import loop
from rosellm.bench.stats import milliseconds
from rosellm.roseinfer.engine.client import ProcessClient
from rosellm.roseinfer.engine.listener import EngineListener
from rosellm.roseinfer.messages import Add, Outputs

ROOT = Path(__file__).parents[1]
AIM_MS = 0.5
PACE_S = 0.002
WARM = 50


def measure(*, sequences: int = 32, context: int = 512, steps: int = 500) -> dict[str, Any]:
    """Measure all three."""
    adds = _adds(sequences, context, WARM + steps)
    engine, delivery = loop.run(_across_processes(adds))
    return {
        "sequences": sequences,
        "context": context,
        "aim_ms": AIM_MS,
        "in_process_ms": milliseconds(_in_process(adds)),
        "engine_process_ms": milliseconds(engine),
        "delivery_ms": milliseconds(delivery),
    }


def report(found: dict[str, Any]) -> list[str]:
    names = {
        "in_process_ms": "scheduler, in process",
        "engine_process_ms": "scheduler + IPC, engine process",
        "delivery_ms": "rows reach the API process after",
    }
    return [
        f"{name:34} p50 {found[key]['p50']:.3f} ms, p99 {found[key]['p99']:.3f} ms"
        f"   (aim: below {AIM_MS} ms)"
        for key, name in names.items()
    ]


def _adds(sequences: int, context: int, max_tokens: int) -> list[Add]:
    source = random.Random(0)
    prompts = [source.choices(range(VOCAB_SIZE), k=context) for _ in range(sequences)]
    return [add(id, prompt, max_tokens) for id, prompt in enumerate(prompts, 1)]


def _in_process(adds: list[Add]) -> list[float]:
    runner = FakeRunner()
    core = fake_core(runner, sequences=len(adds), step_tokens=4096, max_model_len=8192)
    for message in adds:
        core.add(message)
    while core.has_work:
        core.step()
    return _decoding(runner, len(adds))


def _decoding(runner: FakeRunner, sequences: int) -> list[float]:
    """Gaps before steps in which all sequences decode, without the first ones."""
    gaps = zip(runner.gaps(), runner.tokens[1:], strict=True)
    return [gap for gap, tokens in gaps if tokens == sequences][WARM:]


class _FakeClient(ProcessClient):
    """The real client, except for which program it starts."""

    def __init__(self, pace: float, steps: int) -> None:
        self._sock, child = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fake_engine", str(child.fileno()), str(pace),
             str(steps)],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )  # fmt: skip
        child.close()
        self._transport = None

    def times(self) -> FakeRunner:
        """What the engine process noted."""
        pipe: IO[bytes] | None = self._process.stdout
        assert pipe is not None
        with pipe:
            return FakeRunner(**json.loads(pipe.readline()))


class _Clock(EngineListener):
    """When the rows of each step arrive, until every request has had its last."""

    def __init__(self, requests: int) -> None:
        self.arrivals: dict[int, float] = {}
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unfinished = requests

    def on_outputs(self, outputs: Outputs) -> None:
        self.arrivals[outputs.stats.steps] = time.perf_counter()
        self._unfinished -= sum(row.last for row in outputs.rows)
        if not self._unfinished:
            self.finished.set_result(None)

    def on_death(self, reason: str) -> None:
        self.finished.set_exception(RuntimeError(reason))


async def _across_processes(adds: list[Add]) -> tuple[list[float], list[float]]:
    """Gaps in the engine process, and how long rows take to reach this one."""
    clock = _Clock(len(adds))
    client = _FakeClient(PACE_S, adds[0].params.max_tokens)
    await client.start(clock)
    try:
        for message in adds:
            client.send(message)
        await clock.finished
        runner = await asyncio.to_thread(client.times)
    finally:
        await client.stop()
    noted = range(WARM, len(runner.left))
    delivery = [clock.arrivals[step + 1] - runner.left[step] for step in noted]
    return _decoding(runner, len(adds)), delivery

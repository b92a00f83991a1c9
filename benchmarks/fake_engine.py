"""An engine whose model takes no time, to see what everything round the model takes.

As a program (``python -m benchmarks.fake_engine FD PACE STEPS``) it is the engine process with
such a model in it: the threads, the framing and the loop are those of ``engine/process.py``.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.config import SchedulerConfig
from rosellm.roseinfer.engine import process
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.loop import run_engine
from rosellm.roseinfer.messages import Abort, Add, Flush, Ready, Start, decode_to_engine
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import Sample, StepPlan, StepResult, WorkResult

BLOCK_SIZE = 16
VOCAB_SIZE = 50257


@dataclass(frozen=True)
class Done:
    """A plan that has been executed."""

    work: tuple[WorkResult, ...]

    def result(self) -> StepResult:
        return StepResult(self.work)


@dataclass
class FakeRunner:
    """Samples the same token for everything, and notes when it was called.

    Attributes:
        pace: seconds to sleep as a model would compute, without the interpreter's lock.
        entered, left: ``time.perf_counter()`` of every call.
        tokens: that every call was to compute.
    """

    pace: float = 0.0
    entered: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def execute(self, plan: StepPlan) -> Done:
        self.entered.append(time.perf_counter())
        self.tokens.append(plan.num_tokens)
        done = tuple(WorkResult(tuple(Sample(7) for _ in w.logits)) for w in plan.work)
        if self.pace:
            time.sleep(self.pace)
        self.left.append(time.perf_counter())
        return Done(done)

    def probe(self) -> None:
        """Nothing of it can break."""

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        """It takes no memory."""
        return False

    def gaps(self) -> list[float]:
        """Seconds from each call's end to the next one's start: all that is not the model."""
        ends = zip(self.left, self.entered[1:], strict=False)
        return [entered - left for left, entered in ends]


def fake_core(
    runner: FakeRunner, *, sequences: int, step_tokens: int, max_model_len: int
) -> EngineCore:
    """An engine over the fake model, with room for one full context beside short ones."""
    num_blocks = (max_model_len + sequences * 4096) // BLOCK_SIZE
    facts = Ready(
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        capacity_tokens=num_blocks * BLOCK_SIZE,
        dtype="none",
        device="none",
        invariant=True,
        fingerprint="fake",
    )
    return EngineCore(
        runner,
        facts,
        SchedulerConfig(max_num_seqs=sequences),
        cache=CacheManager([BlockPool(num_blocks)], BLOCK_SIZE, prefix_cache=True),
        step_tokens=step_tokens,
    )


def add(id: int, prompt: Sequence[int], max_tokens: int) -> Add:
    """A greedy request that nothing ends before ``max_tokens``."""
    return Add(id, list(prompt), SamplingParams(seed=id, max_tokens=max_tokens, temperature=0))


def decode(item: bytes | None) -> Add | Abort | Flush | None:
    """A message as the engine's loop takes it; None ends the loop."""
    message = None if item is None else decode_to_engine(item)
    assert not isinstance(message, Start)
    return message


class _ReportingRunner(FakeRunner):
    """Prints its times when the last request is about to end."""

    steps = 0

    def execute(self, plan: StepPlan) -> Done:
        done = super().execute(plan)
        if len(self.left) == self.steps:
            times = {"entered": self.entered, "left": self.left, "tokens": self.tokens}
            print(json.dumps(times), flush=True)
        return done


def main(fd: int, pace: float, steps: int) -> None:
    """Serve until the socket closes; print the times of the first ``steps`` steps."""
    runner = _ReportingRunner(pace)
    runner.steps = steps
    core = fake_core(runner, sequences=64, step_tokens=4096, max_model_len=8192)
    link = process._Link(socket.socket(fileno=fd))
    link.send(core.facts)
    run_engine(core, link.inbox, decode, link.send)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

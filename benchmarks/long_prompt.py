"""What running streams notice of a very long prompt that arrives beside them.

Eight streams decode; then one prompt of 100k tokens comes in, as bytes through the engine's own
loop. It is measured twice:

* with a fake model: the time between two executions, which is decoding the message, hashing its
  blocks and scheduling. Bounded work a step keeps it small.
* with a small real model: the time between two tokens of the running streams. Each step computes
  a chunk of the prompt within the token budget, so the price is that chunk.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.fake_engine import FakeRunner, add, decode, fake_core
from rosellm.bench import ceilings, cost
from rosellm.bench.stats import milliseconds
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.loop import run_engine
from rosellm.roseinfer.messages import Outputs, encode

STREAMS = 8
CONTEXT = 512
WARM, BEFORE = 50, 200
LONG_ID = STREAMS + 1
MAX_LEN = 131072
STEP_TOKENS = {"cpu": 512, "cuda": 4096}  # the engine's defaults


def measure_fake(*, prompt_tokens: int) -> dict[str, Any]:
    """Time a step spends outside the model, before and while the prompt is taken in."""
    runner = FakeRunner()
    budget = STEP_TOKENS["cpu"]
    core = fake_core(runner, sequences=2 * STREAMS, step_tokens=budget, max_model_len=MAX_LEN)
    calls = _run(core, prompt_tokens).calls
    gaps = runner.gaps()
    return {
        "streams": STREAMS,
        "prompt_tokens": prompt_tokens,
        "step_tokens": budget,
        "steps_while": len(gaps) - calls + 1,
        "before_ms": milliseconds(gaps[calls - BEFORE : calls - 1]),
        "while_ms": milliseconds(gaps[calls - 1 :]),
        "taking_in_ms": round(gaps[calls - 1] * 1e3, 3),
    }


def measure_real(model: Path, *, device: str, dtype: str, prompt_tokens: int) -> dict[str, Any]:
    """Time between tokens of the running streams, before and while the prompt is taken in."""
    budget = STEP_TOKENS[device]
    config = EngineConfig(
        ModelConfig(str(model), device=device, dtype=dtype),  # type: ignore[arg-type]
        CacheConfig(kv_cache_gb=0.5),
        SchedulerConfig(max_num_seqs=2 * STREAMS, max_num_batched_tokens=budget),
    )
    core = build_engine(config)
    watch = _run(core, prompt_tokens)
    before, after = watch.times[: watch.arrived], watch.times[watch.arrived - 1 :]
    limits = ceilings.measure(core.facts.device, core.facts.dtype)
    bounds = cost.model_cost(str(model), core.facts.dtype)
    return {
        "model": model.name,
        "dtype": core.facts.dtype,
        "device": core.facts.device,
        "streams": STREAMS,
        "prompt_tokens": prompt_tokens,
        "step_tokens": budget,
        "before_itl_ms": milliseconds(b - a for a, b in pairwise(before[WARM:])),
        "while_itl_ms": milliseconds(b - a for a, b in pairwise(after)),
        "prompt_s": round(after[-1] - after[0], 3),
        "last_chunk_bound_ms": round(1e3 * budget / bounds.compute_bound(limits, prompt_tokens), 3),
        "gflop_s": limits.gflop_s,
    }


def report_fake(found: dict[str, Any]) -> list[str]:
    taken_in = (
        f"{found['steps_while']} steps; taking the message in: {found['taking_in_ms']:.1f} ms"
    )
    return [
        f"outside the model, before  {_spread(found['before_ms'])}",
        f"                   while   {_spread(found['while_ms'])}   ({taken_in})",
    ]


def report_real(found: dict[str, Any]) -> list[str]:
    bound = f"the last chunk's arithmetic alone: {found['last_chunk_bound_ms']:.1f} ms"
    return [
        f"ITL of {STREAMS} streams, before  {_spread(found['before_itl_ms'])}",
        f"                  while   {_spread(found['while_itl_ms'])}   ({bound})",
        f"the prompt took {found['prompt_s']:.1f} s",
    ]


def _spread(values: dict[str, float]) -> str:
    return f"p50 {values['p50']:.2f} ms, p99 {values['p99']:.2f} ms, max {values['max']:.2f} ms"


@dataclass
class _Watch:
    """Listens to an engine, and sends it the long prompt when the streams have settled.

    Attributes:
        times: of the steps that gave every stream a token.
        arrived: how many of them there were when the long prompt was sent.
        calls: how many steps there had been in all by then.
    """

    inbox: SimpleQueue[bytes | None]
    message: bytes
    times: list[float] = field(default_factory=list)
    arrived: int = 0
    calls: int = 0

    def emit(self, outputs: Outputs) -> None:
        if sum(row.id != LONG_ID for row in outputs.rows) == STREAMS:
            self.times.append(time.perf_counter())
        if len(self.times) == WARM + BEFORE and not self.arrived:
            self.arrived, self.calls = len(self.times), outputs.stats.steps
            self.inbox.put(self.message)
        if any(row.id == LONG_ID for row in outputs.rows):
            self.inbox.put(None)


def _run(core: EngineCore, prompt_tokens: int) -> _Watch:
    """Let the streams decode, send the long prompt, and stop at its first token."""
    source = random.Random(0)
    ids = range(core.facts.vocab_size)
    inbox: SimpleQueue[bytes | None] = SimpleQueue()
    for id in range(1, STREAMS + 1):
        inbox.put(encode(add(id, source.choices(ids, k=CONTEXT), MAX_LEN - CONTEXT)))
    watch = _Watch(inbox, encode(add(LONG_ID, source.choices(ids, k=prompt_tokens), 16)))
    run_engine(core, inbox, decode, watch.emit)
    return watch

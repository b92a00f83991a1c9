"""Engines over random weights that stand on no disk, and what is asked of them."""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_model import describe_model, random_weights, write_model
from rosellm.bench import offline
from rosellm.bench.lengths import Lengths
from rosellm.bench.offline import Load, Steps
from rosellm.roseinfer.config import (
    UNBOUNDED,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.loading.checkpoint import Checkpoint
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner.choices import Described, choose
from rosellm.roseinfer.runner.fetch import Fetched

Shape = dict[str, Any]

_ids = itertools.count(1 << 40)


@dataclass(frozen=True)
class Bench:
    """Where and how large.

    Attributes:
        shapes: config.json of each model.
        scratch: a folder for what must be a file.
    """

    device: str
    dtype: str
    tiny: bool
    shapes: dict[str, Shape]
    scratch: Path

    @property
    def decode_steps(self) -> int:
        return 4 if self.tiny else 128

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 4) if self.tiny else (1, 8, 64, 256)

    @property
    def peer_batches(self) -> tuple[int, ...]:
        """Those at which something is compared."""
        return (1, 4) if self.tiny else (1, 64)

    @property
    def prefill_tokens(self) -> int:
        return 40 if self.tiny else 8192

    @property
    def nano(self) -> tuple[int, Lengths, Lengths]:
        """Sequences, and their tokens in and out."""
        if self.tiny:
            return 6, Lengths(4, 12), Lengths(4, 8)
        return 256, Lengths(100, 1024), Lengths(100, 1024)

    def write(self, shape: str, folder: Path) -> Path:
        """The model as files."""
        return write_model(self.shapes[shape], folder, dtype=getattr(torch, self.dtype))

    @contextmanager
    def engine(self, shape: Shape, **settings: Any) -> Iterator[Engine]:
        """An engine; all that it held is free afterwards."""
        folder = self.scratch / str(next(_ids))
        dtype = getattr(torch, self.dtype)
        describe_model(shape, folder, dtype=dtype)
        config = _config(folder, device=self.device, dtype=self.dtype, **settings)
        weights = _checkpoint(shape, dtype, torch.device(self.device))
        engine = Engine(build_engine(config, checkpoint=weights), _weight_bytes(config, weights))
        try:
            yield engine
        finally:
            engine.core = None  # type: ignore[assignment]
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()


def _weight_bytes(config: EngineConfig, checkpoint: Checkpoint) -> int:
    """All weights, as the engine holds them."""
    architecture = find_architecture(checkpoint.architecture)
    spec = architecture.read_config(checkpoint.config)
    made = choose(config, Described(architecture, spec, checkpoint.dtype))
    return made.model.weight_bytes(made.dtype)


def _config(folder: Path, **settings: Any) -> EngineConfig:
    named = {"model": str(folder), "max_queue": 4096, "max_queue_tokens": UNBOUNDED, **settings}
    kinds: dict[str, Any]
    kinds = {"model": ModelConfig, "cache": CacheConfig, "scheduler": SchedulerConfig}
    parts: dict[str, Any] = {}
    for part, kind in kinds.items():
        own = {field.name for field in fields(kind)} & named.keys()
        parts[part] = kind(**{name: named.pop(name) for name in own})
    assert not named, f"no such settings: {sorted(named)}"
    return EngineConfig(**parts)


def _checkpoint(shape: Shape, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    """Weights that are made on the device as they are asked for."""
    kind = str(dtype).removeprefix("torch.")
    return Checkpoint(
        architecture=shape["architectures"][0],
        config=shape,
        dtype=kind,
        num_bytes=1,
        tensors=lambda: random_weights(shape, dtype, device),
    )


class Engine:
    """An engine, and the bytes of its weights."""

    def __init__(self, core: EngineCore, weight_bytes: int) -> None:
        self.core = core
        self._spec = core.runner.model.spec  # type: ignore[attr-defined]
        dtype = getattr(torch, core.facts.dtype)
        table = self._spec.vocab_size * self._spec.hidden_size * dtype.itemsize
        # a table that is no head is looked up, not read
        self.bytes_a_token = weight_bytes - (0 if self._spec.tied else table)
        self._weights = self.bytes_a_token // dtype.itemsize

    @property
    def longest(self) -> int:
        return self.core.facts.max_model_len

    def decisions(self) -> list[str]:
        return [f"{each.name}: {each.value} ({each.reason})" for each in self.core.facts.decisions]

    def flop_a_token(self, length: int) -> float:
        """Of a prompt of that length: two for each weight but the head's, and attention."""
        spec = self._spec
        head = spec.vocab_size * spec.hidden_size
        attention = 2 * spec.heads * spec.head_dim * length * spec.num_layers
        return 2.0 * (self._weights - head) + attention

    def warm_up(self) -> None:
        """What the first steps of each kind prepare; nothing of it is counted."""
        self.decode(4, 6)

    def decode(self, batch: int, steps: int) -> float:
        """Tokens a second of so many streams, once graphs are recorded and nothing is compiled."""
        for _ in range(2):  # the first one prepares
            run = self._drive([self._add(16, steps + 8) for _ in range(batch)])
            pairs = zip(run.seconds, run.sampled, strict=True)
            seconds = [taken for taken, sampled in pairs if sampled == batch]
        if not seconds:
            raise RuntimeError(f"{batch} sequences do not run at the same time")
        tail = seconds[len(seconds) // 4 :]
        return batch * len(tail) / sum(tail)

    def prefill(self, count: int) -> float:
        """Tokens a second of one prompt."""
        self._drive([self._add(count, 1)])
        self.core.scheduler.cache.flush()
        start = time.perf_counter()
        self._drive([self._add(count, 1)])
        return count / (time.perf_counter() - start)

    def offline(self, count: int, inputs: Lengths, outputs: Lengths) -> tuple[float, int, float]:
        """Output tokens a second of random requests, all there at the start."""
        adds = offline.requests(self.core.facts.vocab_size, Load(count, inputs, outputs, seed=0))
        start = time.perf_counter()
        steps = self._drive(adds)
        seconds = time.perf_counter() - start
        tokens = sum(steps.sampled)
        return tokens / seconds, tokens, seconds

    def idle(self, batch: int, steps: int) -> dict[str, float]:
        """Milliseconds of a step, of the host's part, and the share in which no kernel ran.

        The host's part is the time in which it does not wait for results. Processor time would
        be more: waiting for an event is done by asking again and again.
        """
        self.decode(batch, 8)
        for add in [self._add(16, steps + 8) for _ in range(batch)]:
            self.core.add(add)
        for _ in range(6):
            self.core.step()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities = [torch.profiler.ProfilerActivity.CUDA]
        taken = 0
        with torch.profiler.profile(activities=activities) as trace, waits() as waited:
            start = time.perf_counter()
            while self.core.has_work and taken < steps:
                self.core.step()
                taken += 1
            wall = time.perf_counter() - start
            busy = wall - sum(waited)
        while self.core.has_work:
            self.core.step()
        found = {"step_ms": 1e3 * wall / taken, "host_ms": 1e3 * busy / taken}
        kernels = sum(event.device_time_total for event in trace.key_averages()) / 1e6
        return {**found, "idle_share": max(0.0, 1 - kernels / wall)} if kernels else found

    def _add(self, prompt: int, tokens: int) -> Add:
        source = random.Random(next(_ids))
        ids = source.choices(range(self.core.facts.vocab_size), k=prompt)
        return Add(next(_ids), ids, SamplingParams(seed=0, max_tokens=tokens, temperature=0))

    def _drive(self, adds: list[Add]) -> Steps:
        return offline.drive(self.core, adds)


@contextmanager
def waits() -> Iterator[list[float]]:
    """Seconds of each wait for a step's results."""
    plain, seconds = Fetched.wait, list[float]()

    def timed(fetched: Fetched) -> list[torch.Tensor]:
        start = time.perf_counter()
        try:
            return plain(fetched)
        finally:
            seconds.append(time.perf_counter() - start)

    Fetched.wait = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Fetched.wait = plain  # type: ignore[method-assign]

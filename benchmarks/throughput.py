"""Throughput at several streams against one: how much a batch costs beyond a single sequence.

Every run adds so many requests at once and takes the engine to their end. Runs of different
sizes take turns, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rosellm.bench import ceilings, cost
from rosellm.bench.lengths import Lengths
from rosellm.bench.offline import Load, drive, requests
from rosellm.bench.stats import median
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore

STREAMS = (1, 8, 32)
INPUT, OUTPUT = 32, 64


def measure(model: Path, *, device: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Medians over interleaved runs, after one of each size to warm up."""
    config = EngineConfig(
        ModelConfig(str(model), device=device, dtype=dtype),  # type: ignore[arg-type]
        CacheConfig(prefix_cache=False),
        SchedulerConfig(max_num_seqs=max(STREAMS)),
    )
    core = build_engine(config)
    rates: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    for turn in range(rounds + 1):
        for streams in STREAMS:
            rate = _run(core, streams, seed=turn)
            if turn:
                rates[streams].append(rate)
    one = median(rates[STREAMS[0]])
    limits = ceilings.measure(core.facts.device, core.facts.dtype)
    bounds = cost.model_cost(str(model), core.facts.dtype)
    context = INPUT + OUTPUT / 2
    return {
        "model": model.name,
        "dtype": core.facts.dtype,
        "device": core.facts.device,
        "input_tokens": INPUT,
        "output_tokens": OUTPUT,
        "rounds": rounds,
        "runs": [
            {
                "streams": streams,
                "output_tokens_per_s": round(median(rates[streams]), 2),
                "slowest": round(min(rates[streams]), 2),
                "fastest": round(max(rates[streams]), 2),
                "against_one": round(median(rates[streams]) / one, 2),
                "bandwidth_bound": round(bounds.bandwidth_bound(limits, streams, context), 1),
                "compute_bound": round(bounds.compute_bound(limits, context), 1),
            }
            for streams in STREAMS
        ],
        **asdict(limits),
    }


def report(found: dict[str, Any]) -> list[str]:
    return [
        f"{run['streams']:3} streams {run['output_tokens_per_s']:10,.1f} output tokens/s"
        f"   x {run['against_one']:.2f}   (at most {run['bandwidth_bound']:,.0f} by memory,"
        f" {run['compute_bound']:,.0f} by arithmetic)"
        for run in found["runs"]
    ]


def _run(core: EngineCore, streams: int, seed: int) -> float:
    """Output tokens a second, prompts included in the time."""
    load = Load(streams, Lengths(INPUT, INPUT), Lengths(OUTPUT, OUTPUT), seed)
    steps = drive(core, requests(core.facts.vocab_size, load))
    return sum(steps.sampled) / sum(steps.seconds)

"""This engine: its native kernels in every format, and the reference path in plain torch.

Run as a module it is the worker of one format.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.peers.contender import Batch, Bits, Service, Setup, Speeds
from benchmarks.peers.worker import Worker, serve
from rosellm.bench.cost import model_cost
from rosellm.bench.lengths import Lengths
from rosellm.bench.offline import Load, drive, requests
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.kernels.table import choose_ops
from rosellm.roseinfer.loading.open import open_checkpoint
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.runner.resolve import resolve_quantization

_HEAD4 = ["--quantization", "int4", "--head-quantization", "int4"]
_GROUPS = ["--quantization", "int8", "--quantization-group", "128"]
_CACHE8 = ["--kv-cache-dtype", "int8"]  # as OpenVINO keeps keys and values unless it is told else

FLAGS: dict[str, tuple[Bits, list[str]]] = {
    "int4, head int4": (4, _HEAD4),
    "int4, head int4, cache int8": (4, [*_HEAD4, *_CACHE8]),
    "int4, head int8": (4, ["--quantization", "int4"]),
    "int8": (8, ["--quantization", "int8"]),
    "int8, groups of 128": (8, _GROUPS),
    "int8, groups of 128, cache int8": (8, [*_GROUPS, *_CACHE8]),
    "bf16": (16, []),
    "reference bf16": (16, ["--kernels", "reference"]),
}

MOST_STREAMS = 32
CACHE_GB = 2.0


def contenders(setup: Setup) -> list[Worker]:
    return [
        Worker(f"rosellm {name}", bits, _worker(setup, flags), setup.threads)
        for name, (bits, flags) in FLAGS.items()
        if bits in setup.bits
    ]


def _worker(setup: Setup, flags: list[str]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.ours", str(setup.model), *flags]


@dataclass(frozen=True)
class Ours:
    """``rosellm serve``, as far as the command line goes."""

    setup: Setup
    format: str

    @property
    def name(self) -> str:
        return f"rosellm {self.format}"

    @property
    def bits(self) -> Bits:
        return FLAGS[self.format][0]

    def command(self, port: int, streams: int, context: int) -> list[str]:
        module = [sys.executable, "-m", "rosellm.roseinfer.server", str(self.setup.model)]
        sizes = {"--port": port, "--max-num-seqs": streams, "--max-model-len": context}
        flags = [str(word) for pair in sizes.items() for word in pair]
        fixed = ["--dtype", "bfloat16", "--kv-cache-gb", str(CACHE_GB), "--no-access-log"]
        return [*module, *flags, *fixed, *FLAGS[self.format][1]]


def services(setup: Setup) -> list[Service]:
    return [
        Ours(setup, name)
        for name, (bits, _) in FLAGS.items()
        if bits in setup.bits and not name.startswith("reference")
    ]


def weight_bits(model: Path, flags: list[str]) -> float:
    """Bits a weight of a model that is served with these flags."""
    config = _config(_arguments([str(model), *flags]))
    return 8 * _weight_bytes(config) / model_cost(str(model), "bfloat16").parameters


def _load(args: argparse.Namespace) -> tuple[int, Callable[[Batch], Speeds]]:
    model = _config(args)
    scheduler = SchedulerConfig(max_num_seqs=MOST_STREAMS)
    kv_dtype = args.kv_cache_dtype
    cache = CacheConfig(prefix_cache=False, kv_cache_gb=CACHE_GB, kv_cache_dtype=kv_dtype)
    core = build_engine(EngineConfig(model, cache, scheduler))

    def run(batch: Batch) -> Speeds:
        steps = drive(core, requests_of(core.facts.vocab_size, batch))
        each = list(zip(steps.seconds, steps.computed, steps.sampled, strict=True))
        whole = batch.streams, batch.streams
        return Speeds(
            _rate((computed, s) for s, computed, sampled in each if (computed, sampled) != whole),
            _rate((sampled, s) for s, computed, sampled in each if (computed, sampled) == whole),
        )

    return _weight_bytes(model), run


def _config(args: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        args.model,
        device="cpu",
        dtype="bfloat16",
        quantization=args.quantization,
        quantization_group=args.quantization_group,
        head_quantization=args.head_quantization,
        kernels=args.kernels,
    )


def requests_of(vocab_size: int, batch: Batch) -> list[Add]:
    fixed = Lengths(batch.prompt, batch.prompt), Lengths(batch.output, batch.output)
    return requests(vocab_size, Load(batch.streams, *fixed, seed=0))


def _rate(steps: Iterable[tuple[int, float]]) -> float:
    """Tokens a second of steps that gave tokens and took seconds.

    Raises:
        ValueError: there are none: answers were too short for all streams to decode at once.
    """
    pairs = list(steps)
    if not pairs:
        raise ValueError("no step was of the kind that is measured: answers are too short")
    return sum(tokens for tokens, _ in pairs) / sum(s for _, s in pairs)


def _weight_bytes(config: ModelConfig) -> int:
    checkpoint = open_checkpoint(config.model)
    architecture = find_architecture(checkpoint.architecture)
    with torch.device("meta"):
        ops = choose_ops(torch.device("cpu"))
        model = architecture.build(ops, architecture.read_config(checkpoint.config))
    model.hold(resolve_quantization(config, checkpoint.recipe))
    return model.weight_bytes(torch.bfloat16)


def _arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--quantization-group", type=int)
    parser.add_argument("--head-quantization", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--kernels", default="auto")
    return parser.parse_args(words)


if __name__ == "__main__":
    serve(lambda: _load(_arguments()))

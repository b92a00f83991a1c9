"""Where the time of a step goes on a CPU, and the least that it could be.

    python -m benchmarks.cpu_profile --model qwen3-0.6b --quantization int4

Operations of the native program are timed while one prompt is read, and while 1, 8 and 32 streams
get tokens; what is not an operation is the head, the sampling and Python. A product's floor is the
longer of reading its weights once a step and of multiplying, at the speeds that are measured in
registers and from memory between the runs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.cpu_kernels import Peaks
from benchmarks.peers import ours
from benchmarks.peers.contender import Batch
from benchmarks.random_model import SHAPES, write_model
from rosellm.bench.machine import describe
from rosellm.bench.offline import drive
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.kernels.cpu.library import Library, load
from rosellm.roseinfer.kernels.cpu.program import Program

WORK = {
    "a prompt of 512": Batch(streams=1, prompt=512, output=1),
    "one stream": Batch(streams=1, prompt=1, output=48),
    "8 streams": Batch(streams=8, prompt=1, output=32),
    "32 streams": Batch(streams=32, prompt=1, output=16),
}
WARM_UP = Batch(streams=2, prompt=8, output=4)
BITS = {"int8": 8.5, "int4": 4.56, "none": 16.0}


@dataclass(frozen=True)
class Line:
    """What all operations of one kind took.

    Attributes:
        floor: seconds that a product could not go below; None of other operations.
    """

    work: str
    what: str
    seconds: float
    share: float
    floor: float | None


def profile(core: EngineCore, config: ModelConfig, peaks: Peaks) -> Iterator[Line]:
    """A line for each kind of operation and of work, the slowest first."""
    program = core.runner.forward.hidden
    assert isinstance(program, Program), "the model does not run as one native call"
    for work, batch in WORK.items():
        drive(core, ours.requests_of(core.facts.vocab_size, WARM_UP))
        peaks.measure()
        program.time_operations()
        steps = drive(core, ours.requests_of(core.facts.vocab_size, batch))
        total, times = sum(steps.seconds), program.times()
        times["Python"] = total - sum(times.values())
        layers = core.runner.model.spec.num_layers
        for what, seconds in sorted(times.items(), key=lambda pair: -pair[1]):
            floor = _floor(what, steps.computed, layers, config, peaks.best())
            yield Line(work, what, seconds, seconds / total, floor)


def _floor(
    what: str, rows: list[int], layers: int, config: ModelConfig, peaks: dict[str, float]
) -> float | None:
    found = re.fullmatch(r"linear (\d+) x (\d+)", what)
    if not found:
        return None
    weights = int(found[1]) * int(found[2]) * layers
    peak = peaks["bf16" if config.quantization == "none" else "int8"] * 1e9
    read = weights * BITS[config.quantization] / 8 / (peaks["read"] * 1e9)
    return sum(max(read, 2 * weights * each / peak) for each in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="qwen3-0.6b", help="whose shape")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of models")
    parser.add_argument("--quantization", choices=BITS, default="int4")
    args = parser.parse_args()
    library = load()
    if not isinstance(library, Library):
        raise SystemExit(f"error: {library.reason}")
    model = args.models / args.model
    if not (model / "model.safetensors").exists():
        write_model(SHAPES[args.model], model, dtype=torch.bfloat16)
    config = ModelConfig(str(model), device="cpu", dtype="bfloat16", quantization=args.quantization)
    cache = CacheConfig(prefix_cache=False, kv_cache_gb=ours.CACHE_GB)
    scheduler = SchedulerConfig(max_num_seqs=ours.MOST_STREAMS)
    peaks = Peaks(library)
    core = build_engine(EngineConfig(config, cache, scheduler))
    lines = list(profile(core, config, peaks))
    for line in lines:
        floor = "" if line.floor is None else f"floor {1e3 * line.floor:8.1f} ms"
        print(
            f"{line.work:16} {line.what:24} {1e3 * line.seconds:9.1f} ms {line.share:6.1%}  {floor}"
        )
    found = {"benchmark": "cpu-profile", "model": args.model, "quantization": args.quantization}
    found |= {"kernels": library.describe(), "ceilings": peaks.best(), "machine": describe()}
    print(json.dumps({**found, "lines": [asdict(line) for line in lines]}))


if __name__ == "__main__":
    main()

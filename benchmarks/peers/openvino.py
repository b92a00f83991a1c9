"""OpenVINO GenAI's continuous batching, under a Python of its own.

In a virtual environment: pip install openvino-genai, then optimum-intel and nncf, which export a
model. Run as a module it is the worker of one format.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.contender import Absent, Batch, Bits, Setup, Speeds, run_once
from benchmarks.peers.worker import Worker, serve

HOW = (
    "pip install openvino-genai optimum-intel nncf in a virtual environment; --openvino its python"
)

_GROUPS = "--group-size 128 --group-size-fallback adjust"
EXPORTS: dict[str, tuple[Bits, list[str]]] = {
    "int4": (4, f"--weight-format int4 --ratio 1.0 {_GROUPS}".split()),
    "int8": (8, ["--weight-format", "int8"]),
    "bf16": (16, ["--weight-format", "fp16"]),
}
PROPERTIES = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128, "PERFORMANCE_HINT": "LATENCY"}
STEP_TOKENS = 512
CACHE_GB = 2


@dataclass
class OpenVino(Worker):
    """Exports the model before it is opened for the first time."""

    model: Path = Path()
    export: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.command[3])

    def open(self) -> None:
        if not (self.folder / "openvino_model.bin").exists():
            script = "from optimum.commands.optimum_cli import main; main()"
            task = ["--task", "text-generation-with-past", "--model", str(self.model)]
            optimum = [self.command[0], "-c", script, "export", "openvino", *task]
            run_once([*optimum, *self.export, str(self.folder)], self.threads)
        super().open()

    def scoring(self) -> list[str]:
        """See ``Scoring``."""
        return [self.command[0], "-m", "benchmarks.peers.openvino_logits", str(self.folder)]


def contenders(setup: Setup) -> list[OpenVino]:
    if setup.openvino is None:
        raise Absent(HOW)
    return [
        OpenVino(
            f"OpenVINO {name}",
            bits,
            _worker(setup, name),
            setup.threads,
            model=setup.model,
            export=export,
        )
        for name, (bits, export) in EXPORTS.items()
        if bits in setup.bits
    ]


def _worker(setup: Setup, name: str) -> list[str]:
    folder = setup.forms / f"openvino-{name}"
    python = [str(setup.openvino), "-m", "benchmarks.peers.openvino"]
    return [*python, str(folder), "--threads", str(setup.threads)]


# -- under the other Python ---------------------------------------------------------------------


def _load(folder: Path, threads: int) -> tuple[int, Callable[[Batch], Speeds]]:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = STEP_TOKENS
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    properties = PROPERTIES | {"INFERENCE_NUM_THREADS": threads}
    pipe = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
    vocab = _vocab_size(folder)
    return (folder / "openvino_model.bin").stat().st_size, lambda batch: _run(pipe, vocab, batch)


def _vocab_size(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size


def _run(pipe: Any, vocab: int, batch: Batch) -> Speeds:
    """Prompts are read until every stream has its first token; then steps give one token each."""
    handles = [_add(pipe, vocab, batch, index) for index in range(batch.streams)]
    start = time.perf_counter()
    made = [0] * batch.streams
    while not all(made):
        _step(pipe, handles, made)
    read, before = time.perf_counter(), sum(made)
    tokens, end = 0, read
    while pipe.has_non_finished_requests():
        _step(pipe, handles, made)
        if max(made) < batch.output:  # every stream still decodes
            tokens, end = sum(made) - before, time.perf_counter()
    decode = tokens / (end - read) if tokens else 0.0
    return Speeds(batch.streams * batch.prompt / (read - start), decode)


def _add(pipe: Any, vocab: int, batch: Batch, index: int) -> Any:
    import numpy as np
    import openvino as ov
    import openvino_genai

    source = random.Random(index)
    ids = np.array([source.choices(range(vocab), k=batch.prompt)], dtype=np.int64)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = batch.output
    config.ignore_eos = True
    config.do_sample = False
    return pipe.add_request(index, ov.Tensor(ids), config)


def _step(pipe: Any, handles: list[Any], made: list[int]) -> None:
    pipe.step()
    for index, handle in enumerate(handles):
        while handle.can_read():
            for output in handle.read().values():
                made[index] += len(output.generated_ids)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: _load(args.folder, args.threads))


if __name__ == "__main__":
    main()

"""llama.cpp: its own benchmark programs and its server.

Its sources come with llama-cpp-python's source distribution, under ``vendor/llama.cpp``. Built
there with

    cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    ninja -C build llama-bench llama-batched-bench llama-server llama-quantize

that folder is what ``--llama-cpp`` takes.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.peers.contender import Absent, Batch, Bits, Service, Setup, Speeds, run_once

HOW = (
    "build llama-bench, llama-batched-bench, llama-server and llama-quantize from the llama.cpp in"
    " llama-cpp-python's source distribution; --llama-cpp its folder, the build in build/"
)

FORMATS: dict[str, Bits] = {"Q4_0": 4, "Q4_K_M": 4, "Q8_0": 8, "BF16": 16}

STEP_TOKENS = 512
"""Physical batch: the best of 128, 256, 512 and 1024 for prompts of 512."""


@dataclass(frozen=True)
class Llama:
    """One format, offline and over HTTP. Every measurement is a process of its own: the weights
    are mapped from a file that the disk cache holds, and its own warm-up touches them."""

    setup: Setup
    format: str

    @property
    def name(self) -> str:
        return f"llama.cpp {self.format}"

    @property
    def bits(self) -> Bits:
        return FORMATS[self.format]

    @cached_property
    def weight_bytes(self) -> int:
        tensors = self.package().GGUFReader(self.file).tensors
        return sum(int(tensor.n_bytes) for tensor in tensors)

    def package(self) -> Any:
        """The Python package ``gguf`` that comes with it."""
        path = str(self._home / "gguf-py")
        if path not in sys.path:
            sys.path.append(path)
        return importlib.import_module("gguf")

    @property
    def file(self) -> Path:
        return self.setup.forms / f"{self.format}.gguf"

    def open(self) -> None:
        """Convert the model, if that has not been done before."""
        if not self.file.exists():
            self._convert()

    def run(self, batch: Batch) -> Speeds:
        sizes = {"-npp": batch.prompt, "-ntg": batch.output, "-npl": batch.streams}
        sizes["-c"] = batch.streams * (batch.prompt + batch.output)
        lines = run_once(
            [self._program("llama-batched-bench"), *self._flags(sizes), "--output-format", "jsonl"],
            self.setup.threads,
        )
        found = next(json.loads(line) for line in lines.splitlines() if line.startswith("{"))
        return Speeds(found["speed_pp"], found["speed_tg"])

    def close(self) -> None:
        pass

    def scoring(self) -> list[str]:
        """See ``Scoring``."""
        module = [sys.executable, "-m", "benchmarks.peers.llama_logits"]
        return [*module, str(self._home), str(self.file)]

    def command(self, port: int, streams: int, context: int) -> list[str]:
        sizes = {"--port": port, "-np": streams, "-c": streams * context}
        return [self._program("llama-server"), *self._flags(sizes), "--no-webui"]

    def _flags(self, sizes: dict[str, int]) -> list[str]:
        sizes |= {"-t": self.setup.threads, "-ub": STEP_TOKENS}
        words = [str(word) for pair in sizes.items() for word in pair]
        return ["-m", str(self.file), "-b", "2048", "-fa", "on", *words]

    @property
    def _home(self) -> Path:
        assert self.setup.llama_cpp is not None
        return self.setup.llama_cpp

    def _program(self, name: str) -> str:
        return str(self._home / "build" / "bin" / name)

    def _convert(self) -> None:
        self.setup.forms.mkdir(parents=True, exist_ok=True)
        plain = self.setup.forms / "BF16.gguf"
        if not plain.exists():
            module = [sys.executable, "-m", "benchmarks.peers.to_gguf", str(self._home)]
            run_once(
                [*module, str(self.setup.model), "--outtype", "bf16", "--outfile", str(plain)], 2
            )
        if self.file != plain:
            quantize = [self._program("llama-quantize"), str(plain), str(self.file), self.format]
            run_once(quantize, self.setup.threads)


def contenders(setup: Setup) -> list[Llama]:
    home = setup.llama_cpp
    if home is None or not (home / "build" / "bin" / "llama-batched-bench").exists():
        raise Absent(HOW)
    return [Llama(setup, name) for name, bits in FORMATS.items() if bits in setup.bits]


def services(setup: Setup) -> list[Service]:
    return [*contenders(setup)]

"""What the engine itself costs: throughput, start, overhead of a step, a very long prompt.

    python -m benchmarks.core                              all of it, on the CPU
    python -m benchmarks.core --only overhead long-prompt
    python -m benchmarks.core --device cuda --dtype bfloat16

Models are random ones of real shapes (``random_model.py``), but for the demo model. The last line
of the output is one JSON object with every figure, fit for ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import first_token, long_prompt, overhead, throughput
from benchmarks.random_model import SHAPES, write_model
from rosellm.bench.machine import describe
from rosellm.roseinfer.demo import demo_model

Figures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The command line."""

    models: Path
    device: str
    dtype: str
    rounds: int
    prompt_tokens: int

    def model(self, shape: str) -> Path:
        """A model's folder, written when it is first asked for."""
        folder = self.models / shape
        if not (folder / "model.safetensors").exists():
            write_model(SHAPES[shape], folder)
        return folder

    def on_model(self, shape: str) -> dict[str, Any]:
        return {"model": self.model(shape), "device": self.device, "dtype": self.dtype}

    def on_demo(self) -> dict[str, Any]:
        """As on_model, with the demo model in the type that it is served in by default."""
        return {"model": Path(demo_model()), "device": self.device, "dtype": "auto"}


@dataclass(frozen=True)
class Section:
    """One thing to measure, and how to say what came of it."""

    title: str
    measure: Callable[[Run], Figures]
    report: Callable[[Figures], list[str]]


SECTIONS = {
    "throughput": Section(
        "throughput of GPT-2 small, random weights",
        lambda run: throughput.measure(**run.on_model("gpt2-small"), rounds=run.rounds),
        throughput.report,
    ),
    "first-token": Section(
        "from the command to the first token, GPT-2 small",
        lambda run: first_token.measure(**run.on_model("gpt2-small"), rounds=run.rounds),
        first_token.report,
    ),
    "demo-first-token": Section(
        "from the command to the first token of a chat, the demo model",
        lambda run: first_token.measure(**run.on_demo(), rounds=run.rounds, chat=True),
        first_token.report_demo,
    ),
    "overhead": Section(
        "a step beside its model, 32 sequences decoding",
        lambda _: overhead.measure(),
        overhead.report,
    ),
    "long-prompt": Section(
        "a very long prompt arrives, fake model",
        lambda run: long_prompt.measure_fake(prompt_tokens=run.prompt_tokens),
        long_prompt.report_fake,
    ),
    "long-prompt-model": Section(
        "a very long prompt arrives, two small layers",
        lambda run: long_prompt.measure_real(
            **run.on_model("tiny-long"), prompt_tokens=run.prompt_tokens
        ),
        long_prompt.report_real,
    ),
}


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(
            args.models or Path(scratch), args.device, args.dtype, args.rounds, args.prompt_tokens
        )
        found: Figures = {"benchmark": "core", "machine": describe(args.device)}
        for name in args.only or SECTIONS:
            section = SECTIONS[name]
            print(f"{section.title}", flush=True)
            found[name] = section.measure(run)
            print(*(f"  {line}" for line in section.report(found[name])), "", sep="\n", flush=True)
    print(json.dumps(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to run")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="interleaved repetitions (default: %(default)s)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument(
        "--models", type=Path, help="folder to write models to and keep; default: a temporary one"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    return args


if __name__ == "__main__":
    main()

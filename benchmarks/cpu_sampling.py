"""Choosing the tokens of a step natively, beside plain torch and reading the logits once.

    python -m benchmarks.cpu_sampling
    python -m benchmarks.cpu_sampling --rows 1 32 --spread 0.5 --rounds 9

Rows have as many logits as Qwen3 has tokens, normally distributed: widely spread ones leave few
tokens that count, as those of trained models do; narrow ones leave most. Both implementations take
turns; what is timed goes from Python to Python, as a step waits for it. The last line is one JSON
object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu_kernels import Peaks
from rosellm.bench.machine import describe
from rosellm.roseinfer.kernels.cpu.library import Library, load
from rosellm.roseinfer.kernels.table import Ops, native_ops, reference_ops
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import LogitRow

VOCAB_SIZE = 151_936
ROWS = [1, 8, 32]
LOGPROBS = 5
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
}
ENOUGH_S = 0.02


@dataclass
class Case:
    """One way of sampling, by both implementations.

    Attributes:
        calls: what is timed, by implementation.
        times: seconds a call, one sample a round.
    """

    kind: str
    rows: int
    calls: dict[str, Callable[[], object]]
    times: dict[str, list[float]] = field(default_factory=dict)

    def sample(self) -> None:
        for name, call in self.calls.items():
            calls, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < ENOUGH_S:
                call()
                calls += 1
            self.times.setdefault(name, []).append(elapsed / calls)


@dataclass(frozen=True)
class Figures:
    """What came of a case: medians."""

    kind: str
    rows: int
    native_us: float
    torch_us: float
    read_us: float
    ratio: float


def figures(case: Case, read: float) -> Figures:
    seconds = {name: median(times) for name, times in case.times.items()}
    return Figures(
        case.kind,
        case.rows,
        round(seconds["native"] * 1e6, 1),
        round(seconds["torch"] * 1e6, 1),
        round(case.rows * VOCAB_SIZE * 4 / read / 1e3, 1),
        round(seconds["torch"] / seconds["native"], 1),
    )


def cases(library: Library, rows: int, spread: float) -> list[Case]:
    logits = torch.randn(rows, VOCAB_SIZE) * spread
    ops = {"native": native_ops(library), "torch": reference_ops("to compare with")}
    found = []
    for kind, params in KINDS.items():
        wanted = [
            LogitRow(0, SamplingParams(seed=row, max_tokens=1, **params), 0, row)
            for row in range(rows)
        ]
        calls = {name: _drawing(each, logits, wanted) for name, each in ops.items()}
        found.append(Case(kind, rows, calls))
    tokens = logits.argmax(dim=-1)
    telling = {name: _telling(each, logits, tokens) for name, each in ops.items()}
    return [*found, Case(f"logprobs {LOGPROBS}", rows, telling)]


def _drawing(ops: Ops, logits: Tensor, rows: list[LogitRow]) -> Callable[[], object]:
    return lambda: ops.draw(logits, rows, None)


def _telling(ops: Ops, logits: Tensor, tokens: Tensor) -> Callable[[], object]:
    return lambda: ops.logprobs_of(logits, tokens, LOGPROBS)


def report(found: list[Figures], read: float) -> None:
    print(f"reading memory: {read:.1f} GB/s")
    print(f"{'kind':20} {'rows':>4} {'native us':>10} {'torch us':>10} {'ratio':>6} {'read us':>8}")
    for each in found:
        print(
            f"{each.kind:20} {each.rows:4} {each.native_us:10.1f} {each.torch_us:10.1f} "
            f"{each.ratio:6.1f} {each.read_us:8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of logits")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    options = parser.parse_args()
    library = load()
    if not isinstance(library, Library):
        raise SystemExit(f"error: {library.reason}")
    if options.threads:
        library.set_threads(options.threads)
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peaks = Peaks(library)
    chosen = [case for rows in options.rows for case in cases(library, rows, options.spread)]
    for _ in range(options.rounds):
        peaks.measure()
        for case in chosen:
            case.sample()
    read = peaks.best()["read"]
    found = [figures(case, read) for case in chosen]
    report(found, read)
    facts = {"machine": describe(), "kernels": library.describe(), "read_gb_s": read}
    print(json.dumps(facts | {"spread": options.spread, "sampling": [*map(asdict, found)]}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()

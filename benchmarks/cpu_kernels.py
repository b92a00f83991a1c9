"""The native matrix product beside what this machine can do at most.

    python -m benchmarks.cpu_kernels
    python -m benchmarks.cpu_kernels --formats int4/128 bf16 --rows 1 64 --rounds 9

Shapes are those of Qwen3-0.6B. Every weight is there so many times that no cache holds it, and the
copies take turns, as layers do. Ceilings (reading memory, multiplying in registers, on the same
threads) are measured between the products, since a machine's speed drifts. The share is that of the
faster of the two ceilings' times. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from rosellm.bench.machine import describe
from rosellm.roseinfer.kernels.cpu import build
from rosellm.roseinfer.kernels.cpu.library import BODY, Library, load
from rosellm.roseinfer.kernels.cpu.matrix import Finish, Format, Matrix, Shape

SHAPES: dict[str, tuple[int, int, Finish]] = {  # outputs, inputs
    "qkv": (4096, 1024, "store"),
    "out": (1024, 2048, "add"),
    "gate_up": (6144, 1024, "silu_mul"),
    "down": (1024, 3072, "add"),
    "head": (151936, 1024, "store"),
}
FORMATS = ["fp32", "fp16", "bf16", "int8/32", "int8/128", "int4/32", "int4/128"]
ROWS = [1, 8, 32, 64, 512]
HEAD_ROWS = 64  # only rows that are sampled from reach the head
WORKING_SET = 192 << 20
READ_TILE = 1 << 18
ENOUGH_S = 0.02
PEAKS = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "int8", "int4": "int8"}


class Peaks:
    """The ceilings of this machine.

    Attributes:
        samples: what was measured so far: GB/s read, and Gop/s by kind.
    """

    def __init__(self, library: Library) -> None:
        self._run = library.c.rose_run_tiles
        self._tiles = library.threads * 4
        self._c = _compiled()
        self._memory = torch.ones(WORKING_SET // 4)
        self.samples: dict[str, list[float]] = {"read": [], "fp32": [], "bf16": [], "int8": []}

    def measure(self) -> None:
        """Add one sample of each."""
        tiles = self._memory.nbytes // READ_TILE
        context = (ctypes.c_int64 * 2)(self._memory.data_ptr(), READ_TILE)
        seconds = self._timed("peak_read", tiles, context)
        self.samples["read"].append(tiles * READ_TILE / seconds / 1e9)
        for kind in ("fp32", "bf16", "int8"):
            count = getattr(self._c, f"peak_{kind}_operations")
            count.restype = ctypes.c_int64
            seconds = self._timed(f"peak_{kind}", self._tiles, None)
            self.samples[kind].append(count() * self._tiles / seconds / 1e9)

    def _timed(self, name: str, tiles: int, context: ctypes.Array[ctypes.c_int64] | None) -> float:
        body = ctypes.cast(getattr(self._c, name), BODY)
        started = time.perf_counter()
        self._run(tiles, body, context)
        return time.perf_counter() - started

    def best(self) -> dict[str, float]:
        """The median of each; a kind without an instruction of its own has fp32's."""
        found = {kind: median(samples) for kind, samples in self.samples.items()}
        return {kind: value or found["fp32"] for kind, value in found.items()}


def _compiled() -> ctypes.CDLL:
    """``cpu_peaks.cpp`` for this very processor."""
    command = build.compiler()
    assert command is not None, "no C++ compiler"
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "peaks.so"
        source = Path(__file__).with_name("cpu_peaks.cpp")
        flags = ["-std=c++17", "-O2", "-march=native", "-shared", "-fPIC"]
        subprocess.run([*command, *flags, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


@dataclass
class Case:
    """One product to measure."""

    format: str
    shape: str
    rows: int
    num_bytes: int
    operations: int
    run: Callable[[], None]
    times: list[float]

    def sample(self) -> None:
        """Add the time of one product, from as many as take a while."""
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < ENOUGH_S:
            self.run()
            calls += 1
        self.times.append(elapsed / calls)


@dataclass(frozen=True)
class Figures:
    """What came of a case: medians."""

    format: str
    shape: str
    rows: int
    us: float
    gb_s: float
    gop_s: float
    share: float


def figures(case: Case, peaks: dict[str, float]) -> Figures:
    seconds = median(case.times)
    peak = peaks[PEAKS[case.format.partition("/")[0]]]
    least = max(case.num_bytes / peaks["read"], case.operations / peak) / 1e9
    return Figures(
        case.format, case.shape, case.rows, round(seconds * 1e6, 1),
        round(case.num_bytes / seconds / 1e9, 2), round(case.operations / seconds / 1e9, 1),
        round(least / seconds, 3),
    )  # fmt: skip


def cases(library: Library, name: str, shape: str, rows: list[int]) -> Iterator[Case]:
    """The products of one weight."""
    n, k, finish = SHAPES[shape]
    copies = _copies(library, name, n, k, gated=finish == "silu_mul")
    for count in rows:
        if shape == "head" and count > HEAD_ROWS:
            continue
        x, out = torch.randn(count, k), torch.zeros(count, copies[0].columns)
        operations = 2 * count * n * k
        run = _taking_turns(copies, x, finish, out)
        yield Case(name, shape, count, copies[0].data.nbytes, operations, run, [])


def _copies(library: Library, name: str, n: int, k: int, gated: bool) -> list[Matrix]:
    format, _, group = name.partition("/")
    kinds: dict[str, Format] = {
        "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8", "int4": "int4"
    }  # fmt: skip
    shape = Shape(kinds[format], n, k, int(group or 0), gated)
    first = Matrix.of(library, shape, torch.randn(n, k) / k**0.5)
    count = -(-WORKING_SET // first.data.nbytes)
    return [first, *(Matrix(library, shape, first.data.clone()) for _ in range(count - 1))]


def _taking_turns(
    copies: list[Matrix], x: Tensor, finish: Finish, out: Tensor
) -> Callable[[], None]:
    turn = 0

    def run() -> None:
        nonlocal turn
        turn = (turn + 1) % len(copies)
        copies[turn].linear(x, finish, out)

    return run


def measure(library: Library, options: argparse.Namespace, peaks: Peaks) -> list[Case]:
    """All cases, format by format; those of a format take turns."""
    done: list[Case] = []
    for name in options.formats:
        chosen = [
            case for shape in options.shapes for case in cases(library, name, shape, options.rows)
        ]
        for _ in range(options.rounds):
            peaks.measure()
            for case in chosen:
                case.sample()
        for case in chosen:
            case.run = _nothing  # lets go of its weights
        done += chosen
    return done


def _nothing() -> None:
    pass


def report(found: list[Figures], ceilings: dict[str, float]) -> None:
    rounded = ", ".join(f"{kind} {value:.1f}" for kind, value in ceilings.items())
    print(f"ceilings: {rounded} (GB/s, then Gop/s)")
    print(f"{'format':9} {'shape':8} {'rows':>4} {'us':>10} {'GB/s':>7} {'Gop/s':>7} {'share':>6}")
    for each in found:
        print(
            f"{each.format:9} {each.shape:8} {each.rows:4} {each.us:10.1f} {each.gb_s:7.2f} "
            f"{each.gop_s:7.1f} {each.share:6.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    options = parser.parse_args()
    library = load()
    if not isinstance(library, Library):
        raise SystemExit(f"error: {library.reason}")
    if options.threads:
        library.set_threads(options.threads)
    peaks = Peaks(library)
    done = measure(library, options, peaks)
    ceilings = peaks.best()
    found = [figures(case, ceilings) for case in done]
    report(found, ceilings)
    results = [asdict(each) for each in found]
    print(json.dumps({"machine": describe(), "kernels": library.describe(),
                      "ceilings": ceilings, "products": results}))  # fmt: skip


if __name__ == "__main__":
    main()

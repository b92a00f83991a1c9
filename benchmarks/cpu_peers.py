"""This engine on a CPU beside others', in one run on one machine.

    python -m benchmarks.cpu_peers --model qwen3-0.6b --llama-cpp DIR --openvino VENV/bin/python
    python -m benchmarks.cpu_peers --model gpt2-small --only decode prefill --bits 4
    python -m benchmarks.cpu_peers --model qwen3-0.6b --only serve-8 --who rosellm llama.cpp

A peer that is not there is left out, with a line that says how to get it (``benchmarks/peers`` says
more). Models have real shapes and random weights. Engines take turns, since a machine's speed
drifts, and what the machine can do at most is measured between them. The last line is one JSON
object with every figure; ``--plot`` draws what it holds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_kernels import Peaks
from benchmarks.first_token import import_torch
from benchmarks.peers import huggingface, llama_cpp, openvino, ours, serving
from benchmarks.peers.contender import Absent, Batch, Contender, Service, Setup
from benchmarks.random_model import SHAPES, write_model
from rosellm.bench.cost import Cost, model_cost
from rosellm.bench.machine import describe
from rosellm.bench.stats import median
from rosellm.roseinfer.kernels.cpu.library import Library, load

WARM_UP = Batch(streams=2, prompt=8, output=4)
OFFLINE = {
    "decode": Batch(streams=1, prompt=64, output=64),
    "prefill": Batch(streams=1, prompt=512, output=2),
    "streams-8": Batch(streams=8, prompt=64, output=64),
    "streams-32": Batch(streams=32, prompt=64, output=96),  # so long that all decode at once
}
SERVED = {
    "serve-8": Batch(streams=8, prompt=64, output=64),
    "serve-32": Batch(streams=32, prompt=64, output=64),
}
MEMORY = Batch(streams=8, prompt=960, output=64)
WORK = {
    "decode": "one stream",
    "prefill": "a prompt of 512",
    "streams-8": "8 streams",
    "streams-32": "32 streams",
    "serve-8": "8 streams over HTTP",
    "serve-32": "32 streams over HTTP",
    "mixed": "99th percentile between tokens of 16 streams while prompts of 512 arrive",
    "start": "from the command to the first token",
    "memory": "most memory, 8 streams of 1024 tokens",
}
UNITS = {"mixed": "ms", "start": "s", "memory": "MB"}
PEERS = {"rosellm": ours, "llama.cpp": llama_cpp, "OpenVINO": openvino, "transformers": huggingface}


@dataclass
class Row:
    """What one engine did in one kind of work.

    Attributes:
        values: one a round, in the unit.
        weight_bits: bits a weight, as far as they are known.
        kl: what the format costs in quality, as ``benchmarks.cpu_quality`` found it: nats a token.
        bound: the value if only memory (decoding) or multiplication (prompts) took time.
    """

    work: str
    name: str
    bits: int
    unit: str
    values: list[float] = field(default_factory=list)
    weight_bits: float | None = None
    kl: float | None = None
    bound: float | None = None

    def figures(self) -> dict[str, Any]:
        middle = median(self.values)
        spread = {"median": middle, "least": min(self.values), "most": max(self.values)}
        share = None if self.bound is None else round(middle / self.bound, 3)
        rounded = {name: round(value, 3) for name, value in spread.items()}
        return {**asdict(self), **rounded, "share_of_bound": share}


class Rows:
    """All rows, each made when its first value comes."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}

    def add(self, work: str, engine: Contender | Service, value: float) -> None:
        key = work, engine.name
        if key not in self._rows:
            self._rows[key] = Row(work, engine.name, engine.bits, UNITS.get(work, "tokens/s"))
        self._rows[key].values.append(value)
        print(f"  {work:10} {engine.name:26} {value:10.2f}", flush=True)

    def __iter__(self) -> Iterator[Row]:
        order = list(WORK)
        yield from sorted(self._rows.values(), key=lambda row: (order.index(row.work), row.bits))


# -- measuring -----------------------------------------------------------------------------------


def measure_offline(
    engines: list[Contender], works: list[str], rounds: int, peaks: Peaks, rows: Rows
) -> None:
    """Engines without HTTP, all of them loaded while they take turns."""
    with ExitStack() as stack:
        for engine in engines:
            stack.callback(engine.close)
            engine.open()
            engine.run(WARM_UP)
        for turn in range(rounds):
            peaks.measure()
            for work in works:
                for engine in _from(turn, engines):
                    speeds = engine.run(OFFLINE[work])
                    rows.add(work, engine, speeds.prefill if work == "prefill" else speeds.decode)


def _from(turn: int, each: list[Any]) -> list[Any]:
    """Each round another one is first: which one always was has been seen to matter."""
    first = turn % max(1, len(each))
    return each[first:] + each[:first]


def measure_served(
    services: list[Service], work: str, setup: Setup, rounds: int, rows: Rows
) -> None:
    """Services under steady load, all of them running while they take turns."""
    if work == "mixed":
        streams, context = serving.DECODING.streams + serving.WAITING, serving.MIXED_CONTEXT
    else:
        streams, context = SERVED[work].streams, 256
    with ExitStack() as stack:
        started = [
            (service, stack.enter_context(serving.running(service, setup, streams, context)))
            for service in services
        ]
        for _, service in started:
            serving.steady(service, Batch(2, 16, 8))
        for turn in range(rounds):
            for engine, service in _from(turn, started):
                if work == "mixed":
                    rows.add(work, engine, 1e3 * serving.mixed(service))
                else:
                    rows.add(work, engine, serving.steady(service, SERVED[work]))


def measure_starts(services: list[Service], setup: Setup, rounds: int, rows: Rows) -> list[float]:
    """Services from nothing. Returns what importing torch alone takes."""
    imports = []
    for turn in range(rounds + 1):  # the first one fills caches
        imports.append(import_torch())
        for service in services:
            with serving.running(service, setup, 1, 256) as started:
                if turn:
                    rows.add("start", service, started.first_token_s)
    return imports[1:]


def measure_memory(services: list[Service], setup: Setup, rows: Rows) -> None:
    context = MEMORY.prompt + MEMORY.output
    for service in services:
        with serving.running(service, setup, MEMORY.streams, context) as started:
            with serving.Watch(started.process.pid) as watch:
                serving.steady(started, MEMORY)
            rows.add("memory", service, watch.peak / 1e6)


# -- what came of it -----------------------------------------------------------------------------


def explain(
    rows: Iterable[Row], cost: Cost, head: int, peaks: dict[str, float], sizes: dict[str, int]
) -> None:
    """Fill in bits a weight, and what bounds one stream and a prompt."""
    for row in rows:
        if row.name not in sizes:
            continue
        size = sizes[row.name]
        row.weight_bits = round(8 * size / cost.parameters, 2)
        if row.work == "decode":
            row.bound = peaks["read"] * 1e9 / size
        if row.work == "prefill":
            peak = peaks["bf16" if row.bits == 16 else "int8"]
            row.bound = peak * 1e9 / (2 * (cost.parameters - head))


def add_quality(rows: Iterable[Row], found: dict[str, Any]) -> None:
    """Fill in divergences."""
    divergences = {line["name"]: line["kl_mean"] for line in found["formats"]}
    for row in rows:
        row.kl = divergences.get(row.name)


def report(rows: Iterable[Row]) -> Iterator[str]:
    by_work: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_work[row.work].append(row)
    for work, group in by_work.items():
        yield f"\n{WORK[work]}, {group[0].unit}"
        for row in group:
            found = row.figures()
            bits = f"{row.weight_bits:6.2f} bits" if row.weight_bits else " " * 11
            kl = "" if row.kl is None else f"  KL {row.kl:.1e}"
            share = f"{found['share_of_bound']:6.1%} of bound" if row.bound else ""
            spread = f"({found['least']:,.1f} to {found['most']:,.1f})"
            yield f"  {row.name:26} {bits} {found['median']:10,.1f}  {spread:22} {share}{kl}"


def main() -> None:
    args = _arguments()
    library = load()
    if not isinstance(library, Library):
        raise SystemExit(f"error: {library.reason}")
    library.set_threads(args.threads)
    model = args.models / args.model
    if not (model / "model.safetensors").exists():
        write_model(SHAPES[args.model], model, dtype=torch.bfloat16)
    forms = args.models / f"{args.model}-forms"
    bits = tuple(args.bits)
    setup = Setup(model, args.threads, bits, args.llama_cpp, args.openvino, forms)
    peaks, rows = Peaks(library), Rows()
    peaks.measure()
    found: dict[str, Any] = {"benchmark": "cpu-peers", "model": args.model, "threads": args.threads}
    sizes = _measure(setup, args, peaks, rows, found)
    peaks.measure()
    cost = model_cost(str(model), "bfloat16")
    head = SHAPES[args.model]["vocab_size"] * SHAPES[args.model].get("hidden_size", 768)
    explain(rows, cost, head, peaks.best(), sizes)
    if args.quality:
        add_quality(rows, json.loads(args.quality.read_text()))
    print(*report(rows), sep="\n")
    found |= {"ceilings": peaks.best(), "rows": [row.figures() for row in rows]}
    print(json.dumps({**found, "machine": describe()}))


def _measure(
    setup: Setup, args: argparse.Namespace, peaks: Peaks, rows: Rows, found: dict[str, Any]
) -> dict[str, int]:
    """Everything that was asked for. Returns the bytes of engines' weights."""
    offline = [work for work in args.only if work in OFFLINE]
    engines: list[Contender] = _chosen(args.who, lambda peer: peer.contenders(setup))
    services: list[Service] = _chosen(
        args.who, lambda peer: peer.services(setup) if hasattr(peer, "services") else []
    )
    if offline:
        measure_offline(engines, offline, args.rounds, peaks, rows)
    for work in (work for work in args.only if work in (*SERVED, "mixed")):
        measure_served(services, work, setup, args.rounds, rows)
    if "start" in args.only:
        found["import_torch_s"] = measure_starts(services, setup, args.rounds, rows)
    if "memory" in args.only:
        measure_memory(services, setup, rows)
    return {engine.name: engine.weight_bytes for engine in engines if offline}


def _chosen(who: list[str], make: Callable[[Any], list[Any]]) -> list[Any]:
    """Engines of all peers that are there and whose names have one of these beginnings."""
    chosen = []
    for name, peer in PEERS.items():
        try:
            every = make(peer)
        except Absent as error:
            print(f"without {name}: {error}")
            continue
        chosen += [each for each in every if any(each.name.startswith(word) for word in who)]
    return chosen


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="qwen3-0.6b", help="whose shape")
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="folder to write models to and keep"
    )
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), help="kinds of work")
    parser.add_argument("--bits", nargs="+", type=int, choices=(4, 8, 16), default=[4, 8, 16])
    parser.add_argument(
        "--who", nargs="+", metavar="NAME", default=[""], help="engines whose names begin so"
    )
    parser.add_argument(
        "--quality", type=Path, metavar="FILE", help="last line of cpu_quality, for its divergences"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="its sources and build")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="one that has OpenVINO")
    return parser.parse_args()


if __name__ == "__main__":
    main()

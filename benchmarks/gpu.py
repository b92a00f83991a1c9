"""The table of what a GPU gives: each figure beside what the card itself measured at most.

    python -m benchmarks.gpu                                  all of it, on the card
    python -m benchmarks.gpu --only ceilings qwen3-0.6b       some sections
    python -m benchmarks.gpu --device cpu --tiny              seconds, on models of no size

Weights are random ones, made where they are needed and written to no disk, but for the model whose
start is timed. A row whose memory is short is left out, and says so; so is what is not installed.
Sections that have not begun when ``--minutes`` are over are left out too, so that a run ends in
time; ``--only`` asks for the rest. The last line is one JSON object with every figure.

``gpu_load.py`` makes the engines and drives them, ``gpu_peers.py`` is transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import first_token, gpu_load, gpu_peers
from benchmarks.gpu_load import Bench
from benchmarks.random_model import GPT2_SMALL, LLAMA_8B, QWEN3_06B, TINY_GPT2, TINY_QWEN3
from rosellm.bench import ceilings, machine

Figures = dict[str, Any]

AIM_DECODE = {"qwen3-0.6b": 0.6, "llama-3.1-8b": 0.8}
AIM_PREFILL = {"llama-3.1-8b": 0.6}
AIM_FIRST_TOKEN_S, AIM_IDLE = 8.0, 0.05


@dataclass(frozen=True)
class Run:
    """The command line, and what was measured before."""

    bench: Bench
    rounds: int
    found: Figures

    @property
    def ceilings(self) -> Figures:
        """Bytes and operations a second; measured at the first call."""
        if "ceilings" not in self.found:
            print("ceilings", flush=True)
            self.found["ceilings"] = measure_ceilings(self)
        return self.found["ceilings"]  # type: ignore[no-any-return]


def measure_ceilings(run: Run) -> Figures:
    bench = run.bench
    if bench.tiny:
        found = ceilings.Ceilings(copy_gb_s=1.0, read_gb_s=1.0, gflop_s=1.0)  # not worth seconds
    else:
        found = ceilings.measure(bench.device, bench.dtype)
    say(f"copy {found.copy_gb_s:.0f} GB/s, read {found.read_gb_s:.0f} GB/s")
    say(f"{bench.dtype} product {found.gflop_s / 1e3:.1f} TFLOP/s")
    return {"bytes_s": found.bytes_s, "flop_s": found.flop_s, **vars(found)}


def measure_model(run: Run, shape: str) -> Figures:
    """Single stream, batches, a long prompt, and transformers beside them."""
    bench, found = run.bench, Figures()
    with bench.engine(bench.shapes[shape], max_num_seqs=max(bench.batches)) as engine:
        for line in engine.decisions():
            say(line)
        found["bytes_a_token"] = engine.bytes_a_token
        for batch in bench.batches:
            guarded(found, f"batch {batch}", lambda b=batch: decode(run, engine, shape, b))  # type: ignore[misc]
        guarded(found, "prefill", lambda: prefill(run, engine, shape))
        guarded(found, "idle", lambda: idle(run, engine))
    guarded(found, "transformers", lambda: peer(run, shape))
    return found


def decode(run: Run, engine: gpu_load.Engine, shape: str, batch: int) -> Figures:
    rate = max(engine.decode(batch, run.bench.decode_steps) for _ in range(run.rounds))
    steps = rate / batch
    share = steps * engine.bytes_a_token / run.ceilings["bytes_s"]
    aim = AIM_DECODE.get(shape) if batch == 1 else None
    say(f"batch {batch:3}: {rate:9.1f} tokens/s, {share:4.0%} of bandwidth{aimed(share, aim)}")
    return {"tokens_s": rate, "bandwidth_share": share, "aim": aim}


def prefill(run: Run, engine: gpu_load.Engine, shape: str) -> Figures:
    count = min(run.bench.prefill_tokens, engine.longest - 1)
    rate = max(engine.prefill(count) for _ in range(run.rounds))
    share = rate * engine.flop_a_token(count) / run.ceilings["flop_s"]
    aim = AIM_PREFILL.get(shape)
    say(f"prefill of {count}: {rate:9.0f} tokens/s, {share:4.0%} of the product{aimed(share, aim)}")
    return {"tokens": count, "tokens_s": rate, "product_share": share, "aim": aim}


def idle(run: Run, engine: gpu_load.Engine) -> Figures:
    """How long the host takes for a step, and how much of the time the GPU does nothing."""
    batch = run.bench.peer_batches[-1]
    found = engine.idle(batch, run.bench.decode_steps)
    whole, host = found["step_ms"], found["host_ms"]
    say(f"batch {batch}: {whole:.2f} ms a step, {host:.2f} ms of it the host's")
    if "idle_share" in found:
        say(f"the GPU is idle {found['idle_share']:.1%} of the time (aim: under {AIM_IDLE:.0%})")
    return found


def peer(run: Run, shape: str) -> Figures:
    """transformers on the same shape: generate, and its continuous batching."""
    absent = gpu_peers.absent()
    if absent:
        return {"skipped": absent}
    found = Figures()
    bench = run.bench
    with gpu_peers.model_of(bench.shapes[shape], bench.device, bench.dtype) as model:
        for batch in bench.peer_batches:
            guarded(
                found,
                f"generate, batch {batch}",
                lambda b=batch: told(gpu_peers.generate(model, b, bench.decode_steps)),  # type: ignore[misc]
            )
        guarded(
            found,
            "continuous batching",
            lambda: told(gpu_peers.continuous(model, bench.peer_batches[-1], bench.decode_steps)),
        )
    return found


def told(rate: float) -> Figures:
    say(f"transformers: {rate:9.1f} tokens/s")
    return {"tokens_s": rate}


def measure_nano(run: Run) -> Figures:
    """nano-vllm's workload: 256 sequences, 100 to 1024 tokens in and out at random."""
    bench = run.bench
    with bench.engine(bench.shapes["qwen3-0.6b"], max_num_seqs=256) as engine:
        engine.warm_up()
        rate, tokens, seconds = engine.offline(*bench.nano)
    say(f"{tokens} output tokens in {seconds:.1f} s: {rate:.0f} tokens/s")
    return {"output_tokens_s": rate, "output_tokens": tokens, "seconds": seconds}


def measure_first_token(run: Run) -> Figures:
    """From the command to the first token, the file cache warm."""
    bench = run.bench
    with tempfile.TemporaryDirectory() as folder:
        model = bench.write("qwen3-0.6b", Path(folder) / "model")
        found = first_token.measure(
            model, device=bench.device, dtype=bench.dtype, rounds=1 if bench.tiny else run.rounds
        )
    say(*first_token.report(found)[:2], f"(aim: below {AIM_FIRST_TOKEN_S:g} s)")
    return found


def measure_determinism(run: Run) -> Figures:
    """What it costs that a row's bits do not depend on its batch: with and without."""
    bench, rates = run.bench, Figures()
    shape = bench.shapes["qwen3-0.6b"]
    for name, kept in (("deterministic", True), ("fast", False)):
        with bench.engine(shape, max_num_seqs=64, deterministic=kept) as engine:
            for batch in bench.peer_batches:
                rate = max(engine.decode(batch, bench.decode_steps) for _ in range(run.rounds))
                rates[f"{name}, batch {batch}"] = rate
                say(f"{name}, batch {batch:3}: {rate:9.1f} tokens/s")
    return rates


SECTIONS: dict[str, Callable[[Run], Figures]] = {
    "ceilings": lambda run: run.ceilings,
    "qwen3-0.6b": lambda run: measure_model(run, "qwen3-0.6b"),
    "llama-3.1-8b": lambda run: measure_model(run, "llama-3.1-8b"),
    "nano-vllm": measure_nano,
    "first-token": measure_first_token,
    "determinism": measure_determinism,
    "gpt2-small": lambda run: measure_model(run, "gpt2-small"),
}


def guarded(found: Figures, name: str, measure: Callable[[], Figures]) -> None:
    """Measure; what cannot be had is a reason in its place, and costs nothing else."""
    try:
        found[name] = measure()
    except Exception as error:  # a row's failure is a row's
        first = (str(error) or type(error).__name__).splitlines()[0]
        found[name] = {"skipped": f"{type(error).__name__}: {first}"}
    if "skipped" in found[name]:
        say(f"{name}: skipped, {found[name]['skipped']}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def aimed(share: float, aim: float | None) -> str:
    if aim is None:
        return ""
    return f" (aim: {aim:.0%}, {'met' if share >= aim else 'missed'})"


def say(*words: str) -> None:
    print(" ", *words, flush=True)


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    shapes = {"gpt2-small": GPT2_SMALL, "qwen3-0.6b": QWEN3_06B, "llama-3.1-8b": LLAMA_8B}
    if args.tiny:
        shapes = {"gpt2-small": TINY_GPT2, "qwen3-0.6b": TINY_QWEN3, "llama-3.1-8b": TINY_QWEN3}
    found: Figures = {"benchmark": "gpu", "machine": machine.describe(args.device)}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.device, args.dtype, args.tiny, shapes, Path(scratch))
        run = Run(bench, args.rounds, found)
        until = time.monotonic() + 60 * args.minutes
        for name in args.only or SECTIONS:
            if time.monotonic() > until:
                found[name] = {"skipped": f"{args.minutes:g} minutes were over"}
                continue
            print(name, flush=True)
            guarded(found, name, lambda section=SECTIONS[name]: section(run))  # type: ignore[misc]
    print(json.dumps(found), flush=True)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections, in that order")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts (default: 3)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins after them")
    parser.add_argument("--tiny", action="store_true", help="models and loads of no size")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu --tiny tries everything without")
    return args


if __name__ == "__main__":
    sys.exit(main())

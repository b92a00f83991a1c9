"""``rosellm bench offline``: the engine in this process, without HTTP, on random prompts."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rosellm.bench import ceilings, cost, machine
from rosellm.bench.lengths import Lengths
from rosellm.bench.stats import median, milliseconds
from rosellm.roseinfer.config import UNBOUNDED, EngineConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.hub import model_name, with_local_files
from rosellm.roseinfer.loading.open import check_checkpoint
from rosellm.roseinfer.messages import Add, Outputs, Ready
from rosellm.roseinfer.models.registry import check_supported
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.report import loading

if TYPE_CHECKING:
    from rosellm.roseinfer.engine.core import EngineCore

_ids = itertools.count(1)


@dataclass(frozen=True)
class Load:
    """What is asked of the engine. ``cli.py`` says what each field means."""

    num_requests: int
    input_tokens: Lengths
    output_tokens: Lengths
    seed: int


@dataclass
class Steps:
    """Every step of a run, in order.

    Attributes:
        seconds: how long each took.
        computed: tokens that it computed.
        sampled: tokens that it produced.
    """

    seconds: list[float] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)

    def add(self, seconds: float, outputs: Outputs) -> None:
        self.seconds.append(seconds)
        self.computed.append(outputs.stats.batched_tokens)
        self.sampled.append(sum(len(row.tokens) for row in outputs.rows))

    def decoding(self, sequences: int) -> list[float]:
        """Seconds of the steps in which so many sequences decoded and none read its prompt."""
        each = zip(self.seconds, self.computed, self.sampled, strict=True)
        return [seconds for seconds, *tokens in each if tokens == [sequences, sequences]]


def run(config: EngineConfig, load: Load) -> int:
    """Measure, print the report and a JSON line. Returns the exit code."""
    flags.check_sources(config.model)
    name = model_name(config.model.model)
    scheduler = replace(config.scheduler, max_queue=load.num_requests, max_queue_tokens=UNBOUNDED)
    with loading() as on_progress:
        config = replace(config, model=with_local_files(config.model, on_progress, check_supported))
        check_checkpoint(config.model.model)
        from rosellm.roseinfer.engine.build import build_engine

        core = build_engine(replace(config, scheduler=scheduler), on_progress)
    _check(core, load)
    adds = requests(core.facts.vocab_size, load)
    drive(core, requests(core.facts.vocab_size, replace(load, num_requests=1, seed=~load.seed)))
    with Progress(console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task("output tokens", total=sum(add.params.max_tokens for add in adds))
        steps = drive(core, adds, lambda made: bar.advance(task, made))
    found = {
        "benchmark": "offline",
        "model": name,
        "dtype": core.facts.dtype,
        "device": core.facts.device,
        "max_num_seqs": config.scheduler.max_num_seqs,
        "requests": load.num_requests,
        "input_tokens_asked": str(load.input_tokens),
        "output_tokens_asked": str(load.output_tokens),
        "seed": load.seed,
        **_throughput(adds, steps),
        **_decoding(config, core, load, steps),
        "machine": machine.describe(core.facts.device),
    }
    _show(Console(), found)
    print(json.dumps(found), flush=True)
    return 0


def _check(core: EngineCore, load: Load) -> None:
    longest, limit = load.input_tokens.high + load.output_tokens.high, core.facts.max_model_len
    if longest > limit:
        raise ConfigError(f"{longest} input and output tokens; the context holds {limit}")


def requests(vocab_size: int, load: Load) -> list[Add]:
    """Requests of random token ids. Nothing stops an answer before its length."""
    source = random.Random(load.seed)
    return [
        Add(
            next(_ids),
            source.choices(range(vocab_size), k=load.input_tokens.draw(source)),
            SamplingParams(seed=index, max_tokens=load.output_tokens.draw(source), temperature=0),
        )
        for index in range(load.num_requests)
    ]


def drive(
    core: EngineCore, adds: Iterable[Add], on_tokens: Callable[[int], None] = lambda _: None
) -> Steps:
    """Run requests to their ends, as many at a time as the engine takes."""
    for add in adds:
        core.add(add)
    steps = Steps()
    while core.has_work:
        start = time.perf_counter()
        outputs = core.step()
        steps.add(time.perf_counter() - start, outputs)
        on_tokens(steps.sampled[-1])
    return steps


def _throughput(adds: Sequence[Add], steps: Steps) -> dict[str, Any]:
    seconds = sum(steps.seconds)
    inputs, outputs = sum(len(add.prompt) for add in adds), sum(steps.sampled)
    return {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "duration_s": round(seconds, 3),
        "output_tokens_per_s": round(outputs / seconds, 2),
        "total_tokens_per_s": round((inputs + outputs) / seconds, 2),
        "steps": len(steps.seconds),
        "step_ms": milliseconds(steps.seconds),
    }


def _decoding(config: EngineConfig, core: EngineCore, load: Load, steps: Steps) -> dict[str, Any]:
    """Steps that only decode, at the most sequences that ran, beside what bounds them."""
    sequences = max(steps.sampled)
    seconds = steps.decoding(sequences)
    context = load.input_tokens.middle + load.output_tokens.middle / 2
    quantized = config.model if _keeps_quantized(core.facts) else None
    bounds = cost.model_cost(config.model.model, core.facts.dtype, quantized, config.cache)
    found = ceilings.measure(core.facts.device, core.facts.dtype)
    return {
        "decode_sequences": sequences,
        "decode_step_ms": milliseconds(seconds),
        "decode_tokens_per_s": round(sequences / median(seconds), 2) if seconds else None,
        "bandwidth_bound_tokens_per_s": round(bounds.bandwidth_bound(found, sequences, context), 2),
        "compute_bound_tokens_per_s": round(bounds.compute_bound(found, context), 2),
        "weight_mb": round(bounds.weight_bytes / 1e6, 1),
        "kv_bytes_per_token": bounds.kv_bytes,
        **asdict(found),
    }


def _keeps_quantized(facts: Ready) -> bool:
    """Whether quantised weights stay in their few bits; the reference computes in another type."""
    return any(each.name == "kernels" and each.value != "reference" for each in facts.decisions)


def _show(console: Console, found: Mapping[str, Any]) -> None:
    table = Table(title=_title(found), title_justify="left", title_style="bold", show_header=False)
    for name, value in _rows(found):
        table.add_row(name, value)
    console.print(table)


def _title(found: Mapping[str, Any]) -> str:
    return f"{found['model']} · {found['dtype']} · {found['device']}"


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "requests", f"{found['requests']}, at most {found['max_num_seqs']} at a time"
    yield "tokens", f"{found['input_tokens']:,} in, {found['output_tokens']:,} out"
    yield "output tokens/s", f"{found['output_tokens_per_s']:,.1f}"
    yield "total tokens/s", f"{found['total_tokens_per_s']:,.1f}"
    yield "step", _spread(found["step_ms"])
    yield f"decoding step, {found['decode_sequences']} sequences", _spread(found["decode_step_ms"])
    decoded = found["decode_tokens_per_s"]
    yield "decoded tokens/s", f"{decoded:,.1f}" if decoded else "-"
    bandwidth = max(found["copy_gb_s"], found["read_gb_s"])
    reason = f"{found['weight_mb']:,.0f} MB of weights and the KV cache at {bandwidth:,.1f} GB/s"
    yield "  if bound by memory", f"{found['bandwidth_bound_tokens_per_s']:,.1f}  ({reason})"
    reason = f"{found['gflop_s']:,.0f} GFLOP/s"
    yield "  if bound by arithmetic", f"{found['compute_bound_tokens_per_s']:,.1f}  ({reason})"


def _spread(values: Mapping[str, float] | None) -> str:
    return f"p50 {values['p50']:,.2f} ms, p99 {values['p99']:,.2f} ms" if values else "-"

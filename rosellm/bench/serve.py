"""``rosellm bench serve``: load on any server that speaks OpenAI's API."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rosellm.bench import loop
from rosellm.bench.exchange import ExchangeError, Server, exchange
from rosellm.bench.lengths import Lengths
from rosellm.bench.load import Outcome, Prepared, ask, closed_loop, open_loop
from rosellm.bench.prompts import PROBES, PromptMaker, TokenIds, Words, probe_text
from rosellm.bench.report import figures, show
from rosellm.bench.traces import read_trace
from rosellm.bench.workload import Job, poisson, random_jobs, trace_jobs, untimed
from rosellm.roseinfer.errors import ConfigError, RosellmError

Endpoint = Literal["chat", "completions"]
PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Settings:
    """The command line. ``cli.py`` says what each field means."""

    base_url: str
    model: str | None
    endpoint: Endpoint
    num_requests: int
    concurrency: int | None
    rate: float | None
    input_tokens: Lengths
    output_tokens: Lengths
    trace: Path | None
    token_ids: Lengths | None
    ignore_eos: bool
    temperature: float
    seed: int
    timeout: float
    api_key_env: str

    def __post_init__(self) -> None:
        if self.token_ids is not None and self.endpoint == "chat":
            raise ConfigError("--token-ids: chat takes text; add --endpoint completions")
        if self.concurrency is not None and self.rate is not None:
            raise ConfigError("--concurrency and --rate: pass one of them")

    @property
    def workers(self) -> int | None:
        """Requests that are open at a time, or None if they are sent when they are due."""
        timed = self.rate is not None or self.trace is not None
        return None if self.concurrency is None and timed else self.concurrency or 1

    @property
    def mode(self) -> str:
        if self.workers is not None:
            return f"closed loop, concurrency {self.workers}"
        if self.rate is not None:
            return f"open loop, Poisson, {self.rate:g} requests/s"
        return "open loop, at the trace's times"


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def run(settings: Settings) -> int:
    """Measure, print the report and a JSON line. Returns 1 if no request was completed."""
    jobs = plan(settings)
    found = loop.run(_measure(settings, jobs))
    console = Console()
    show(console, f"{found['model']} · {settings.endpoint} · {settings.mode}", found)
    print(json.dumps(found), flush=True)
    return 0 if found["completed"] else 1


def plan(settings: Settings) -> list[Job]:
    """The requests to send, in order."""
    if settings.trace is not None:
        jobs = trace_jobs(read_trace(settings.trace, settings.num_requests), settings.seed)
    else:
        jobs = random_jobs(
            settings.num_requests, settings.input_tokens, settings.output_tokens, settings.seed
        )
    if settings.rate is not None:
        return poisson(jobs, settings.rate, settings.seed)
    return jobs if settings.workers is None else untimed(jobs)


async def _measure(settings: Settings, jobs: list[Job]) -> dict[str, Any]:
    server = Server.at(settings.base_url, os.environ.get(settings.api_key_env))
    model = settings.model or await _first_model(server)
    prepare = partial(_prepare, settings, model)
    make_prompt = await _prompt_maker(settings, server, prepare)
    requests = [
        prepare(make_prompt(job), job.output_tokens, job.arrival, settings.seed + index)
        for index, job in enumerate(jobs)
    ]
    outcomes, client_cpu = await _send(settings, server, requests)
    return {
        "benchmark": "serve",
        "model": model,
        "endpoint": settings.endpoint,
        "mode": settings.mode,
        "trace": settings.trace and settings.trace.name,
        "input_tokens_asked": None if settings.trace else str(settings.input_tokens),
        "output_tokens_asked": None if settings.trace else str(settings.output_tokens),
        "ignore_eos": settings.ignore_eos,
        "temperature": settings.temperature,
        "seed": settings.seed,
        **figures(outcomes, client_cpu),
    }


async def _first_model(server: Server) -> str:
    try:
        answer = await exchange(server, "/models")
        return msgspec.json.decode(answer.body, type=_Models).data[0].id
    except (ExchangeError, msgspec.MsgspecError, IndexError) as error:
        place = f"{server.host}:{server.port}{server.prefix}/models"
        raise RosellmError(
            f"no model found at {place}: {error}; is the server running, and --base-url right?"
        ) from None


def _prepare(
    settings: Settings,
    model: str,
    prompt: str | list[int],
    max_tokens: int,
    arrival: float | None = None,
    seed: int = 0,
) -> Prepared:
    """A request with no field that OpenAI's API lacks, unless --ignore-eos asks for one."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": settings.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.temperature > 0:
        body["seed"] = seed
    if settings.ignore_eos:
        body["ignore_eos"] = True
    if settings.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    return Prepared(PATHS[settings.endpoint], msgspec.json.encode(body), arrival)


async def _prompt_maker(
    settings: Settings, server: Server, prepare: Callable[[str | list[int], int], Prepared]
) -> PromptMaker:
    """Probe the server, which warms it up too, and learn how long a word is."""
    if settings.token_ids is not None:
        ids = TokenIds(settings.token_ids)
        await _probe(server, prepare(ids(Job(PROBES[:1], 1)), 1), settings.timeout)
        return ids
    counts = [
        await _probe(server, prepare(probe_text(piece), 1), settings.timeout) for piece in PROBES
    ]
    return Words.calibrated(counts)


async def _probe(server: Server, request: Prepared, timeout: float) -> int:
    """Prompt tokens of a request, as the server counts them."""
    outcome = await ask(server, request, timeout=timeout)
    if outcome.error is not None:
        raise RosellmError(f"the server failed a first, short request: {outcome.error}")
    if not outcome.counted:
        raise RosellmError("the server reports no usage, so prompts cannot be sized")
    return outcome.prompt_tokens


async def _send(
    settings: Settings, server: Server, requests: list[Prepared]
) -> tuple[list[Outcome], float]:
    """Send everything; return what came of it and the processor share that took here."""

    async def send(request: Prepared, late: float) -> Outcome:
        return await ask(server, request, late, settings.timeout)

    with _progress() as progress:
        tally = _Tally(progress, len(requests))
        wall, cpu = time.perf_counter(), time.process_time()
        if settings.workers is None:
            await open_loop(requests, send, tally.add)
        else:
            await closed_loop(requests, settings.workers, send, tally.add)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return tally.outcomes, cpu / wall


class _Tally:
    """Outcomes so far, and the bar that shows how many."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.outcomes: list[Outcome] = []
        self._failed = 0
        self._progress = progress
        self._task = progress.add_task("requests", total=total, failed="")

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._failed += outcome.error is not None
        failed = f"{self._failed} failed" if self._failed else ""
        self._progress.update(self._task, advance=1, failed=failed)


def _progress() -> Progress:
    """A bar on stderr, drawn seldom: drawing costs what is being measured."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
    )

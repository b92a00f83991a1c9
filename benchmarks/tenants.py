"""What one tenant costs the others, measured by the clock of their clients.

    python -m benchmarks.tenants [MODEL] [--seconds 20]

A server of its own is started (with the demo model, unless another is named) and a file of keys;
whoever has a key is a tenant. Three figures, each with its aim:

* fairness: one tenant keeps ten times as many requests open as each of the others, with longer
  prompts. All have something to wait for; Jain's index of the tokens that each is served, prompts
  and answers, says how evenly;
* neighbour: the time between the chunks of some streams of one tenant, alone, and beside the
  hostile one;
* target: a second server has ``--itl-target-ms``, three times what streams took alone unless one is
  given; prompts of the maximum length arrive one after the other while streams run. Only what
  passes between a prompt's sending and its answer is counted, from the first prompt on.

The floor is the median time between chunks of the streams alone: a step that decodes, and what
processes and HTTP add to it. The client runs on the same machine and is part of all figures. A
chunk is taken for a token; a token that is half a character comes with the next one.

The last line is JSON; the exit code is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.first_token import free_port
from benchmarks.soak import ROOT, WORDS, up
from rosellm.bench import loop, machine
from rosellm.bench.exchange import ExchangeError, Server, exchange
from rosellm.bench.record import Recorder, error_message
from rosellm.bench.stats import percentile
from rosellm.roseinfer.demo import NAME as DEMO_NAME

PATH = "/completions"
HOSTILE = "hostile"
EQUALS = ("a", "b", "c", "d")
QUIET = "quiet"
AIM_JAIN = 0.95
AIM_STRETCH = 2.0
TARGET_STEPS = 3.0
"""Times the floor: what the target is if none is given."""
LEAST_WAITING = 0.95
"""Share of the time in which each tenant has to have something to wait for."""
LEAST_LENGTH = 544
"""Of the model: prompts and answers of the loads fit in it."""
SEATS = 16
WARM_S = 3.0
LOOK_S = 0.02
RETRY_S = 0.1


# -- what is asked ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What a tenant keeps open, and between which lengths it draws."""

    open: int
    prompt: tuple[int, int]
    output: tuple[int, int]


EQUAL = Load(6, (16, 64), (16, 48))
GREEDY = Load(60, (100, 200), (16, 64))
STREAMS = Load(4, (16, 32), (400, 500))


@dataclass(frozen=True)
class Model:
    """As the server names it.

    Attributes:
        ids: tokens of words, of which prompts are drawn.
        length: most tokens of prompt and answer.
    """

    name: str
    ids: tuple[int, ...]
    length: int

    def body(self, rng: random.Random, prompt: int, output: int) -> bytes:
        """A request of so many tokens; no two prompts begin alike."""
        fields = {"model": self.name, "prompt": rng.choices(self.ids, k=prompt)}
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        asked = {"max_tokens": output, "temperature": 0, "ignore_eos": True}
        return json.dumps(fields | streamed | asked).encode()


@dataclass
class Tenant:
    """One key's client: what it has asked, and what came of it.

    Attributes:
        asked: in order, with the prompt's tokens.
    """

    server: Server
    model: Model
    rng: random.Random
    asked: list[tuple[int, Recorder]] = field(default_factory=list)
    _unanswered: set[int] = field(default_factory=set)

    @property
    def waits(self) -> bool:
        """Whether a request has got nothing yet."""
        self._unanswered = {n for n in self._unanswered if not self.asked[n][1].times}
        return bool(self._unanswered)

    async def keep_open(self, load: Load) -> None:
        """One request after the other, so many at a time, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(load.open):
                group.create_task(self._go_on(load))

    async def _go_on(self, load: Load) -> None:
        while True:
            output = min(self.rng.randint(*load.output), self.model.length - load.prompt[1])
            await self.ask(self.rng.randint(*load.prompt), output)

    async def ask(self, prompt: int, output: int) -> Recorder:
        """One request, to its end.

        Raises:
            RuntimeError: it was not answered.
        """
        recorder = Recorder()
        self._unanswered.add(len(self.asked))
        self.asked.append((prompt, recorder))
        body = self.model.body(self.rng, prompt, output)
        answer = await exchange(self.server, PATH, body, recorder.feed)
        if answer.status != 200 or recorder.error:
            reason = recorder.error or error_message(answer.body)
            raise RuntimeError(f"not answered: {answer.status} {reason}")
        return recorder

    def served(self, start: float, end: float) -> float:
        """Tokens of prompts and answers that it got after start and until end."""
        return sum(served(prompt, recorder, start, end) for prompt, recorder in self.asked)

    def gaps(self, start: float, end: float) -> Iterator[float]:
        """Seconds between chunks that both came in this time."""
        for _, recorder in self.asked:
            for before, after in pairwise(recorder.times):
                if before >= start and after <= end:
                    yield after - before


# -- arithmetic ------------------------------------------------------------------------------


def jain(shares: Iterable[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything.

    >>> jain([4, 4, 4, 4]), jain([4, 0, 0, 0])
    (1.0, 0.25)
    """
    xs = list(shares)
    squares = len(xs) * sum(x * x for x in xs)
    return sum(xs) ** 2 / squares if squares else 0.0


def served(prompt: int, answer: Recorder, start: float, end: float) -> float:
    """Tokens of one request: its prompt with the first chunk, then equally many with each."""
    if not answer.times:
        return 0.0
    inside = sum(start < at <= end for at in answer.times)
    each = answer.usage.completion_tokens / len(answer.times) if answer.usage else 1.0
    return inside * each + (prompt if start < answer.times[0] <= end else 0)


def overlapping(
    gaps: Iterable[tuple[float, float]], spans: list[tuple[float, float]]
) -> list[float]:
    """Lengths of the gaps of which a part lies in one of the spans.

    >>> overlapping([(0, 1), (1, 4), (4, 5)], [(2, 3)])
    [3]
    """
    return [b - a for a, b in gaps if any(a < end and b > start for start, end in spans)]


def p99_ms(gaps: Iterable[float]) -> float:
    return _ms(gaps, 0.99)


def _ms(gaps: Iterable[float], share: float) -> float:
    ordered = sorted(gaps)
    if not ordered:
        raise RuntimeError("nothing was streamed: are the phases too short?")
    return 1e3 * percentile(ordered, share)


# -- the three measurements ------------------------------------------------------------------


@asynccontextmanager
async def asking(tenants: dict[str, tuple[Tenant, Load]]) -> AsyncIterator[None]:
    """Loads that go on in the meantime; what one fails with is raised at the end at the latest."""
    tasks = [asyncio.create_task(tenant.keep_open(load)) for tenant, load in tenants.values()]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def fairness(tenants: dict[str, Tenant], seconds: float, warm: float) -> dict[str, Any]:
    """Equal tenants and a hostile one, all of which have something to wait for."""
    loads = {name: (tenants[name], EQUAL) for name in EQUALS}
    loads[HOSTILE] = (tenants[HOSTILE], GREEDY)
    async with asking(loads):
        await asyncio.sleep(warm)
        start = time.perf_counter()
        looks, waiting = 0, dict.fromkeys(loads, 0)
        while time.perf_counter() < start + seconds:
            await asyncio.sleep(LOOK_S)
            looks += 1
            for name in loads:
                waiting[name] += tenants[name].waits
        end = time.perf_counter()
        got = {name: tenants[name].served(start, end) for name in loads}
    return {
        "seconds": round(end - start, 1),
        "served_tokens": {name: round(tokens) for name, tokens in got.items()},
        "waiting_share": {name: round(n / looks, 3) for name, n in waiting.items()},
        "jain": round(jain(got.values()), 4),
        "jain_aim": AIM_JAIN,
    }


async def neighbour(tenants: dict[str, Tenant], seconds: float, warm: float) -> dict[str, Any]:
    """Streams alone, then beside the hostile tenant."""
    quiet, hostile = tenants[QUIET], tenants[HOSTILE]
    async with asking({QUIET: (quiet, STREAMS)}):
        alone = list(quiet.gaps(*await _window(seconds, warm)))
        async with asking({HOSTILE: (hostile, GREEDY)}):
            beside = list(quiet.gaps(*await _window(seconds, warm)))
    return {
        "streams": STREAMS.open,
        "floor_ms": round(_ms(alone, 0.5), 3),
        "alone_p99_ms": round(p99_ms(alone), 3),
        "beside_p50_ms": round(_ms(beside, 0.5), 3),
        "beside_p99_ms": round(p99_ms(beside), 3),
        "stretch": round(p99_ms(beside) / p99_ms(alone), 3),
        "stretch_aim": AIM_STRETCH,
    }


async def _window(seconds: float, warm: float) -> tuple[float, float]:
    await asyncio.sleep(warm)
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    return start, time.perf_counter()


async def target(
    tenants: dict[str, Tenant], seconds: float, warm: float, target_ms: float
) -> dict[str, Any]:
    """Prompts of the maximum length, one after the other, beside streams."""
    quiet, hostile = tenants[QUIET], tenants[HOSTILE]
    spans: list[tuple[float, float]] = []
    async with asking({QUIET: (quiet, STREAMS)}):
        await asyncio.sleep(warm)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or not spans:
            start = time.perf_counter()
            await hostile.ask(hostile.model.length - 1, 1)
            spans.append((start, time.perf_counter()))
            await asyncio.sleep(RETRY_S)
    pairs = (pair for _, recorder in quiet.asked for pair in pairwise(recorder.times))
    gaps = overlapping(pairs, spans)
    return {
        "prompts": len(spans),
        "prompt_tokens": hostile.model.length - 1,
        "prompt_s": round(percentile(sorted(end - start for start, end in spans), 0.5), 3),
        "gaps": len(gaps),
        "p50_ms": round(_ms(gaps, 0.5), 3),
        "p99_ms": round(p99_ms(gaps), 3),
        "target_ms": target_ms,
    }


def judge(found: dict[str, Any]) -> list[str]:
    """Names of the aims that are missed."""
    fair, beside, within = found["fairness"], found["neighbour"], found["target"]
    missed = []
    if min(fair["waiting_share"].values()) < LEAST_WAITING:
        missed.append("something to wait for")
    if fair["jain"] < AIM_JAIN:
        missed.append("fairness")
    if beside["stretch"] > AIM_STRETCH:
        missed.append("neighbour")
    if within["p99_ms"] > within["target_ms"]:
        missed.append("target")
    return missed


def report(found: dict[str, Any]) -> list[str]:
    fair, beside, within = found["fairness"], found["neighbour"], found["target"]
    shares = ", ".join(f"{name} {tokens}" for name, tokens in fair["served_tokens"].items())
    return [
        (
            f"floor      {beside['floor_ms']:.2f} ms between chunks of {beside['streams']} streams"
            " alone, p50"
        ),
        (
            f"fairness   {fair['jain']:.4f} is Jain's index (aim: at least {AIM_JAIN:g});"
            f" tokens in {fair['seconds']:g} s: {shares};"
            f" waiting at least {min(fair['waiting_share'].values()):.0%} of the time"
        ),
        (
            f"neighbour  {beside['stretch']:.2f} times as long (aim: at most {AIM_STRETCH:g}): p99"
            f" {beside['alone_p99_ms']:.2f} ms alone, {beside['beside_p99_ms']:.2f} ms beside"
            f" {GREEDY.open} hostile requests"
        ),
        (
            f"target     {within['p99_ms']:.2f} ms p99 (aim: at most {within['target_ms']:g} ms)"
            f" while {within['prompts']} prompts of {within['prompt_tokens']} tokens arrive, each"
            f" for {within['prompt_s']:.2f} s"
        ),
        f"missed     {', '.join(found['missed']) or 'nothing'}",
    ]


# -- the server ------------------------------------------------------------------------------


@asynccontextmanager
async def serving(args: argparse.Namespace, *flags: str) -> AsyncIterator[dict[str, Tenant]]:
    """A server of its own, and a client for each of its keys."""
    keys = {name: secrets.token_hex(16) for name in (*EQUALS, QUIET, HOSTILE)}
    port = free_port()
    env = {name: value for name, value in os.environ.items() if name != "ROSELLM_API_KEY"}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file, tempfile.TemporaryFile() as log:
        file.writelines(f'[keys.{name}]\nkey = "{key}"\n' for name, key in keys.items())
        file.flush()
        command = [sys.executable, "-m", "rosellm.roseinfer.server", *args.model[:1]]
        command += ["--port", str(port), "--api-key-file", file.name, "--no-access-log"]
        command += [f"--max-num-seqs={SEATS}", f"--kv-cache-gb={args.kv_cache_gb}", *flags]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=env)
        try:
            root = Server.at(f"http://127.0.0.1:{port}")
            await up(root, process)
            model = await describe(replace(root, api_key=keys[QUIET]), args.served)
            yield {
                name: Tenant(replace(root, api_key=key), model, random.Random(name))
                for name, key in keys.items()
            }
        except Exception:
            log.seek(0)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(60)


async def describe(server: Server, name: str) -> Model:
    """Ask for the tokens of some words, and for how long a sequence may be."""
    body = json.dumps({"model": name, "prompt": " ".join(sorted(WORDS) * 4)}).encode()
    answer = await exchange(replace(server, prefix=""), "/tokenize", body)
    if answer.status != 200:
        raise ExchangeError(f"/tokenize: {answer.status} {error_message(answer.body)}")
    said = json.loads(answer.body)
    if said["max_model_len"] < LEAST_LENGTH:
        longest = said["max_model_len"]
        raise ExchangeError(f"{name} takes {longest} tokens; {LEAST_LENGTH} are needed")
    return Model(name, tuple(said["tokens"]), said["max_model_len"])


async def run(args: argparse.Namespace) -> dict[str, Any]:
    async with serving(args) as tenants:
        fair = await fairness(tenants, args.seconds, WARM_S)
    async with serving(args) as tenants:
        beside = await neighbour(tenants, args.seconds, WARM_S)
    target_ms = args.itl_target_ms or max(1.0, round(TARGET_STEPS * beside["floor_ms"], 1))
    print(f"target: {target_ms:g} ms", file=sys.stderr, flush=True)
    async with serving(args, f"--itl-target-ms={target_ms}") as tenants:
        within = await target(tenants, args.seconds, WARM_S, target_ms)
    found = {
        "model": args.served,
        "seats": SEATS,
        "fairness": fair,
        "neighbour": beside,
        "target": within,
    }
    return {**found, "missed": judge(found)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [MODEL] [options]")
    parser.add_argument("model", nargs="*", help="folder of a model; default: the demo model")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of four phases; 20")
    parser.add_argument(
        "--itl-target-ms",
        type=float,
        help=f"milliseconds between tokens; {TARGET_STEPS:g} times the measured floor",
    )
    parser.add_argument("--kv-cache-gb", type=float, default=0.5, help="enough for all seats; 0.5")
    args = parser.parse_args()
    args.served = Path(args.model[0]).name if args.model else DEMO_NAME
    return args


def main() -> int:
    try:
        found = loop.run(run(parse()))
    except ExchangeError as error:
        raise SystemExit(f"error: {error}") from None
    found["machine"] = machine.describe()
    print("\n".join(report(found)))
    print(json.dumps(found))
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

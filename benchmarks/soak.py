"""Load for a long time, with clients that leave and requests that are wrong: what remains of it?

    python -m benchmarks.soak [MODEL] [--minutes 30]

A server of its own is started (with the demo model, unless another is named) and asked by a few
clients at once: 20 % of the requests are given up before they are answered, 5 % are bad ones. What
is looked at is what a leak would show: the anonymous memory of both processes over the number of
requests, a line fitted to it after a warm-up; descriptors and threads, at rest before and after;
blocks of the KV cache that are in use when nobody asks any more. And that nobody notices: good
requests are all answered, one that is asked again and again always with the same text. With
`--engine-kills` the engine is killed now and then in the first half, and nobody may notice either;
its memory is then looked at in the last quarter, which has to be some minutes.

The last line is JSON; the exit code is 1 if an aim is missed. Linux only: figures are from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.first_token import free_port
from rosellm.bench import loop
from rosellm.bench.exchange import ExchangeError, Server, exchange
from rosellm.roseinfer.demo import NAME as DEMO_NAME

ROOT = Path(__file__).parents[1]
LEAVING, BAD = 0.20, 0.05
WARM_SHARE = 0.25  # of the time, before memory is looked at
AIM_MB = 10.0  # in 10k requests
# More than before: the event loop's helpers are started one by one, as they are first needed.
SLACK = {"descriptors": 2, "threads": min(32, (os.cpu_count() or 1) + 4)}
SAMPLE_S = 1.0
REPORT_S = 10.0
START_S = 120.0
IDLE_S = 30.0
WORDS = ("the", "rose", "is", "red", "and", "so", "it", "goes", "on", "a", "day", "of", "tea", "é")
ENGINE = b"rosellm.roseinfer.engine.process"


# -- what is asked ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One request; ``leaves`` is after how many seconds its client does."""

    kind: str
    path: str
    body: bytes
    leaves: float | None = None


class Workload:
    """Requests at random, always the same for a seed."""

    def __init__(self, model: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._model = model
        self.canary = self._ask("canary", "/completions", prompt="Once upon a time", max_tokens=16)

    def next(self) -> Ask:
        chance = self._random.random()
        if chance < BAD:
            return self._bad()
        good = self.canary if self._random.random() < 0.05 else self._good()
        if chance < BAD + LEAVING:
            return Ask("left", good.path, good.body, self._random.expovariate(10))
        return good

    def _good(self) -> Ask:
        pick = self._random
        more: dict[str, Any] = {
            "max_tokens": pick.choice((1, 4, 16, 16, 48)),
            "stream": pick.random() < 0.6,
            "temperature": pick.choice((0, 0.7, 1.5)),
        }
        if pick.random() < 0.2:
            more["n"] = pick.randint(2, 4)
        if pick.random() < 0.1:
            more["stop"] = [pick.choice(WORDS)]
        if pick.random() < 0.05:
            form = {"type": "object", "properties": {self._text(3): {"type": "string"}}}
            more["structured_outputs"] = {"json": form}
        if pick.random() < 0.5:
            turns = [{"role": "user", "content": self._text(pick.randint(1, 60))}]
            return self._ask("chat", "/chat/completions", messages=turns, **more)
        if pick.random() < 0.2:
            more["logprobs"] = 3
        return self._ask("completion", "/completions", prompt=self._text(30), **more)

    def _bad(self) -> Ask:
        fields: dict[str, Any] = self._random.choice(
            (
                {"model": "none"},
                {"n": 10**9},
                {"max_tokens": -1},
                {"temperature": "hot"},
                {"prompt": "a rose " * 100_000},
                {"logit_bias": {"-1": 1}},
                {"structured_outputs": {"regex": "(" * 50}},
                {"unknown": True},
            )
        )
        good = self._ask("bad", "/completions", **{"prompt": "a", "max_tokens": 1, **fields})
        cut = self._random.random() < 0.3  # no JSON any more
        return Ask("bad", good.path, good.body[: len(good.body) // 2] if cut else good.body)

    def _ask(self, kind: str, path: str, **fields: Any) -> Ask:
        body = {"model": self._model, "temperature": 0, **fields}
        return Ask(kind, path, json.dumps(body).encode())

    def _text(self, words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=words))


# -- what is looked at -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A process at one time."""

    anon_mb: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return cls(
            int(status["RssAnon"].split()[0]) / 1024,
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
        )


def engine_of(pid: int) -> int:
    """The server's child that is the engine; 0 while there is none."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if ENGINE in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return 0


@dataclass
class Seen:
    """What has happened so far."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    canaries: set[bytes] = field(default_factory=set)
    memory: dict[str, list[tuple[int, float]]] = field(
        default_factory=lambda: {"server": [], "engine": []}
    )

    @property
    def requests(self) -> int:
        return self.done.total()

    def slope(self, process: str) -> float:
        """Megabytes of anonymous memory that 10k requests have left."""
        return 1e4 * slope(self.memory[process])


def slope(points: list[tuple[int, float]]) -> float:
    """Of the line through points that is nearest in squares.

    >>> slope([(0, 1.0), (10, 2.0), (20, 3.0)])
    0.1
    """
    if len({x for x, _ in points}) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    along = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return along / sum((x - mean_x) ** 2 for x, _ in points)


# -- asking ----------------------------------------------------------------------------------


async def client(server: Server, work: Workload, seen: Seen, until: float) -> None:
    """One request after the other."""
    while time.monotonic() < until:
        ask = work.next()
        try:
            async with asyncio.timeout(ask.leaves):
                answer = await exchange(server, ask.path, ask.body)
        except TimeoutError:
            seen.done["left"] += 1
        except ExchangeError as error:
            seen.wrong[f"{ask.kind}: {error}"] += 1
        else:
            seen.done[ask.kind] += 1
            judge(ask, answer.status, answer.body, seen)


def judge(ask: Ask, status: int, body: bytes, seen: Seen) -> None:
    """Note what should not have been answered."""
    planned = 400 <= status < 500 if ask.kind == "bad" else status == 200
    if not planned:
        seen.wrong[f"{ask.kind}: HTTP {status} {body[:200].decode(errors='replace')}"] += 1
    elif ask.kind == "canary":
        seen.canaries.add(json.dumps(json.loads(body)["choices"]).encode())
    elif body.startswith(b"data:") and not body.endswith(b"data: [DONE]\n\n"):
        seen.wrong[f"{ask.kind}: a stream without its end"] += 1


async def watch(pid: int, seen: Seen, began: float, args: argparse.Namespace) -> None:
    """Take samples, and say now and then how it goes."""
    shares = {"server": WARM_SHARE, "engine": 0.75 if args.engine_kills else WARM_SHARE}
    reported = began
    while True:
        await asyncio.sleep(SAMPLE_S)
        now = samples(pid)
        for name, sample in now.items():
            if time.monotonic() > began + 60 * args.minutes * shares[name]:
                seen.memory[name].append((seen.requests, sample.anon_mb))
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            print(progress(reported - began, seen, now), file=sys.stderr, flush=True)


async def kill(pid: int, times: int, seconds: float) -> None:
    """Kill the engine so often in this time."""
    for _ in range(times):
        await asyncio.sleep(seconds / times)
        if engine := engine_of(pid):
            os.kill(engine, signal.SIGKILL)


def samples(pid: int) -> dict[str, Sample]:
    """Of the server, and of its engine if it has one now."""
    found = {"server": Sample.of(pid)}
    with contextlib.suppress(OSError, KeyError):  # it has died meanwhile
        if engine := engine_of(pid):
            found["engine"] = Sample.of(engine)
    return found


def progress(seconds: float, seen: Seen, now: dict[str, Sample]) -> str:
    figures = ", ".join(
        f"{name} {each.anon_mb:.1f} MB {each.descriptors} fds {each.threads} threads"
        for name, each in now.items()
    )
    return f"{seconds:5.0f} s {seen.requests:7} requests, {seen.wrong.total()} wrong; {figures}"


async def soak(server: Server, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    """The load, and the figures of it."""
    work, seen = Workload(args.served, args.seed), Seen()
    await load(server, work, Seen(), args.concurrency, min(10.0, 6 * args.minutes))
    await idle(server)
    before, began = samples(pid), time.monotonic()
    watching = asyncio.ensure_future(watch(pid, seen, began, args))
    killing = asyncio.ensure_future(kill(pid, args.engine_kills, 30 * args.minutes))
    await load(server, work, seen, args.concurrency, 60 * args.minutes)
    await killing
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    used = await idle(server)
    return figures(seen, before, samples(pid), used, args)


async def load(
    server: Server, work: Workload, seen: Seen, concurrency: int, seconds: float
) -> None:
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(client(server, work, seen, until))


async def idle(server: Server) -> int:
    """Wait until nobody is served; blocks that are in use then, or after a long while."""
    root = Server(server.host, server.port, server.tls, "")
    until = time.monotonic() + IDLE_S
    await asyncio.sleep(2)  # connections close
    while True:
        engine = json.loads((await exchange(root, "/health")).body)["engine"]
        busy = engine["running"] or engine["waiting"] or engine["blocks_used"]
        if not busy or time.monotonic() > until:
            return int(engine["blocks_used"])
        await asyncio.sleep(0.1)


def figures(
    seen: Seen,
    before: dict[str, Sample],
    after: dict[str, Sample],
    used: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "minutes": args.minutes,
        "engine_kills": args.engine_kills,
        "requests": seen.requests,
        "by_kind": dict(seen.done),
        "blocks_used_at_the_end": used,
        "canary_answers": len(seen.canaries),
        "wrong": dict(seen.wrong.most_common(10)),
    }
    missed = []
    for name in before:
        found[f"{name}_mb_per_10k_requests"] = round(seen.slope(name), 2)
        if seen.slope(name) > AIM_MB:
            missed.append(f"{name} memory")
        for what in ("descriptors", "threads"):
            was, now = getattr(before[name], what), getattr(after[name], what)
            found[f"{name}_{what}"] = [was, now]
            if now > was + SLACK[what]:
                missed.append(f"{name} {what}")
        found[f"{name}_anon_mb"] = [round(each[name].anon_mb, 1) for each in (before, after)]
    if used:
        missed.append("KV blocks in use")
    if seen.wrong:
        missed.append("answers")
    if len(seen.canaries) != 1:
        missed.append("the same answer each time")
    return {**found, "missed": missed}


def report(found: dict[str, Any]) -> list[str]:
    lines = [
        f"requests     {found['requests']} in {found['minutes']:g} minutes: "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(found["by_kind"].items())),
    ]
    for name in ("server", "engine"):
        memory, rest = found[f"{name}_anon_mb"], found[f"{name}_mb_per_10k_requests"]
        (fds, fds_now), (threads, threads_now) = (
            found[f"{name}_descriptors"],
            found[f"{name}_threads"],
        )
        lines.append(
            f"{name}       {rest:+.2f} MB in 10k requests (aim: at most {AIM_MB:g}), "
            f"{memory[0]} MB at first and {memory[1]} in the end; "
            f"descriptors {fds} and {fds_now}, threads {threads} and {threads_now}"
        )
    lines.append(f"KV blocks    {found['blocks_used_at_the_end']} in use at the end (aim: 0)")
    lines += [f"wrong        {count} times {what}" for what, count in found["wrong"].items()]
    lines.append(f"missed       {', '.join(found['missed']) or 'nothing'}")
    return lines


# -- the server ------------------------------------------------------------------------------


async def up(server: Server, process: subprocess.Popen[bytes]) -> None:
    root = Server(server.host, server.port, server.tls, "")
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(ExchangeError):
            if (await exchange(root, "/readyz")).status == 200:
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the server did not come up (exit code {process.poll()})")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "-m", "rosellm.roseinfer.server", *args.model[:1]]
    command += ["--port", str(port), "--no-access-log", f"--kv-cache-gb={args.kv_cache_gb}"]
    command += [f"--engine-restarts={args.engine_kills}"] if args.engine_kills else []
    server = Server.at(f"http://127.0.0.1:{port}", os.environ.get("ROSELLM_API_KEY"))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, cwd=ROOT)
        try:
            await up(server, process)
            return await soak(server, process.pid, args)
        except Exception:
            log.seek(0)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(60)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [MODEL] [options]")
    parser.add_argument("model", nargs="*", help="folder of a model; default: the demo model")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long; 30")
    parser.add_argument("--concurrency", type=int, default=8, help="clients at one time; 8")
    parser.add_argument(
        "--kv-cache-gb",
        type=float,
        default=0.0625,
        help="small, so that all of it is in use soon: until then memory grows; 0.0625",
    )
    parser.add_argument(
        "--engine-kills", type=int, default=0, help="kill the engine so often, in the first half"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    args = parser.parse_args()
    args.served = Path(args.model[0]).name if args.model else DEMO_NAME
    return args


def main() -> int:
    found = loop.run(run(parse()))
    print("\n".join(report(found)))
    print(json.dumps(found))
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

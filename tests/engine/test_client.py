"""The engine in its own process and on a thread: the same answers, and an end that is noticed."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import rosellm
from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.config import SchedulerConfig
from rosellm.roseinfer.engine.client import EngineClient, InprocClient, ProcessClient
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.listener import EngineListener
from rosellm.roseinfer.errors import EngineDeadError, ModelError
from rosellm.roseinfer.messages import (
    Abort,
    Add,
    Framer,
    Output,
    Outputs,
    Progress,
    Ready,
)
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import StepPlan
from tests.tiny_models import engine_config, write_llama

DEATH_NOTICE_S = 2.0
ENDLESS = 10_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context is long enough to be still at work when something happens."""
    return write_llama(
        tmp_path_factory.mktemp("models") / "llama", max_position_embeddings=2 * ENDLESS
    )


def run(coroutine: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(coroutine, 100))


class Session(EngineListener):
    """What a client tells: rows by request, progress, and how it died."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.rows: dict[int, list[Output]] = {}
        self.progress: list[Progress] = []
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    async def start(self) -> Ready:
        return await self.client.start(self)

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_death(self, reason: str) -> None:
        self.death.set_result(reason)

    async def ask(self, *adds: Add) -> None:
        """Send these and wait until each has its last row."""
        for add in adds:
            self.client.send(add)
        for add in adds:
            await self.until(add.id, lambda rows: rows[-1].last)

    async def until(self, id: int, ready: Callable[[list[Output]], bool]) -> None:
        while id not in self.rows or not ready(self.rows[id]):
            self._news.clear()
            await self._news.wait()

    def answers(self, id: int) -> dict[int, tuple[Any, ...]]:
        """Tokens, log-probabilities and reason to end, by choice."""
        return {
            choice: (
                [token for row in rows for token in row.tokens],
                [logprobs for row in rows for logprobs in row.logprobs or []],
                rows[-1].finish,
            )
            for choice in {row.choice for row in self.rows[id]}
            if (rows := [row for row in self.rows[id] if row.choice == choice])
        }

    def on_outputs(self, outputs: Outputs) -> None:
        for row in outputs.rows:
            self.rows.setdefault(row.id, []).append(row)
        self._news.set()


@asynccontextmanager
async def serving(client: EngineClient) -> AsyncIterator[Session]:
    session = Session(client)
    try:
        await session.start()
        yield session
    finally:
        await client.stop()


def requests() -> list[Add]:
    """Greedy and sampled, short and chunked, one choice and several, some sharing a prefix."""
    long = [7 * i % 97 for i in range(150)]
    greedy = SamplingParams(seed=0, max_tokens=12, temperature=0.0, logprobs=3)
    sampled = SamplingParams(seed=11, max_tokens=12, top_p=0.9, logprobs=2)
    history = SamplingParams(
        seed=2**63 - 1, max_tokens=12, frequency_penalty=0.7, logit_bias=((5, 4.0),), logprobs=0
    )
    return [
        Add(1, [1, 2, 3], greedy),
        Add(2, long, greedy),
        Add(3, [*long[:80], 4], sampled, n=3),
        Add(4, [9] * 33, history, n=2),
        Add(5, long, sampled, generated=[[1, 2, 3]], cache_salt="salt"),
        Add(6, [1000], greedy),
    ]


# -- the same answers -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_process_answers_as_a_thread_does(model: Path, dtype: str) -> None:
    config = engine_config(model, dtype=dtype, max_num_batched_tokens=64, max_num_seqs=4)

    async def compare() -> None:
        answers = []
        facts = []
        for client in (InprocClient(config), ProcessClient(config)):
            session = Session(client)
            facts.append(await session.start())
            await session.ask(*requests())
            await client.stop()
            answers.append({add.id: session.answers(add.id) for add in requests()})
            assert not session.death.done(), "a stop is no death"
            assert [part.phase for part in session.progress][-1] == "loading weights"
            assert session.progress[-1].done == session.progress[-1].total > 0
        assert answers[0] == answers[1]
        assert facts[0] == facts[1]
        assert [len(answers[0][id]) for id in range(1, 7)] == [1, 1, 3, 2, 1, 1]
        assert answers[0][6][0][2] == "error"

    run(compare())


def test_an_abort_ends_one_request(model: Path) -> None:
    async def abort() -> None:
        async with serving(InprocClient(engine_config(model))) as session:
            endless = SamplingParams(seed=0, max_tokens=ENDLESS)
            session.client.send(Add(1, [1, 2], endless))
            session.client.send(Add(2, [1, 2], endless))
            await session.until(1, lambda rows: len(rows) > 3)
            session.client.send(Abort([1, 77]))
            await session.until(1, lambda rows: rows[-1].last)
            assert session.rows[1][-1].finish == "abort"
            seen = len(session.rows[2])
            await session.until(2, lambda rows: len(rows) > seen + 3)
            assert session.rows[1][-1].finish == "abort", "a row after the last one"

    run(abort())


# -- a bad start ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InprocClient, ProcessClient])
def test_a_missing_model_is_one_clear_line(tmp_path: Path, kind: type) -> None:
    missing = tmp_path / "nothing"

    async def fail() -> None:
        client = kind(engine_config(missing))
        session = Session(client)
        with pytest.raises(ModelError) as caught:
            await session.start()
        assert str(missing) in str(caught.value)
        assert "\n" not in str(caught.value)
        await client.stop()
        assert not session.death.done()

    run(fail())


def test_an_engine_killed_while_it_loads_is_noticed(model: Path) -> None:
    async def kill() -> None:
        client = ProcessClient(engine_config(model))
        session = Session(client)
        starting = asyncio.ensure_future(session.start())
        await asyncio.sleep(0.3)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="signal 9 while it was loading"):
            await asyncio.wait_for(starting, DEATH_NOTICE_S)
        await client.stop()
        assert not session.death.done()

    run(kill())


@pytest.mark.parametrize("started", [False, True])
def test_an_engine_can_be_stopped_while_it_loads(model: Path, started: bool) -> None:
    async def stop() -> None:
        client = ProcessClient(engine_config(model))
        starting = asyncio.ensure_future(Session(client).start()) if started else None
        await asyncio.sleep(0.1)
        await asyncio.wait_for(client.stop(), DEATH_NOTICE_S)
        assert not alive(client.pid)
        if starting is not None:
            with pytest.raises(EngineDeadError, match="stopped"):
                await starting

    run(stop())


# -- a bad end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "busy"),
    [pytest.param("asyncio", False, marks=pytest.mark.slow), ("uvloop", True)],
)
def test_a_killed_engine_is_noticed(model: Path, busy: bool, loop: str) -> None:
    async def kill() -> None:
        client = ProcessClient(engine_config(model))
        async with serving(client) as session:
            if busy:
                client.send(Add(1, [1, 2], SamplingParams(seed=0, max_tokens=ENDLESS)))
                await session.until(1, lambda rows: len(rows) > 3)
            os.kill(client.pid, signal.SIGKILL)
            reason = await asyncio.wait_for(session.death, DEATH_NOTICE_S)
            assert "signal 9" in reason
            client.send(Abort([1]))  # dropped, without a word
            await asyncio.sleep(0.1)

    run(kill(), loop)


def test_a_failed_engine_says_why(model: Path) -> None:
    async def fail() -> None:
        client = ProcessClient(engine_config(model))
        async with serving(client) as session:
            assert client._transport is not None
            client._transport.write(Framer.frame(b"no message"))
            reason = await asyncio.wait_for(session.death, DEATH_NOTICE_S)
            assert "the engine failed" in reason
            assert "Error" in reason

    run(fail())


class Faulty:
    """A runner that runs nothing."""

    def execute(self, plan: StepPlan) -> Any:
        raise RuntimeError(f"cannot compute {plan.num_tokens} tokens")

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        return False

    def probe(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_thread_says_why() -> None:
    core = EngineCore(
        Faulty(),
        Ready(32, 10, 64, "float32", "cpu", True, "fp_test"),
        SchedulerConfig(),
        cache=CacheManager([BlockPool(4)], 16, prefix_cache=True),
        step_tokens=16,
    )

    async def fail() -> None:
        async with serving(InprocClient(core)) as session:
            for id in range(1, 10):  # one after the other, it is the engine's fault
                session.client.send(Add(id, [1, 2], SamplingParams(seed=0, max_tokens=1)))
            reason = await asyncio.wait_for(session.death, DEATH_NOTICE_S)
            assert "cannot compute 2 tokens" in reason

    run(fail())


# -- a server that is gone --------------------------------------------------------------------

SERVER = """
import asyncio, sys
from rosellm.roseinfer.config import EngineConfig, ModelConfig
from rosellm.roseinfer.engine.client import ProcessClient
from rosellm.roseinfer.engine.listener import EngineListener
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.request import SamplingParams

async def serve(model, wait):
    client = ProcessClient(EngineConfig(model=ModelConfig(model=model, device="cpu")))
    if wait:
        await client.start(type("Deaf", (EngineListener,), {})())
        client.send(Add(1, [1, 2], SamplingParams(seed=0, max_tokens=10_000)))
    print(client.pid, flush=True)
    await asyncio.sleep(100)

asyncio.run(serve(sys.argv[1], sys.argv[2] == "busy"))
"""


@pytest.fixture(params=["busy", "loading"])
def server(
    model: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process with an engine of its own, and the engine's process id."""
    root = str(Path(rosellm.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(model), request.param],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None
    with process:
        engine = int(process.stdout.readline())
        yield process, engine
        process.kill()
    if alive(engine):
        os.kill(engine, signal.SIGKILL)


def test_an_engine_does_not_outlive_its_server(server: tuple[subprocess.Popen[bytes], int]) -> None:
    process, engine = server
    assert alive(engine)
    process.send_signal(signal.SIGKILL)
    until = time.monotonic() + DEATH_NOTICE_S
    while alive(engine):
        assert time.monotonic() < until, "an orphan"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # no such files on this system, or just gone


# -- the boundary -----------------------------------------------------------------------------


def test_the_server_side_of_the_boundary_loads_no_pickle() -> None:
    probe = (
        "import sys, rosellm.roseinfer.engine.client\n"
        "print(*{'pickle', '_pickle', 'marshal', 'multiprocessing', 'torch'} & "
        "(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; before = set(sys.modules)\n{probe}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(rosellm.__file__).parents[1])},
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_nothing_at_the_boundary_names_pickle() -> None:
    house = Path(rosellm.__file__).parent / "roseinfer"
    for path in [*sorted((house / "engine").glob("*.py")), house / "messages.py"]:
        names = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)]
        }
        assert not names & {"pickle", "cloudpickle", "dill", "shelve", "multiprocessing"}, path

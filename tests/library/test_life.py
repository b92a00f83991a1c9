"""How an LLM ends: closed, forgotten, interrupted, or with Python."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rosellm import LLM, SamplingParams
from rosellm.roseinfer.errors import EngineDeadError, ModelError, RequestError
from rosellm.roseinfer.messages import Progress
from tests.library.conftest import idle

ENDLESS = SamplingParams(max_tokens=400, ignore_eos=True, temperature=0)
SHORT = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0)


def until_these_run_alone(threads: set[threading.Thread]) -> None:
    until = time.monotonic() + 5
    while set(threading.enumerate()) - threads:
        assert time.monotonic() < until, threading.enumerate()
        time.sleep(0.01)


FORGETFUL = """
import sys
from rosellm import LLM, SamplingParams

llm = LLM(sys.argv[1])
for answer in llm.generate(["Once upon", "There was"], SamplingParams(max_tokens=3, seed=1)):
    print(repr(answer.text))
stream = llm.stream("Once upon", SamplingParams(max_tokens=400, ignore_eos=True))
print(len(next(stream)) > 0)
"""


def test_a_program_that_closes_nothing_ends_while_the_engine_computes(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2:] == ["True"]


def test_closing_ends_what_is_in_flight(folder: Path) -> None:
    llm = LLM(folder, device="cpu")
    stream = llm.stream("Once upon", ENDLESS)
    next(stream)
    failed: list[Exception] = []

    def ask() -> None:
        try:
            llm.generate(["a"] * 300, ENDLESS)
        except Exception as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    llm.close()
    asking.join(10)
    assert [type(error) for error in failed] == [EngineDeadError]
    with pytest.raises(EngineDeadError, match="this LLM has been closed"):
        list(stream)
    stream.close()


def test_threads_end_with_the_llm(folder: Path) -> None:
    before = set(threading.enumerate())
    llm = LLM(folder, device="cpu")
    llm.generate("a", SHORT)
    assert set(threading.enumerate()) - before
    del llm
    until_these_run_alone(before)


def test_a_stream_keeps_its_llm(folder: Path) -> None:
    assert len("".join(LLM(folder, device="cpu").stream("Once upon", SHORT))) > 0


def test_a_model_that_fails_leaves_no_thread(folder: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(ModelError, match="safetensors"):
        LLM(tmp_path)
    until_these_run_alone(before)


def call_for_ever(llm: LLM, call: str) -> None:
    while True:
        if call == "generate":
            llm.generate(["a"] * 300, ENDLESS)
        elif call == "score":
            llm.score([[5] * 400] * 300)
        else:
            list(llm.stream("a", ENDLESS))


@pytest.mark.parametrize("call", ["generate", "stream", "score"])
def test_ctrl_c_ends_the_call_alone(llm: LLM, call: str) -> None:
    expected = llm.generate("Once upon", SHORT).choices
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call_for_ever(llm, call)
    timer.join()
    assert idle(llm).blocks_used == 0
    assert llm.generate("Once upon", SHORT).choices == expected


def test_a_failure_in_the_middle_ends_the_rest(folder: Path) -> None:
    """More choices than the engine's queue holds are refused by the engine itself."""
    prompts = ["a", "b", "c"]
    with LLM(folder, device="cpu", max_queue=4, max_num_seqs=2) as small:
        with pytest.raises(RequestError, match="prompt 1: n must be at most 4"):
            small.generate(prompts, [SHORT, SamplingParams(n=5), ENDLESS])
        assert idle(small).blocks_used == 0
        assert len(small.generate(prompts * 10, SHORT)) == 30


def test_ctrl_c_ends_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_for_ever(_: Any, on_progress: Callable[[Progress], None]) -> None:
        while True:
            on_progress(Progress("loading weights", 1, 2))
            time.sleep(0.01)

    before = set(threading.enumerate())
    monkeypatch.setattr("rosellm.roseinfer.engine.build.build_engine", load_for_ever)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        LLM(folder, device="cpu")
    until_these_run_alone(before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for stream, progress in ((Terminal(), True), (Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        llm.generate(["a"] * 3, SHORT, progress=progress)
        shown.append(stream.getvalue())
    assert "3/3" in shown[0]
    assert "out" in shown[0]
    assert shown[1:] == ["", ""]

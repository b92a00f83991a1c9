"""The thread pool: every tile once, by the threads that were asked for, whatever goes on around.

``pool_stress.cpp`` does the same without Python, for a sanitizer of threads.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rosellm.roseinfer.kernels.cpu import build
from rosellm.roseinfer.kernels.cpu.library import BODY, Library

STRESS = Path(__file__).with_name("pool_stress.cpp")
PREFACE = """
import os, signal, sys, threading, time
from rosellm.roseinfer.kernels.cpu.library import BODY, load
library = load()
library.set_threads(2)
done = []
note = BODY(lambda context, tile, worker: done.append((tile, worker, os.getpid())))
run = lambda tiles: library.c.rose_run_tiles(tiles, note, None)
"""


Calls = list[tuple[int, int, int]]  # (tile, worker, thread)


def run(library: Library, tiles: int, within: Callable[[], object] = int) -> Calls:
    """Run an operation whose tiles call a function; return what was called."""
    calls = []

    def body(context: object, tile: int, worker: int) -> None:
        calls.append((tile, worker, threading.get_ident()))
        within()

    library.c.rose_run_tiles(tiles, BODY(body), None)
    return calls


def gather(library: Library, count: int, within: Callable[[], object] = int) -> Calls:
    """Run an operation of ``count`` tiles, none of which ends before all have begun."""
    barrier = threading.Barrier(count)

    def meet() -> None:
        barrier.wait(timeout=30)
        within()

    return run(library, count, meet)


def run_program(body: str) -> str:
    """Run Python of its own process, after ``PREFACE``; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREFACE + body],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("tiles", [0, 1, 2, 3, 100])
def test_every_tile_is_computed_once(library, threads, tiles):
    for _ in range(20):
        calls = run(library, tiles)
        assert sorted(tile for tile, _, _ in calls) == list(range(tiles))
        assert all(0 <= worker < threads for _, worker, _ in calls)


def test_the_threads_share_the_work_and_the_caller_takes_part(library, threads):
    calls = gather(library, threads)
    assert {worker for _, worker, _ in calls} == set(range(threads))
    assert len({thread for _, _, thread in calls}) == threads
    assert (0, threading.get_ident()) in {(worker, thread) for _, worker, thread in calls}


def test_a_single_tile_is_computed_by_the_caller(library, threads):
    assert run(library, 1) == [(0, 0, threading.get_ident())]


def test_sleeping_workers_are_woken(library, threads):
    for _ in range(3):
        time.sleep(0.02)  # much longer than they look for work
        assert len(gather(library, threads)) == threads


def test_operations_of_several_callers_take_turns(library, threads):
    inside = Counter()
    most = Counter()

    def call(name: int) -> None:
        def body(context: object, tile: int, worker: int) -> None:
            inside[name] += 1
            most["callers"] = max(most["callers"], sum(1 for count in inside.values() if count))
            time.sleep(0.0002)
            inside[name] -= 1
            most[name] += 1

        for _ in range(10):
            library.c.rose_run_tiles(8, BODY(body), None)

    callers = [threading.Thread(target=call, args=(name,)) for name in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most == {"callers": 1, 0: 80, 1: 80, 2: 80}


def test_the_number_of_threads_can_change(library, threads):
    for count in (3, 1, 2, 8):
        library.set_threads(count)
        assert library.threads == count
        assert {worker for _, worker, _ in gather(library, count)} == set(range(count))


def test_less_than_one_thread_is_one(library, threads):
    library.set_threads(0)
    assert library.threads == 1


def test_idle_workers_take_no_time(library, threads):
    """Measured of all threads but this one, whose own waking takes time on a busy machine."""
    run(library, 40)
    time.sleep(0.05)

    def taken() -> int:
        others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(me)]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in others)

    me = threading.get_native_id()
    before = taken()
    time.sleep(0.3)
    assert taken() - before < 0.03e9


def test_workers_compute_with_the_callers_treatment_of_denormals(library, threads):
    torch = pytest.importorskip("torch")
    factors = [1e-300, 1e-15]
    products = []
    gather(library, threads)  # the threads are there before the mode changes
    assert torch.set_flush_denormal(True) or pytest.skip("this processor cannot flush denormals")
    try:
        gather(library, threads, lambda: products.append(factors[0] * factors[1]))
    finally:
        torch.set_flush_denormal(False)
    assert products == [0.0] * threads
    gather(library, threads, lambda: products.append(factors[0] * factors[1]))
    assert 0.0 not in products[threads:]


def test_a_forked_child_has_a_pool_of_its_own(library):
    printed = run_program("""
run(50)
child = os.fork()
done.clear()
run(50)
right = sorted(tile for tile, _, _ in done) == list(range(50))
right = right and {pid for _, _, pid in done} == {os.getpid()}
if child == 0:
    os._exit(0 if right else 1)
print(right, os.waitpid(child, 0)[1])
""")
    assert printed == "True 0"


def test_forking_while_another_thread_computes(library):
    # Tiles are native here, as kernels' are: a fork hangs in CPython 3.11 itself where a thread is
    # just entering Python.
    printed = run_program("""
import ctypes
native = ctypes.cast(ctypes.CDLL(None).getpid, BODY)
stop = False
def busy():
    while not stop:
        library.c.rose_run_tiles(20, native, None)
thread = threading.Thread(target=busy)
thread.start()
ends = set()
for _ in range(20):
    if (child := os.fork()) == 0:
        signal.alarm(20)
        run(20)
        os._exit(0)
    ends.add(os.waitpid(child, 0)[1])
stop = True
thread.join()
print(ends)
""")
    assert printed == "{0}"


def test_a_process_ends_while_a_thread_computes(library):
    printed = run_program("""
def busy():
    while True:
        run(1000)
threading.Thread(target=busy, daemon=True).start()
run(100)
time.sleep(0.05)
print("end", flush=True)
""")
    assert printed == "end"


@pytest.mark.slow
def test_stress_under_the_sanitizer_of_threads(tmp_path):
    compiler = build.compiler() or pytest.skip("no C++ compiler")
    program = tmp_path / "stress"
    sources = [str(STRESS), str(build.HERE / "pool.cpp"), f"-I{build.HERE}"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread"]
    built = subprocess.run([*compiler, *flags, *sources, "-o", str(program)], capture_output=True)
    if built.returncode:
        pytest.skip("this compiler has no sanitizer of threads")
    # older sanitizers do not find their way in a randomly laid out address space
    command = ["setarch", "--addr-no-randomize", str(program), "20000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

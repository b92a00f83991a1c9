"""What only torch can tell, asked in a process of its own: a torch that is broken may end it.

``python -m rosellm.commands.torch_report`` reads an engine's config from standard input and writes
a ``Report``.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.engine.client import child_environment
from rosellm.roseinfer.errors import RosellmError

_TIMEOUT_S = 120.0


class Report(msgspec.Struct):
    """What came out.

    Attributes:
        failure: why there is no torch to serve with; empty where there is.
        gpus: name and memory of each CUDA device.
        fits: what the engine would take and what is free, in words.
        refusal: why an engine of that config would not start; empty where it would.
    """

    failure: str = ""
    version: str = ""
    threads: int = 0
    gpus: list[str] = []
    fits: str = ""
    refusal: str = ""


def ask(config: EngineConfig) -> Report:
    """The report on that engine, whatever becomes of the process that makes it."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=msgspec.json.encode(config),
            capture_output=True,
            timeout=_TIMEOUT_S,
            env=child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Report(failure=f"importing it takes more than {_TIMEOUT_S:.0f} s")
    try:
        return msgspec.json.decode(done.stdout, type=Report)
    except msgspec.MsgspecError:
        return Report(failure=_last_words(done.returncode, done.stderr))


def _last_words(code: int, said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    ended = f"importing it was killed by signal {-code}" if code < 0 else "it cannot be imported"
    return f"{ended} ({lines[-1]})" if lines else ended


def main(text: bytes) -> int:
    """Make the report. Returns the exit code."""
    config = msgspec.json.decode(text, type=EngineConfig)
    report = _torch()
    if not report.failure:
        try:
            report.fits = _fits(config)
        except RosellmError as error:
            report.refusal = str(error)
    sys.stdout.buffer.write(msgspec.json.encode(report))
    return 0


def _torch() -> Report:
    try:
        import torch
    except Exception as error:  # whatever a broken installation comes up with
        return Report(failure=f"it cannot be imported ({type(error).__name__}: {error})")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    return Report(
        version=str(torch.__version__),
        threads=torch.get_num_threads(),
        gpus=[f"{each.name}, {each.total_memory / (1 << 30):.0f} GiB" for each in properties],
    )


def _fits(config: EngineConfig) -> str:
    from rosellm.commands.model_facts import choices, find
    from rosellm.commands.tables import size
    from rosellm.roseinfer.runner import memory
    from rosellm.roseinfer.runner.plan import plan_memory

    made = choices(config, find(config.model.model))
    plan = plan_memory(made, memory.available(made.device))
    most = plan.cache.sequences(plan.cache.max_model_len)
    return (
        f"{size(plan.peak)} of {size(plan.free)} free on {made.device};"
        f" {most} at a time of {plan.cache.max_model_len:,} tokens"
    )


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer.read()))

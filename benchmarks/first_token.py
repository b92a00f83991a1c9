"""From the command to the first token, against importing torch, which nothing can be faster than.

Both are new processes. The clock runs from the spawn: of the server until a client that tries
every few milliseconds has the first text of a stream, of the other until torch is imported.
They take turns; the first turn fills the disk cache and is not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rosellm.bench.exchange import ExchangeError, Server, exchange
from rosellm.bench.record import Recorder
from rosellm.bench.stats import median

ROOT = Path(__file__).parents[1]
AIM_S = 1.0
DEMO_AIM_S = 3.0  # on two cores
RETRY_S = 0.005
PATIENCE_S = 120.0


def measure(
    model: Path, *, device: str, dtype: str, rounds: int, chat: bool = False
) -> dict[str, Any]:
    """Time starts of a server, and imports of torch beside them.

    Args:
        chat: ask for the answer of a conversation, through the model's chat template.
    """
    imports, starts = [], []
    for turn in range(rounds + 1):
        imported, started = import_torch(), _start(model, device, dtype, chat)
        if turn:
            imports.append(imported)
            starts.append(started)
    return {
        "model": model.name,
        "dtype": dtype,
        "device": device,
        "rounds": rounds,
        "import_torch_s": round(median(imports), 3),
        "first_token_s": round(median(starts), 3),
        "beyond_torch_s": round(median(starts) - median(imports), 3),
        "aim_beyond_torch_s": AIM_S,
        "all_import_torch_s": [round(value, 3) for value in imports],
        "all_first_token_s": [round(value, 3) for value in starts],
    }


def report(found: dict[str, Any]) -> list[str]:
    return [
        f"import torch  {found['import_torch_s']:.2f} s",
        f"first token   {found['first_token_s']:.2f} s",
        f"difference    {found['beyond_torch_s']:.2f} s   (aim: below {AIM_S:g} s)",
    ]


def report_demo(found: dict[str, Any]) -> list[str]:
    import_torch, first_token, _ = report(found)
    return [import_torch, f"{first_token}   (aim: below {DEMO_AIM_S:g} s on two cores)"]


def import_torch() -> float:
    """Seconds until torch is imported; the interpreter's end is not waited for in earnest."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import os, torch; os._exit(0)"], check=True)
    return time.perf_counter() - start


def _start(model: Path, device: str, dtype: str, chat: bool) -> float:
    port = free_port()
    command = [sys.executable, "-m", "rosellm.roseinfer.server", str(model), "--port", str(port)]
    command += ["--device", device, "--dtype", dtype]
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, cwd=ROOT)
        try:
            return asyncio.run(first_text(process, port, *_request(model.name, chat))) - start
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error}:\n{log.read().decode(errors='replace')}") from None
        finally:
            process.terminate()
            process.wait(30)


def _request(model: str, chat: bool) -> tuple[str, bytes]:
    """What is asked, and of which route."""
    body: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0, "stream": True}
    if chat:
        messages = [{"role": "user", "content": "Hello! Who are you?"}]
        return "/chat/completions", json.dumps({**body, "messages": messages}).encode()
    return "/completions", json.dumps({**body, "prompt": "Once upon a time"}).encode()


async def first_text(process: subprocess.Popen[bytes], port: int, route: str, body: bytes) -> float:
    """``time.perf_counter()`` of the first text that the server sends."""
    server = Server.at(f"http://127.0.0.1:{port}", os.environ.get("ROSELLM_API_KEY"))
    deadline = time.perf_counter() + PATIENCE_S
    while process.poll() is None and time.perf_counter() < deadline:
        recorder = Recorder()
        with suppress(ExchangeError):  # while it does not listen yet
            await exchange(server, route, body, recorder.feed)
        if recorder.times:
            return recorder.times[0]
        await asyncio.sleep(RETRY_S)
    raise RuntimeError(f"the server gave no token (exit code {process.poll()})")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

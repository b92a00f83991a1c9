"""The API side starts without torch: importing it would cost seconds and hundreds of megabytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers")
API_SIDE = (
    "rosellm",
    "rosellm.cli",
    "rosellm.roseinfer",
    "rosellm.roseinfer.engine.client",
    "rosellm.roseinfer.inference_engine",
    "rosellm.roseinfer.llm.library",
    "rosellm.roseinfer.server",
    "rosellm.roseinfer.server.__main__",
    "rosellm.roseinfer.server.app",
    "rosellm.roseinfer.server.run",
)


def loaded_after(statement: str) -> list[str]:
    """Return which of HEAVY a fresh interpreter holds after the statement."""
    probe = f"{statement}\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", API_SIDE)
def test_importing_stays_cheap(module: str) -> None:
    assert loaded_after(f"import {module}") == []


def test_the_probe_sees_torch() -> None:
    assert loaded_after("import torch") == ["torch"]

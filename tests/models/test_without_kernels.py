"""An installation without native kernels: it serves, and one line says what that costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosellm.roseinfer.kernels import table
from rosellm.roseinfer.kernels.cpu.library import open_library
from rosellm.roseinfer.server.report import summary
from tests.tiny_models import build, generate, greedy, write_llama


@pytest.mark.parametrize("settings", [{}, {"quantization": "int4"}, {"kv_cache_dtype": "int8"}])
def test_the_reference_serves_and_start_up_says_why(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "load", lambda: open_library(tmp_path / "nothing.so"))
    folder = write_llama(tmp_path / "model")
    core = build(folder, **settings)
    [answer] = generate(core, [[5, 6, 7]], greedy(8))
    [plain] = generate(build(folder, kernels="reference", **settings), [[5, 6, 7]], greedy(8))
    assert answer == plain
    assert len(answer.tokens[0]) == 8
    lines = summary("tiny", core.facts, "http://127.0.0.1:8000", needs_key=False).splitlines()
    [line] = [line for line in lines if "native CPU kernels" in line]
    assert "kernels" in line
    assert "reference" in line
    assert "native CPU kernels are not built: plain torch serves, several times slower" in line
    assert "install g++ or clang++ and run: python -m rosellm.roseinfer.kernels.cpu.build" in line


def test_no_line_of_it_where_the_reference_is_asked_for(tmp_path: Path) -> None:
    core = build(write_llama(tmp_path), kernels="reference")
    text = summary("tiny", core.facts, "http://127.0.0.1:8000", needs_key=False)
    assert "native CPU kernels" not in text
    assert "asked for by --kernels" in text

"""Files that are mutated, truncated or hostile give one line, never a traceback, hang or crash."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest

from rosellm import cli
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.quant import cache
from tests.faults import loading
from tests.faults.hostile_files import Supervisor, try_files
from tests.faults.hostile_models import write_models
from tests.tiny_models import engine_config


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models of every form, with all the files that may stand beside one."""
    root = write_models(tmp_path_factory.mktemp("hostile"))
    for folder in root.iterdir():
        loading.take_in(next(folder.glob("*.pt"), folder), folder)  # they are well as they are
    return root


def test_hostile_files_are_taken_in_or_refused(pristine: Path) -> None:
    """In processes of their own, whose memory is limited: a crash is seen too, or a hang."""
    tally = try_files(0, 150, pristine)
    assert not tally.wrong, tally.line()
    assert tally.tried == 150
    assert tally.outcomes["served"] > 10
    assert tally.outcomes["refused"] > 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_hostile_files(pristine: Path) -> None:
    tally = try_files(1000, 10_000, pristine, loud=True)
    assert not tally.wrong, tally.line()
    assert tally.tried == 10_000
    # Not all of them one way, and no file is left out.
    assert tally.outcomes["served"] > 1000
    assert tally.outcomes["refused"] > 1000
    assert set(tally.files) == {f"{path.parent.name}/{path.name}" for path in pristine.glob("*/*")}


# What it does with a seed goes by the last digit; REPLIES is the only argument.
UNLUCKY = """
import json, os, sys, time
replies = os.fdopen(int(sys.argv[1]), "w", buffering=1)
for line in sys.stdin:
    seed = int(line)
    if seed % 10 == 3:
        print("out of luck", flush=True)
        os.abort()
    if seed % 10 == 5:
        time.sleep(60)
    outcome = "wrong" if seed % 10 == 7 else "served"
    replies.write(json.dumps({"seed": seed, "outcome": outcome, "file": "x", "said": "no"}) + "\\n")
"""


@pytest.mark.alone
def test_a_crash_or_a_hang_is_blamed_on_its_file() -> None:
    supervisor = Supervisor([sys.executable, "-S", "-c", UNLUCKY], hang_s=0.3)
    supervisor_tally = supervisor.run(range(20), children=2)
    assert supervisor_tally.outcomes == {"served": 14, "wrong": 2, "lost": 4}
    crashes = [line for line in supervisor_tally.wrong if f"code {-signal.SIGABRT}: " in line]
    assert sorted(line.partition(":")[0] for line in crashes) == ["seed 13", "seed 3"]
    assert all("out of luck" in line for line in crashes)
    hangs = [line for line in supervisor_tally.wrong if "hangs" in line]
    assert sorted(line.partition(":")[0] for line in hangs) == ["seed 15", "seed 5"]
    assert "seed 7, x: no" in supervisor_tally.wrong


# -- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("whole", "config.json", b"\xff"),
        ("whole", "config.json", b"[" * 100_000),
        ("whole", "model.safetensors", b"\xff" * 100),
        ("whole", "tokenizer.json", b"{}"),
        ("shards", "tokenizer_config.json", b'{"chat_template": 5}'),
        ("whole", "chat_template.jinja", b"{% for %}"),
        ("whole", "generation_config.json", b'{"temperature": -1}'),
        ("shards", "model.safetensors.index.json", b'{"weight_map": {"a": "/etc/passwd"}}'),
        ("rose", "model.pt", b"PK\x03\x04 no more"),
        ("pieces", "tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f"),
    ],
    ids=range(10),
)
def test_serve_says_one_line_and_exits_with_2(
    kind: str, file: str, content: bytes, pristine: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / kind
    shutil.copytree(pristine / kind, folder)
    (folder / file).write_bytes(content)
    model = [str(folder)]
    if kind == "rose":
        model = [str(folder / "model.pt"), "--tokenizer", str(folder)]
    code = cli.main(["generate", *model, "Hi", "--device=cpu", "--max-tokens=1"])
    [line] = capfd.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("error: ")
    assert file in line or kind in line or "chat template" in line


def test_a_kept_quantised_model_that_is_damaged_is_made_anew(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is a file of ours, but on a disk of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = engine_config(pristine / "whole", quantization="int8", kv_cache_gb=0.001)
    first = build_engine(config).facts.fingerprint
    [entry] = cache.cache_root().iterdir()
    for content in (b"", b"\xff" * 50, (entry / "model.safetensors").read_bytes()[:-100]):
        (entry / "model.safetensors").unlink()
        (entry / "model.safetensors").write_bytes(content)
        assert build_engine(config).facts.fingerprint == first

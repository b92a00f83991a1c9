"""``rosellm doctor``: an error for what would stop ``serve``, a warning for what would slow it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rosellm import cli
from rosellm.commands import doctor, torch_report
from rosellm.commands.torch_report import Report
from rosellm.roseinfer.config import EngineConfig, ModelConfig
from rosellm.roseinfer.demo import demo_model
from rosellm.roseinfer.kernels.cpu.library import Unavailable
from tests.e2e.conftest import free_port

Show = pytest.CaptureFixture[str]
Check = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that is well, without waiting for it."""
    report = Report(version="2.13.0", threads=2, fits="1 GiB of 2 GiB free")
    monkeypatch.setattr(torch_report, "ask", lambda _: report)


@pytest.fixture
def check(capsys: Show, known: None) -> Check:
    """Run the command; its findings by name, once the exit code has been looked at."""

    def run(*argv: str, code: int = 0) -> dict[str, dict[str, Any]]:
        port = () if any("--port" in each for each in argv) else (f"--port={free_port()}",)
        assert cli.main(["doctor", *argv, *port, "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0)
        assert any(each["status"] == "error" for each in told["checks"]) == (code == 1)
        for each in told["checks"]:
            assert bool(each["advice"]) == (each["status"] != "ok"), each
        return {each["name"]: each for each in told["checks"]}

    return run


def test_all_is_well(check: Check) -> None:
    found = check()
    names = {"rosellm", "processor", "cores", "instructions", "kernels", "torch", "GPU", "memory"}
    names |= {"files", "cache", "hub cache", "extras", "configuration", "exposure", "port", "model"}
    assert names <= set(found)
    assert found["model"]["found"] == "1 GiB of 2 GiB free"


@pytest.mark.usefixtures("known")
def test_a_table_for_people(capsys: Show) -> None:
    assert cli.main(["doctor", f"--port={free_port()}"]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title == "rosellm doctor"
    assert head.split() == ["check", "found", "what", "to", "do"]
    assert any(row.split()[:2] == ["ok", "port"] for row in rows)


def test_no_torch_is_imported() -> None:
    """It is asked in another process: this one may not survive it."""
    probe = "import rosellm.commands.doctor, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.mark.parametrize(
    ("argv", "name", "says"),
    [
        (["--host=0.0.0.0"], "exposure", "no key is set"),
        (["/no/such/model"], "configuration", "no such folder or file"),
        (["--kv-cache-gb=-1"], "configuration", "--kv-cache-gb must be at least 0"),
        (["--host=no.such.host.invalid", "--insecure"], "port", "cannot listen on"),
    ],
)
def test_flags_that_would_stop_serve(
    argv: list[str], name: str, says: str, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROSELLM_API_KEY", raising=False)
    found = check(*argv, code=1)
    assert found[name]["status"] == "error"
    assert says in found[name]["found"]


def test_a_flag_that_is_none(capsys: Show) -> None:
    assert cli.main(["doctor", "--prot=80"]) == 2
    assert "did you mean --port?" in capsys.readouterr().err


def test_a_port_in_use(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = check(f"--port={server.getsockname()[1]}", code=1)
    assert "already in use" in found["port"]["found"]


def test_a_damaged_model(check: Check, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    found = check(str(tmp_path), code=1)
    assert "config.json: not readable as JSON" in found["model"]["found"]


def test_a_model_that_does_not_fit(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_report, "ask", lambda _: Report(version="2", refusal="too large"))
    assert check(code=1)["model"]["found"] == "too large"


def test_a_broken_torch(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_report, "ask", lambda _: Report(failure="it cannot be imported"))
    assert check(code=1)["torch"]["status"] == "error"


def test_no_native_kernels_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load", lambda: Unavailable("they are not built"))
    assert check()["kernels"]["status"] == "warning"


def test_few_files_is_a_warning(check: Check) -> None:
    found = check("--max-connections=1000000000")["files"]
    assert found["status"] == "warning"
    assert "--max-connections" in found["advice"]


class TestReport:
    """The process that imports torch."""

    def test_it_tells_what_there_is(self) -> None:
        report = torch_report.ask(EngineConfig(ModelConfig(str(demo_model()), device="cpu")))
        assert report.version.startswith("2.")
        assert report.threads >= 1
        assert "free on cpu" in report.fits

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("raise ImportError('libtorch_cpu.so: no such file')", "libtorch_cpu.so"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by signal 4"),
            ("import os; os._exit(3)", "cannot be imported"),
        ],
    )
    def test_a_torch_that_fails(
        self, source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "torch.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        report = torch_report.ask(EngineConfig())
        assert says in report.failure
        assert not report.version

"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import turns
from tests.audit import rules
from tests.audit.expected import expected

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

# Before torch is imported: waiting OpenMP threads sleep, so that tests keep their pace beside
# other work (see engine/client.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Nobody beyond this machine is asked, so no httpx client need read everyone's certificates: that
# takes 60 ms each time. A test that is marked network would have to take this back.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "data" / "tls" / "cert.pem")


class _Audit:
    """Stops what a test should not do, and remembers it for those that catch every error."""

    def __init__(self) -> None:
        self.expected: frozenset[str] | None = None  # while no test runs
        self.found: list[str] = []

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.expected is None or event not in rules.JUDGES:
            return
        if found := rules.violation(event, args, self.expected):
            self.found.append(found)
            raise RuntimeError(f"not expected in this test: it {found} (tests/audit/expected.py)")


AUDIT = _Audit()
sys.addaudithook(AUDIT.hook)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # waiting is not the test's time
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with turns.taken(alone=item.get_closest_marker("alone") is not None):
        AUDIT.expected = expected(item.nodeid)
        try:
            return (yield)
        finally:
            AUDIT.expected = None


@pytest.fixture(scope="session", autouse=True)
def _audit_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers and engines that tests start write down what they should not have done."""
    report = tmp_path_factory.mktemp("audit") / "report"
    report.touch()
    inherited = os.environ.get("PYTHONPATH")
    folder = str(Path(rules.__file__).parent / "started")
    os.environ["PYTHONPATH"] = f"{inherited}:{folder}" if inherited else folder
    os.environ["TESTS_AUDIT_REPORT"] = str(report)
    return report


@pytest.fixture(autouse=True)
def _audit(_audit_report: Path) -> Iterator[None]:
    yield
    found, AUDIT.found = AUDIT.found, []
    if _audit_report.stat().st_size:
        found += _audit_report.read_text().splitlines()
        _audit_report.write_text("")
    assert not found, f"not expected: {found}"


@pytest.fixture
def audit_expects_violations(_audit: None) -> Iterator[list[str]]:
    """For the audit's own tests: what it has found, which is no fault then."""
    yield AUDIT.found
    AUDIT.found = []


@pytest.fixture(autouse=True)
def _log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that a test has run in this process leaves no writer of log lines behind."""
    monkeypatch.setenv("ROSELLM_LOG_FORMAT", "text")  # so that it is put back as it was
    monkeypatch.delenv("ROSELLM_LOG_FORMAT")
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a start keeps for the next one goes with the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real tokenizers, models and templates, where a checkout has one."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder


# A server takes seconds to start. Of those without options there is one for all tests that leave
# it as it was; who breaks one starts another.


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random model with a real tokenizer."""
    from tests.e2e.conftest import write_tokenizer
    from tests.tiny_models import write_llama

    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    return write_llama(
        folder,
        vocab_size=size,
        hidden_size=64,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[Server]:
    from tests.e2e.conftest import start_server

    running = start_server(str(model_folder), model="tiny-llama")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def demo() -> Iterator[Server]:
    from tests.e2e.conftest import start_server

    running = start_server(model="rosellm-demo")
    yield running
    assert running.stop() == 0

"""A small model with room for long answers, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, start_server, write_tokenizer
from tests.tiny_models import write_llama

CONTEXT = 8192  # an answer without a limit takes seconds: time enough to stop it


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "tiny-llama"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    write_llama(
        folder,
        vocab_size=size,
        hidden_size=64,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    return folder


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[Server]:
    running = start_server(str(model_folder), model="tiny-llama")
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where histories go, and no keys but those that a test sets."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("ROSELLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path

"""The commands take a hub id wherever they take a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rosellm import cli
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.server import flags
from tests.e2e.conftest import start_server, write_tokenizer
from tests.hub.conftest import FakeHub
from tests.tiny_models import write_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder as a repository holds it."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    write_llama(folder, vocab_size=size, shards=2, bos_token_id=0, eos_token_id=0)
    (folder / "README.md").write_text("# tiny")
    return folder


def test_options_keep_the_name_and_get_local_paths(hub: FakeHub, model: Path) -> None:
    hub.add_folder(model)
    asked = flags.parse(["org/tiny@v1", "--tokenizer", "org/tiny", "--max-num-seqs", "3"])
    assert asked.names_hub
    got = asked.with_local_files(lambda _: None)
    assert asked.model_name == got.model_name == "org/tiny"
    assert Path(got.engine.model.model).is_dir()
    assert Path(str(got.engine.model.tokenizer)).is_dir()
    assert not got.names_hub
    assert got.engine.scheduler == asked.engine.scheduler
    named = flags.parse(["org/tiny", "--served-model-name", "me"]).with_local_files(lambda _: None)
    assert named.model_name == "me"


def test_a_chat_template_is_checked_before_anything_is_loaded(hub: FakeHub, model: Path) -> None:
    hub.add_folder(model)
    hub.files["tokenizer_config.json"] = json.dumps(
        {"chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]}
    ).encode()
    flags.parse(["org/tiny", "--chat-template", "rag"]).with_local_files(lambda _: None)
    with pytest.raises(ModelError, match="which has default, rag"):
        flags.parse(["org/tiny", "--chat-template", "x"]).with_local_files(lambda _: None)


def test_a_broken_template_stops_the_server_before_it_loads(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% if %}")
    assert cli.main(["serve", str(model), "--port", "0", "--chat-template", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: chat template '{path}' is not valid Jinja")


def test_an_architecture_that_is_not_supported_is_not_downloaded(hub: FakeHub, model: Path) -> None:
    hub.add_folder(model)
    hub.files["config.json"] = b'{"architectures": ["MambaLM"]}'
    with pytest.raises(ModelError, match="unknown architecture 'MambaLM'"):
        flags.parse(["org/tiny"]).with_local_files(lambda _: None)
    assert not [name for name in hub.got if name.endswith(".safetensors")]


def test_inspect(hub: FakeHub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add_folder(model)
    assert cli.main(["inspect", "org/tiny"]) == 0
    out = capsys.readouterr().out
    assert "the weights are not here" in out
    assert "LlamaForCausalLM" in out
    flags.parse(["org/tiny"]).with_local_files(lambda _: None)
    assert cli.main(["inspect", "org/tiny"]) == 0
    assert "stored            float32, " in capsys.readouterr().out


def test_generate(hub: FakeHub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add_folder(model)
    assert cli.main(["generate", "org/tiny@v1", "a", "--max-tokens=3", "--ignore-eos"]) == 0
    assert capsys.readouterr().out.strip("\n")
    assert "README.md" not in hub.got


@pytest.mark.slow
def test_serve(hub_server: FakeHub, model: Path, tmp_path: Path) -> None:
    hub_server.add_folder(model)
    environment = {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path)}
    server = start_server("org/tiny@v1", model="org/tiny", **environment)
    try:
        listed = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert "org/tiny" in [each["id"] for each in listed]
        body = {"model": "org/tiny", "prompt": "a", "max_tokens": 3}
        answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
        assert answer["model"] == "org/tiny"
    finally:
        assert server.stop() == 0
    assert "README.md" not in hub_server.got


@pytest.mark.slow
def test_bench_offline(hub_server: FakeHub, model: Path, tmp_path: Path) -> None:
    hub_server.add_folder(model)
    environment = os.environ | {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path)}
    sizes = ["--num-requests", "1", "--input-tokens", "4", "--output-tokens", "2"]
    command = [sys.executable, "-c", "import sys; from rosellm.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "bench", "offline", "org/tiny", *sizes],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1])["model"] == "org/tiny"


@pytest.mark.parametrize("command", ["serve", "inspect", "bench offline"])
def test_a_typo_is_one_line(hub: FakeHub, capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([*command.split(), "org/typo"]) == 2
    *progress, line = capfd.readouterr().err.splitlines()
    assert progress == ["asking the hub for org/typo"]
    assert line.startswith("error: no folder 'org/typo' here, and the hub has no model 'org/typo'")

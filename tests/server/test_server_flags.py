"""The command line: generated flags, the seed's own, contradictions, and one-line errors."""

from __future__ import annotations

import argparse
import dataclasses
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rosellm import cli
from rosellm.roseinfer.config import EngineConfig, SamplingDefaults, ServerConfig
from rosellm.roseinfer.demo import demo_model
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.fields import CONFIGS
from rosellm.roseinfer.server.keys import load_keys
from rosellm.roseinfer.server.listen import bind, check_exposure, listen, url


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "my-model"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "x").write_bytes(b"")
    return str(tmp_path / "x")


def test_without_flags_every_default_is_the_dataclasss(model: str) -> None:
    got = flags.parse([model])
    assert got.engine == dataclasses.replace(
        EngineConfig(), model=dataclasses.replace(EngineConfig().model, model=model)
    )
    assert (got.sampling, got.server) == (SamplingDefaults(), ServerConfig())
    assert got.model_name == "my-model"


def test_without_a_model_it_is_the_demo_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("", "--port 8080", "rosellm-demo", "--checkpoint-path rosellm-demo"):
        got = flags.parse(line.split())
        assert (got.engine.model.model, got.model_name) == (demo_model(), "rosellm-demo")
        assert got.serves_demo
    (tmp_path / "rosellm-demo").mkdir()  # what is here comes first
    got = flags.parse(["rosellm-demo"])
    assert (got.engine.model.model, got.serves_demo) == ("rosellm-demo", False)


def test_the_seeds_command(checkpoint: str) -> None:
    got = flags.parse(
        f"--checkpoint-path {checkpoint} --tokenizer-name gpt2 --device cpu --no-amp"
        " --stop-on-eos --do-sample --temperature 0.8 --top-k 50 --top-p 0.9"
        " --host 0.0.0.0 --port 9000".split()
    )
    assert (got.engine.model.model, got.engine.model.tokenizer) == (checkpoint, "gpt2")
    assert (got.engine.model.device, got.engine.model.dtype) == ("cpu", "float32")
    assert got.sampling == SamplingDefaults(True, 0.8, 50, 0.9, True)
    assert (got.server.host, got.server.port) == ("0.0.0.0", 9000)
    assert got.model_name == "x"


def test_every_other_flag(model: str) -> None:
    got = flags.parse(
        f"{model} --bf16 --max-model-len 99 --max-num-seqs 3 --max-num-batched-tokens 77"
        " --served-model-name me --no-prefix-cache --kv-cache-gb 0.5 --no-do-sample".split()
    )
    assert (got.engine.model.dtype, got.engine.model.max_model_len) == ("bfloat16", 99)
    scheduler = got.engine.scheduler
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (3, 77)
    assert (got.engine.cache.prefix_cache, got.engine.cache.kv_cache_gb) == (False, 0.5)
    assert (got.sampling.do_sample, got.model_name) == (False, "me")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--tokenizer MODEL", "which model"),
        ("MODEL --no-amp --bf16", "--no-amp and --bf16"),
        ("MODEL --dtype auto --bf16", "--dtype and --bf16"),
        ("MODEL --no-amp --dtype float32", "--dtype and --no-amp"),
        ("MODEL --checkpoint-path x.pt", "MODEL and --checkpoint-path"),
        ("/no/such/place", "/no/such/place"),
        ("./no-such-place", "no such folder or file"),
        ("MODEL --tokenizer ./no-such-place", "'./no-such-place': no such folder"),
        ("CHECKPOINT", "pass --tokenizer"),
        ("MODEL --dtype int8", "int8"),
        ("MODEL --port x", "--port"),
        ("MODEL --port 70000", "--port"),
        ("MODEL --max-num-seqs 0", "--max-num-seqs"),
        ("MODEL --max-model-len -5", "--max-model-len"),
        ("MODEL --kv-cache-gb nan", "--kv-cache-gb"),
        ("MODEL --top-p 1.5", "--top-p"),
        ("MODEL --temperature -1", "--temperature"),
        ("MODEL --max-num 5", "--max-num"),
        ("MODEL --what", "--what"),
    ],
)
def test_what_cannot_work_is_one_clear_line(
    model: str, checkpoint: str, line: str, says: str
) -> None:
    argv = line.replace("MODEL", model, 1).replace("CHECKPOINT", checkpoint).split()
    with pytest.raises(ConfigError) as caught:
        flags.parse(argv)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_commands_have_the_same_flags(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for show in (lambda: flags.parser().parse_args(["--help"]), lambda: cli.main(["serve", "-h"])):
        with pytest.raises(SystemExit) as caught:
            show()
        assert caught.value.code == 0
        texts.append(capsys.readouterr().out.partition("\n")[2])
    assert texts[0] == texts[1]
    for group in ("Model:", "KV cache:", "Scheduling:", "Sampling defaults", "Server:"):
        assert group in texts[0]
    assert "(default: 8000)" in texts[0]


def test_no_two_fields_share_a_flag() -> None:
    names = [field.name for config in CONFIGS for field in dataclasses.fields(config)]
    assert len(names) == len(set(names))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("rosellm ")


def test_bind_says_why_not() -> None:
    with bind("127.0.0.1", 0) as taken:
        listen(taken)
        port = taken.getsockname()[1]
        assert url(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match="already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen"):
        bind("no.such.host.invalid", 0)


def run_server(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "rosellm.roseinfer.server", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_taken_port_and_a_missing_model_load_nothing(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for done in (run_server(model, "--port", port), run_server("/no/such/model")):
            lines = [line for line in done.stderr.splitlines() if "import time:" not in line]
            assert done.returncode == 2
            assert len(lines) == 1
            assert lines[0].startswith("error: ")
            assert "fastapi" not in done.stderr
            assert "torch" not in done.stderr


@pytest.mark.parametrize("line", ["M --device cpu P", "M P --device cpu", "--device cpu M P"])
def test_positionals_may_stand_behind_flags(line: str) -> None:
    parser = flags.Parser()
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS)
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("--device")
    args = parser.parse_args(line.split())
    assert (args.model, args.prompt, args.device) == ("M", "P", "cpu")
    with pytest.raises(ConfigError, match="one argument too many: 'Q'"):
        parser.parse_args([*line.split(), "Q"])


@pytest.mark.parametrize(
    ("host", "key", "more", "says"),
    [
        ("0.0.0.0", "", (), "--insecure"),
        ("::", "", (), "ROSELLM_API_KEY"),
        ("192.0.2.7", "", (), "--host 192.0.2.7"),
        ("rosellm.example", "", (), "--insecure"),
        ("0.0.0.0", "secret", (), None),
        ("0.0.0.0", "", ("--insecure",), None),
        ("127.0.0.1", "", (), None),
        ("127.3.4.5", "", (), None),
        ("::1", "", (), None),
        ("localhost", "", (), None),
    ],
)
def test_other_machines_are_not_served_without_a_key(
    host: str, key: str, more: tuple[str, ...], says: str | None
) -> None:
    keys = bool(load_keys(None, {"ROSELLM_API_KEY": key}))
    config = flags.parse(["--host", host, *more]).server
    if says is None:
        check_exposure(config, keys=keys)
        return
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_exposure(config, keys=keys)

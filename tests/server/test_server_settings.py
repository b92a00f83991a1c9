"""Settings from a file and from the environment: file < ``ROSELLM_*`` < flags."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.fields import CONFIGS, hints, kind_of
from rosellm.roseinfer.server.sources import OTHERS, settings, variable

ROOT = Path(__file__).parents[2]
EXAMPLES: dict[Any, tuple[str, Any]] = {
    bool: ("off", False),
    int: ("3", 3),
    float: ("0.5", 0.5),
    str: ("some-text", "some-text"),
    tuple: (
        "https://a.example,https://b.example:8443",
        ("https://a.example", "https://b.example:8443"),
    ),
}


METADATA = {item.name: item.metadata for config in CONFIGS for item in fields(config)}


def write(folder: Path, text: str) -> str:
    path = folder / "rosellm.toml"
    path.write_text(text)
    return str(path)


def example(name: str) -> tuple[str, Any]:
    """A value of the setting, as text and as it is held."""
    kind = kind_of(hints()[name])
    if get_origin(kind) is Literal:
        return get_args(kind)[-1], get_args(kind)[-1]
    text, value = EXAMPLES[get_origin(kind) or kind]
    if kind in (int, float) and value < (least := METADATA[name]["least"]):
        return str(least), kind(least)
    return text, value


def as_toml(name: str) -> str:
    value = example(name)[1]
    if isinstance(value, tuple):
        return repr(list(value))
    return str(value).lower() if isinstance(value, bool) else repr(value)


def parse(line: str, environment: Mapping[str, str]) -> flags.Options:
    return flags.options(vars(flags.parser().parse_args(line.split())), environment)


NAMES = sorted(hints())


def test_there_is_an_example_of_every_field() -> None:
    assert set(NAMES) == {item.name for config in CONFIGS for item in fields(config)}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_can_be_said_in_either_place(name: str, tmp_path: Path) -> None:
    text, value = example(name)
    file = write(tmp_path, f"{name} = {as_toml(name)}")
    assert settings(file, {}) == {name: value}
    assert settings(None, {variable(name): text}) == {name: value}


def test_a_flag_comes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'port = 1\nhost = "127.0.0.2"\nmax_num_seqs = 11\ndtype = "float16"')
    environment = {"ROSELLM_PORT": "2", "ROSELLM_MAX_NUM_SEQS": "12"}
    got = parse(f"--config {file} --port 3", environment)
    assert (got.server.port, got.server.host) == (3, "127.0.0.2")
    assert got.engine.scheduler.max_num_seqs == 12
    assert got.engine.model.dtype == "float16"
    got = parse("--no-amp", {**environment, "ROSELLM_CONFIG": file})
    assert (got.server.port, got.engine.model.dtype) == (2, "float32")
    other = tmp_path / "other.toml"
    other.write_text("port = 4")
    got = parse(f"--config {other}", {"ROSELLM_CONFIG": file})
    assert (got.server.port, got.server.host) == (4, "127.0.0.1")


def test_a_model_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    file = write(tmp_path, f'model = "{tmp_path / "my-model"}"\nserved_model_name = "me"')
    got = parse(f"--config {file}", {})
    assert (Path(got.engine.model.model).name, got.model_name) == ("my-model", "me")
    assert parse(f"--config {file} rosellm-demo", {}).serves_demo


def test_what_an_integer_may_stand_for(tmp_path: Path) -> None:
    file = write(tmp_path, 'kv_cache_gb = 2\ncors_origin = "https://a, https://b"')
    got = parse(f"--config {file}", {})
    assert repr(got.engine.cache.kv_cache_gb) == "2.0"
    assert got.server.cors_origin == ("https://a", "https://b")


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_yes(text: str) -> None:
    assert parse("", {"ROSELLM_INSECURE": text}).server.insecure
    assert not parse("--no-insecure", {"ROSELLM_INSECURE": text}).server.insecure


def test_an_empty_variable_says_nothing() -> None:
    assert parse("", {"ROSELLM_PORT": "", "ROSELLM_CONFIG": ""}).server.port == 8000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "there is no setting 'prot'; did you mean 'port'?"),
        ("max-num-seqs = 1", "did you mean 'max_num_seqs'?"),
        ("zzz = 1", "there is no setting 'zzz'; did you mean"),
        ("[server]\nport = 1", "'server' is a table"),
        ('port = "1"', "port must be an integer, not '1'"),
        ("port = true", "port must be an integer, not True"),
        ("port = 1.0", "port must be an integer"),
        ("port = 70000", "port must be at least 0 and at most 65535, not 70000"),
        ("port = [1]", "port must be an integer"),
        ("[port]\nx = 1", "port must be an integer"),
        ("host = 1", "host must be a text"),
        ("insecure = 1", "insecure must be yes or no"),
        ('insecure = "yes"', "insecure must be yes or no"),
        ('dtype = "fp8"', "dtype must be one of auto, float32, bfloat16, float16, not 'fp8'"),
        ("temperature = 3", "temperature must be at least 0 and at most 2, not 3"),
        ("kv_cache_gb = nan", "kv_cache_gb must be at least 0, not nan"),
        ("kv_cache_gb = inf", "kv_cache_gb must be at least 0 and at most"),
        ("max_queue = 1" + "0" * 400, "max_queue must be at least 0 and at most"),
        ("kv_cache_gb = 1" + "0" * 400, "kv_cache_gb must be"),
        ('cors_origin = ["https://a/"]', "cors_origin must be an origin"),
        ('cors_origin = "app.example"', "cors_origin must be an origin"),
        ("cors_origin = [1]", "cors_origin must be a list of texts"),
        ("port = = 1", "cannot be read as TOML"),
        ("port = 1\nport = 2", "cannot be read as TOML"),
        ("port = 1" + "0" * 5000, "cannot be read as TOML"),
    ],
)
def test_what_cannot_be_in_a_file(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        parse(f"--config {file}", {})
    said = str(caught.value)
    assert said.startswith(f"{file}: ")
    assert "\n" not in said
    assert len(said) < len(file) + 300


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("ROSELLM_PROT", "1", "ROSELLM_PROT: there is no such setting; did you mean ROSELLM_PORT?"),
        ("ROSELLM_API_KEYS", "sk-1", "did you mean ROSELLM_API_KEY?"),
        ("ROSELLM_", "sk-1", "there is no such setting"),
        ("ROSELLM_port", "1", "did you mean ROSELLM_"),
        ("ROSELLM_PORT", "abc", "ROSELLM_PORT must be an integer, not 'abc'"),
        ("ROSELLM_PORT", "-1", "ROSELLM_PORT must be at least 0 and at most 65535, not -1"),
        ("ROSELLM_PORT", "1.5", "ROSELLM_PORT must be an integer"),
        ("ROSELLM_INSECURE", "maybe", "ROSELLM_INSECURE must be yes or no"),
        ("ROSELLM_DTYPE", "fp8", "ROSELLM_DTYPE must be one of"),
        ("ROSELLM_KV_CACHE_GB", "nan", "ROSELLM_KV_CACHE_GB must be at least 0"),
        ("ROSELLM_CORS_ORIGIN", "https://a,b", "ROSELLM_CORS_ORIGIN must be an origin"),
        ("ROSELLM_PORT", "http://10.0.0.1:80", "ROSELLM_PORT must be an integer"),
        ("ROSELLM_CONFIG", "/no/such.toml", "/no/such.toml: no such config file"),
    ],
)
def test_what_cannot_be_in_the_environment(name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        parse("", {name: text})
    assert "\n" not in str(caught.value)
    assert "sk-1" not in str(caught.value)


def test_variables_that_others_read_or_set() -> None:
    others = dict.fromkeys(OTHERS - {"ROSELLM_CONFIG"}, "x")
    kubernetes = {
        "ROSELLM_PORT": "tcp://10.0.0.1:80",
        "ROSELLM_PORT_80_TCP": "tcp://10.0.0.1:80",
        "ROSELLM_PORT_80_TCP_ADDR": "10.0.0.1",
        "ROSELLM_SERVICE_HOST": "10.0.0.1",
        "ROSELLM_SERVICE_PORT": "80",
        "ROSELLM_SERVICE_PORT_HTTP": "80",
    }
    assert settings(None, {**others, **kubernetes, "PATH": "/bin", "rosellm_x": "1"}) == {}


def test_the_variables_that_are_named_somewhere_are_the_known_ones() -> None:
    """Whoever begins to read another one adds it to the list."""
    sources = [*(ROOT / "rosellm").rglob("*.py"), ROOT / "hatch_build.py"]
    named = {
        name for path in sources for name in re.findall(r"\bROSELLM_[A-Z_]+\b", path.read_text())
    }
    named = {name for name in named if not name.endswith("_")} - {"ROSELLM_SERVICE_HOST"}
    assert named - set(map(variable, NAMES)) == OTHERS


def test_the_documents_example(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    (block,) = re.findall(r"<!-- file: rosellm.toml -->\n```toml\n(.*?)```", page, re.DOTALL)
    found = settings(write(tmp_path, block), {})
    assert found["max_model_len"] == 8192
    assert found["cors_origin"] == ("https://app.example",)


def test_a_start_with_a_bad_setting_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = write(tmp_path, "prot = 1")
    environment = {**os.environ, "ROSELLM_DTYPE": "fp8"}
    for command, env, says in (
        (["rosellm.cli", "serve", "--config", file], os.environ, f"error: {file}: there is no"),
        (["rosellm.roseinfer.server"], environment, "error: ROSELLM_DTYPE must be one of"),
    ):
        start = "import sys; from {} import main; sys.exit(main(sys.argv[1:]))"
        module = command[0] if command[0] == "rosellm.cli" else f"{command[0]}.__main__"
        done = subprocess.run(
            [sys.executable, "-c", start.format(module), *command[1:]],
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(says)
        assert done.stderr.count("\n") == 1

"""A hub id becomes a local folder, with all that is needed and nothing else, or a clear line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from rosellm.roseinfer import hub as room
from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.hub import hub_name, local_description, local_model, local_tokenizer
from rosellm.roseinfer.messages import Progress
from tests.hub.conftest import COMMIT, FakeHub, point_client_at


def distinct(*names: str) -> dict[str, bytes]:
    """Files of one line each; of equal ones the client would fetch only the first."""
    return {name: json.dumps({"name": name}).encode() for name in names}


DESCRIPTION = distinct(
    "config.json", "generation_config.json", "modules.json", "1_Pooling/config.json"
)
TOKENIZER = distinct(
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
WEIGHTS = {"model.safetensors": bytes(300_000)}
NEEDLESS = distinct(
    *("README.md", ".gitattributes", "tokenizer.model", "vocab.json", "onnx/config.json"),
    *("pytorch_model.bin", "model.gguf", "onnx/model.onnx", "2_Dense/model.safetensors"),
    *("consolidated.safetensors", "model.fp16.safetensors"),
    *("original/params.json", "original/tokenizer.model"),
)
SHARDS = {
    "model-00001-of-00002.safetensors": b"1" * 100,
    "model-00002-of-00002.safetensors": b"2" * 100,
    "model.safetensors.index.json": json.dumps(
        {
            "weight_map": {
                "a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
            }
        }
    ).encode(),
}


def files_in(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# -- names and paths -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "repo", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("org/name", "org/name", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("Org-1/na_me.2@refs/pr/3", "Org-1/na_me.2", "refs/pr/3"),
    ],
)
def test_hub_names(source: str, repo: str, revision: str | None) -> None:
    name = hub_name(source)
    assert name is not None
    assert (name.repo, name.revision) == (repo, revision)


@pytest.mark.parametrize(
    "source",
    [
        *("./x", "../x", "/x", "~/x", "~x", "x/", "a/b/c", "x.pt", "dir/x.pt", "cl100k.tiktoken"),
        *("x y", "org/name@", "@v1", "", "C:\\x", "org\\name", "tokenizer.json", "é/x"),
    ],
)
def test_what_can_only_be_a_path_never_reaches_the_hub(source: str) -> None:
    assert local_model(source) == source
    assert local_tokenizer(source) == source


def test_what_is_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local_model("org/name") == "org/name"
    assert hub_name("org/other") is not None


def test_a_path_imports_no_client() -> None:
    code = (
        "import sys; from rosellm.roseinfer.hub import local_model; local_model('./x')\n"
        "print([m for m in ('huggingface_hub', 'httpx', 'tqdm', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- downloads -------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [WEIGHTS, SHARDS, {**SHARDS, **WEIGHTS}])
def test_only_what_is_needed_comes(hub: FakeHub, weights: dict[str, bytes]) -> None:
    needed = DESCRIPTION | TOKENIZER | (SHARDS if weights.keys() >= SHARDS.keys() else weights)
    hub.files = weights | DESCRIPTION | TOKENIZER | NEEDLESS
    hub.files |= {} if weights is WEIGHTS else {"model-00003-of-00003.safetensors": b"stray"}
    folder = local_model("org/tiny")
    assert files_in(folder) == needed
    assert sorted(hub.got) == sorted(needed)
    assert Path(folder).name == COMMIT


def test_a_tokenizer_alone(hub: FakeHub) -> None:
    hub.files = WEIGHTS | DESCRIPTION | TOKENIZER | NEEDLESS
    assert files_in(local_tokenizer("org/tiny")) == TOKENIZER
    hub.files = {"qwen.tiktoken": b"IQ== 0\n", "tokenizer_config.json": b"{}", **WEIGHTS}
    assert set(hub.files) - set(files_in(local_tokenizer("org/tiny"))) == set(WEIGHTS)


def test_a_description_has_no_weights(hub: FakeHub) -> None:
    hub.files = WEIGHTS | DESCRIPTION | TOKENIZER | NEEDLESS
    assert files_in(local_description("org/tiny")) == DESCRIPTION | TOKENIZER
    hub.files = DESCRIPTION | TOKENIZER | {"model.gguf": b"x"}
    assert local_description("org/tiny")


def test_a_config_with_local_files(hub: FakeHub) -> None:
    hub.files = WEIGHTS | DESCRIPTION | TOKENIZER
    found = room.with_local_files(ModelConfig("org/tiny@v1", tokenizer="org/tiny"))
    assert found.model == found.tokenizer == local_model("org/tiny")
    assert room.with_local_files(ModelConfig("./x")) == ModelConfig("./x")


def test_nothing_is_downloaded_twice(hub: FakeHub) -> None:
    hub.files = WEIGHTS | DESCRIPTION | TOKENIZER
    first = local_tokenizer("org/tiny")
    before = list(hub.got)
    assert local_model("org/tiny") == first
    assert set(hub.got[len(before) :]) == {*WEIGHTS, *DESCRIPTION}
    count = len(hub.got)
    progress: list[Progress] = []
    assert local_model("org/tiny", progress.append) == first
    assert len(hub.got) == count
    assert [each.phase for each in progress] == ["asking the hub for org/tiny"]


def test_progress_counts_bytes_over_all_files(hub: FakeHub, capfd: Any) -> None:
    hub.files = {name: name[:11].encode() * 30_000 for name in SHARDS} | DESCRIPTION
    hub.files["model.safetensors.index.json"] = SHARDS["model.safetensors.index.json"]
    progress: list[Progress] = []
    local_model("org/tiny", progress.append)
    weights = [each for each in progress if each.phase == "downloading org/tiny, weights"]
    total = sum(len(hub.files[name]) for name in SHARDS if "-of-" in name)
    assert {each.total for each in weights} == {total}
    done = [each.done for each in weights]
    assert done == sorted(done)
    assert done[-1] == total
    assert capfd.readouterr() == ("", "")  # the client draws no bars of its own


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision(hub: FakeHub, revision: str) -> None:
    hub.files = WEIGHTS | DESCRIPTION
    folder = local_model(f"org/tiny@{revision}")
    assert Path(folder).name == COMMIT
    assert f"/api/models/org/tiny/revision/{revision}" in hub.asked


def test_a_model_of_no_use_is_refused_before_its_weights_come(hub: FakeHub) -> None:
    hub.files = WEIGHTS | DESCRIPTION | TOKENIZER | {"config.json": b'{"architectures": ["X"]}'}
    found = []

    def check(config: Mapping[str, Any]) -> None:
        found.append(config)
        raise ModelError("of no use")

    with pytest.raises(ModelError, match="of no use"):
        local_model("org/tiny", check=check)
    assert found == [{"architectures": ["X"]}]
    assert not set(hub.got) & set(WEIGHTS)


# -- without the network ---------------------------------------------------------------------


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    point_client_at("http://127.0.0.1:9", monkeypatch)


@pytest.mark.parametrize("away", [go_offline, cut_off])
@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_the_cache_serves_when_the_hub_does_not(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, away: Any, revision: str
) -> None:
    hub.files = SHARDS | DESCRIPTION | TOKENIZER
    folder = local_model(f"org/tiny{revision}")
    away(monkeypatch)
    count = len(hub.asked)
    assert local_model(f"org/tiny{revision}") == folder
    assert local_tokenizer(f"org/tiny{revision}") == folder
    assert local_description(f"org/tiny{revision}") == folder
    assert len(hub.asked) == count


def test_offline_with_half_of_it_or_nothing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = SHARDS | DESCRIPTION | TOKENIZER
    local_description("org/tiny")
    go_offline(monkeypatch)
    for source in ("org/tiny", "org/other", "org/tiny@v7"):
        with pytest.raises(ModelError, match="unset HF_HUB_OFFLINE") as caught:
            local_model(source)
        assert "\n" not in str(caught.value)
    assert local_description("org/tiny")


def test_the_clients_own_variables_count(hub_server: FakeHub, tmp_path: Path) -> None:
    """In a fresh process: the client reads its environment when it is imported."""
    hub_server.files = WEIGHTS | DESCRIPTION | TOKENIZER
    code = (
        "import sys; from rosellm.roseinfer.hub import local_model\nprint(local_model(sys.argv[1]))"
    )
    environment = {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path), "PATH": ""}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code, "org/tiny"],
            capture_output=True,
            text=True,
            env=environment | more,
            check=True,
        )
        assert done.stderr == ""
        folder = done.stdout.strip()
        assert folder.startswith(str(tmp_path))
        assert files_in(folder) == hub_server.files


# -- what goes wrong -------------------------------------------------------------------------


def failure(source: str = "org/tiny", lines: int = 1) -> str:
    with pytest.raises(ModelError) as caught:
        local_model(source)
    text = str(caught.value)
    assert len(text.splitlines()) == lines
    return text


@pytest.mark.parametrize("source", ["org/typo", "my-lama"])
def test_a_typo_is_read_both_ways(hub: FakeHub, source: str) -> None:
    text = failure(source)
    assert f"no folder '{source}' here" in text
    assert f"the hub has no model '{source}'" in text


def test_the_hub_answers_401_for_what_it_does_not_have(hub: FakeHub) -> None:
    hub.api_refusal = (401, {})
    assert "the hub has no model 'org/tiny'" in failure()


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    hub.files = WEIGHTS | DESCRIPTION
    hub.refusal = (status, {"X-Error-Code": "GatedRepo"})
    text = failure(lines=2)
    assert f"accept its licence at {hub.url}/org/tiny" in text
    assert "set HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    assert "the account of your token has no access" in failure()


def test_a_wrong_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.api_refusal = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    assert "refuses your token as wrong or expired: set HF_TOKEN" in failure()


def test_no_such_revision(hub: FakeHub) -> None:
    assert "org/tiny on the hub has no revision 'v7'" in failure("org/tiny@v7")


@pytest.mark.parametrize(
    ("status", "says"), [(403, "does not let you read"), (418, "answered 418"), (400, "400")]
)
def test_other_refusals(hub: FakeHub, status: int, says: str) -> None:
    hub.api_refusal = (status, {})
    assert says in failure()


def test_an_unreachable_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(monkeypatch)
    text = failure()
    assert "no folder 'org/tiny' here" in text
    assert "the hub at http://127.0.0.1:9 does not answer" in text
    assert "check the network" in text


def test_a_hub_that_fails_half_way(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = WEIGHTS | DESCRIPTION
    hub.refusal = (403, {})
    assert "does not let you read org/tiny" in failure()


@pytest.mark.parametrize("source", ["a--b/c", "x..y", "name."])
def test_what_no_hub_would_take(hub: FakeHub, source: str) -> None:
    assert "no hub id either" in failure(source)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": b"", "x.gguf": b""}, "its weights are .bin and .gguf files"),
        ({"consolidated.safetensors": b""}, "its weights are .safetensors files"),
        ({"README.md": b""}, "nor any other weights"),
    ],
)
def test_weights_in_other_forms(hub: FakeHub, files: dict[str, bytes], says: str) -> None:
    hub.files = DESCRIPTION | files
    assert says in failure()
    assert hub.got == []


@pytest.mark.parametrize("config", [b"{", b"[]"])
def test_a_damaged_config(hub: FakeHub, config: bytes) -> None:
    hub.files = WEIGHTS | {"config.json": config}
    assert "config.json: " in failure()


def test_what_is_no_model(hub: FakeHub) -> None:
    hub.files = WEIGHTS
    assert "has no config.json" in failure()
    with pytest.raises(ModelError, match="has no tokenizer"):
        local_tokenizer("org/tiny")


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": {"a": "../x"}}', b'{"a": 1}'])
def test_a_damaged_index(hub: FakeHub, index: bytes) -> None:
    hub.files = DESCRIPTION | {"model.safetensors.index.json": index}
    assert "model.safetensors.index.json: " in failure()


def test_an_index_of_files_that_are_not_there(hub: FakeHub) -> None:
    hub.files = DESCRIPTION | SHARDS
    del hub.files["model-00002-of-00002.safetensors"]
    assert "on the hub lacks model-00002-of-00002.safetensors, which its" in failure()


def test_a_disk_without_room(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = DESCRIPTION | WEIGHTS
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100))
    text = failure()
    assert "takes 0.00 GB more" in text
    assert "set HF_HOME to a folder on a larger disk" in text


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot write to the cache")]
)
def test_a_cache_that_cannot_be_written(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    hub.files = DESCRIPTION | WEIGHTS

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    text = failure()
    assert says in text
    assert str(constants.HF_HUB_CACHE) in text


# -- Ctrl-C ----------------------------------------------------------------------------------


@pytest.mark.alone
def test_an_interrupt_ends_a_download_at_once(hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files = WEIGHTS | DESCRIPTION | TOKENIZER
    reached, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        if "config.json" in hub_server.got:
            reached.set()
            go_on.wait(20)

    hub_server.pause = pause
    environment = os.environ | {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-X", "faulthandler", "-m", "rosellm.roseinfer.server"]
    command += ["org/tiny", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert reached.wait(20)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = _said_at_end(process)
        assert process.returncode == 0, said
        assert time.monotonic() - start < 3
        lines = said.splitlines()
        assert lines[0] == "asking the hub for org/tiny"
        assert all(line.startswith(("asking", "downloading")) for line in lines)
    finally:
        go_on.set()
        process.kill()
        process.communicate()


def _said_at_end(process: subprocess.Popen[str]) -> str:
    """What a process has written on stderr. One that does not end says where it stands."""
    try:
        return process.communicate(timeout=10)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return process.communicate(timeout=10)[1]

"""Every mistake that a newcomer makes: one or two lines that say what to do, and say it at once.

The commands run in this process. Where no engine is needed to see the mistake, none is started.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from rosellm import LLM, cli
from rosellm.commands.model_facts import choices, find
from rosellm.roseinfer import InferenceEngine, demo
from rosellm.roseinfer.engine import build
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.runner import memory
from rosellm.roseinfer.runner.plan import needs_of
from rosellm.roseinfer.server import __main__ as server
from rosellm.roseinfer.server import listen
from tests.hub import conftest as hubs
from tests.hub.conftest import FakeHub, point_client_at
from tests.tiny_models import engine_config, write_rose_gpt

Show = pytest.CaptureFixture[str]
Run = Callable[..., int]

hub_server, hub = hubs.hub_server, hubs.hub  # fixtures


def as_a_script(load: Callable[[], object]) -> int:
    """Load a model from Python, as a script that shows an error and ends."""
    try:
        load()
    except RosellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# All that take a model, by name: called with the model and more flags.
ENTRANCES: dict[str, Run] = {
    "serve": lambda model, *flags: cli.main(["serve", model, "--port", "0", *flags]),
    "module": lambda model, *flags: server.main([model, "--port", "0", *flags]),
    "generate": lambda model, *flags: cli.main(["generate", model, "Once", *flags]),
    "chat": lambda model, *flags: cli.main(["chat", model, *flags]),
    "inspect": lambda model, *flags: cli.main(["inspect", model, *flags]),
    "bench": lambda model, *flags: cli.main(["bench", "offline", model, *flags]),
    "LLM": lambda model: as_a_script(lambda: LLM(model)),
    "InferenceEngine": lambda model: as_a_script(lambda: InferenceEngine(model, device="cpu")),
}
LIBRARY = {"LLM", "InferenceEngine"}
COMMANDS = ENTRANCES.keys() - LIBRARY


def complaint(capsys: Show, code: int) -> str:
    """What a command that has ended with this code says is wrong."""
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert code == 2, shown
    assert shown.out == ""
    assert "Traceback" not in shown.err
    start = next(place for place, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - start <= 2, lines
    assert not any("rror" in line for line in lines[:start])  # progress
    return "\n".join(lines[start:])


def complaint_after(capsys: Show, code: int) -> str:
    """What stands before the complaint."""
    assert code == 2
    return capsys.readouterr().err.partition("\nerror: ")[0]


def check(capsys: Show, code: int, *says: str) -> None:
    said = complaint(capsys, code)
    for words in says:
        assert words in said


@pytest.fixture(autouse=True)
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a server does to its process; no folder of this place is taken for a model."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    gc.enable()
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)


class NoEngine:
    """In place of an engine's client."""

    def __init__(self, *_: Any) -> None:
        pass

    async def start(self, **listeners: Any) -> None:
        raise AssertionError("the engine was started for a mistake that can be seen without it")

    async def stop(self) -> None:
        pass


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the engine was built for a mistake that can be seen without it")

    monkeypatch.setattr("rosellm.roseinfer.engine.supervisor.Supervisor", NoEngine)
    monkeypatch.setattr("rosellm.roseinfer.llm.library.InprocClient", NoEngine)
    monkeypatch.setattr(build, "build_engine", refuse)


# -- flags -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("serv GOOD", ["'serv'", "choose from", "serve"]),
        ("serve --tokenizer GOOD", ["which model?", "has its own tokenizer"]),
        ("chat --tokenizer GOOD", ["which model?", "has its own tokenizer"]),
        ("inspect --tokenizer GOOD", ["which model?", "has its own tokenizer"]),
        ("serve GOOD --prt 80", ["--prt;", "did you mean --port?", "rosellm serve --help"]),
        ("generate GOOD a --temprature=1", ["--temprature;", "did you mean --temperature?"]),
        ("generate GOOD Once upon", ["'upon'", "quote"]),
        ("chat GOOD --sytem x", ["did you mean --system?", "rosellm chat --help"]),
        ("inspect GOOD --dtpye auto", ["did you mean --dtype?"]),
        ("bench offline GOOD --num-request 3", ["did you mean --num-requests?"]),
        ("bench serve --concurency 3", ["did you mean --concurrency?"]),
        ("serve GOOD --zzz 3", ["unknown flag --zzz (see rosellm serve --help)"]),
        ("serve GOOD --port abc", ["--port", "'abc'"]),
        ("serve GOOD --port 70000", ["--port", "at most 65535"]),
        ("serve GOOD --max-num-seqs 0", ["--max-num-seqs must be at least 1"]),
        ("serve GOOD --dtype int8", ["--dtype", "'int8'", "float32"]),
        ("generate GOOD a --max-model-len x", ["--max-model-len", "'x'"]),
        ("generate GOOD a --top-p 2", ["--top-p", "1", "not 2"]),
        ("bench offline GOOD --input-tokens x", ["--input-tokens"]),
        ("serve GOOD --bf16 --no-amp", ["--no-amp and --bf16 contradict", "pass one of them"]),
        ("serve GOOD --checkpoint-path a.pt", ["--checkpoint-path contradict"]),
        ("chat GOOD --url http://127.0.0.1:1", ["MODEL", "no place beside --url"]),
        ("chat GOOD --model x", ["--model", "--url"]),
        ("chat --url localhost:8000", ["--url", "http://127.0.0.1:8000"]),
        ("serve GOOD --port 0 --chat-template my.jinja", ["my.jinja", "no such file"]),
        ("chat GOOD --chat-template my.jinja", ["my.jinja", "no such file"]),
        ("inspect GOOD --chat-template my.jinja", ["my.jinja", "no such file"]),
        ("serve GOOD --tokenizer ./x", ["--tokenizer './x'", "no such folder or file"]),
        ("generate GOOD a --tokenizer ./x", ["--tokenizer './x'", "no such folder or file"]),
        ("inspect GOOD --tokenizer ./x", ["--tokenizer './x'", "no such folder or file"]),
        ("serve GOOD --api-key secret", ["flag --api-key;", "did you mean --api-key-file?"]),
        ("serve GOOD --api-key-file no.toml", ["no.toml: no such file of API keys"]),
        ("serve GOOD --config no.toml", ["no.toml: no such config file"]),
        ("serve GOOD --tls-cert no.pem", ["--tls-cert no.pem: No such file"]),
        ("serve GOOD --tls-key no.pem", ["--tls-key is of no use without --tls-cert"]),
        ("serve GOOD --cors-origin app", ["--cors-origin must be an origin such as", "'app'"]),
    ],
)
def test_a_bad_flag(capsys: Show, model_folder: Path, line: str, says: list[str]) -> None:
    check(capsys, cli.main(line.replace("GOOD", str(model_folder)).split()), *says)


@pytest.mark.usefixtures("no_engine")
def test_keys_that_everybody_can_read(capfd: Show, tmp_path: Path) -> None:
    """A warning, which stands before what ends this start."""
    keys = tmp_path / "keys.toml"
    keys.write_text('[keys.alice]\nkey = "a-secret"')
    keys.chmod(0o644)
    line = ["serve", "--api-key-file", str(keys), "--tls-key", "x"]
    said = complaint_after(capfd, cli.main(line))
    assert said == f"warning: {keys}: other users of this machine can read or change it (chmod 600)"


@pytest.mark.usefixtures("no_engine")
def test_an_installation_without_the_demo_model(
    capsys: Show, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "_FOLDER", tmp_path)
    (tmp_path / "config.json").write_text("{}")  # and no weights
    says = ["which model? pass a folder, a checkpoint or a hub id", "carries no demo model"]
    for line in ("serve", "chat", "generate", "inspect", "bench offline", "inspect rosellm-demo"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once")))
        check(capsys, cli.main(line.split()), *says)
    check(capsys, server.main([]), *says)
    check(capsys, as_a_script(LLM), *says)


# -- models ----------------------------------------------------------------------------------

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"


def in_shards(folder: Path) -> None:
    """Say that there are two files of weights, of which only one is there."""
    files = [f"model-0000{place}-of-00002.safetensors" for place in (1, 2)]
    (folder / "model.safetensors").rename(folder / files[0])
    index = {"weight_map": {"a": files[0], "b": files[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def only(folder: Path, name: str) -> None:
    """Empty the folder but for one file."""
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"GGUF\3\0\0\0")


def in_snapshot(folder: Path) -> None:
    """Make it look as a model does in the hub's cache."""
    inner = folder / "snapshots" / "0123"
    shutil.copytree(folder, folder.parent / "inner")
    shutil.rmtree(folder)
    inner.parent.mkdir(parents=True)
    (folder.parent / "inner").rename(inner)


# What is wrong with a folder, who does not mind it, and what the others say of it.
Damage = tuple[Callable[[Path], object], set[str], list[str]]
DAMAGES: dict[str, Damage] = {
    "missing": (shutil.rmtree, set(), ["no such folder or file", "hub id", "org/name"]),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        set(),
        ["config.json: no such file", "safetensors and a tokenizer"],
    ),
    "one folder too high": (in_snapshot, set(), ["config.json: no such file", "snapshots/0123?"]),
    "config of text": (
        lambda folder: (folder / "config.json").write_text("{nope"),
        set(),
        ["config.json: not readable as JSON", "line 1"],
    ),
    "unknown architecture": (
        lambda folder: change_config(folder, architectures=["MambaLM"]),
        {"inspect"},
        ["'MambaLM'", "supported families", "llama", "rosellm models"],
    ),
    "no architecture": (
        lambda folder: change_config(folder, architectures=None),
        set(),
        ["config.json: no architectures", "whole model?"],
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        {"inspect"},
        ["no model.safetensors", "look for the same model with safetensors"],
    ),
    "weights of pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        {"inspect"},
        ["no model.safetensors", ".bin", "look for the same model with safetensors"],
    ),
    "GGUF": (
        lambda folder: only(folder, "model.gguf"),
        set(),
        ["GGUF files cannot be read", "safetensors"],
    ),
    "missing shard": (
        in_shards,
        {"inspect"},
        ["model-00002-of-00002.safetensors", "missing", "download it"],
    ),
    "cut short": (
        lambda folder: cut(folder / "model.safetensors"),
        set(),
        ["model.safetensors", "not a readable safetensors file", "download it again"],
    ),
    "clone without LFS": (
        lambda folder: (folder / "model.safetensors").write_text(LFS),
        set(),
        ["model.safetensors", "git lfs pull"],
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        {"inspect", "bench"},
        ["no tokenizer in", "expected tokenizer.json"],
    ),
    "damaged tokenizer": (
        lambda folder: cut(folder / "tokenizer.json"),
        {"bench"},
        ["tokenizer.json", "not a readable"],
    ),
    "damaged template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for a in b %}"),
        {"bench"},
        ["chat template", "not valid Jinja", "line 1"],
    ),
}


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "parent" / "my-llama"))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_folder(capsys: Show, folder: Path, name: str) -> None:
    damage, spared, says = DAMAGES[name]
    damage(folder)
    for entrance in ENTRANCES.keys() - spared:
        check(capsys, ENTRANCES[entrance](str(folder)), *says)


@pytest.mark.usefixtures("no_engine")
def test_a_bad_file(capsys: Show, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    (tmp_path / "bad.pt").write_bytes(b"\x80 no checkpoint")
    write_rose_gpt(tmp_path / "good.pt")
    cut(write_rose_gpt(tmp_path / "cut.pt"))
    for run in ENTRANCES.values():
        check(capsys, run("my.gguf"), "my.gguf", "GGUF files cannot be read", "safetensors")
        file = folder / "model.safetensors"
        check(capsys, run(str(file)), "model.safetensors", "pass the folder that it is in")
    for entrance in ENTRANCES.keys() - {"inspect", "bench"}:
        flag = "tokenizer=" if entrance in LIBRARY else "--tokenizer"
        check(capsys, ENTRANCES[entrance]("good.pt"), "holds no tokenizer", f"pass {flag}, a")
    for entrance in COMMANDS - {"bench"}:
        for name in ("bad.pt", "cut.pt"):
            code = ENTRANCES[entrance](name, "--tokenizer", str(folder))
            check(capsys, code, name, "not a readable torch checkpoint", "copy it again")


def test_none_of_this_waits_for_torch(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """In a fresh process, since this one has imported it."""
    lines = []
    for name in DAMAGES.keys() - {"one folder too high"}:
        damage, spared, _ = DAMAGES[name]
        broken = Path(shutil.copytree(model_folder, tmp_path / name))
        damage(broken)
        lines += [["generate", str(broken), "a"], ["chat", str(broken)]]
        lines += [["bench", "offline", str(broken)]] * ("bench" not in spared)
    program = (
        "import json, sys; from rosellm import cli\n"
        "for line in json.load(sys.stdin): assert cli.main(line) == 2, line\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(lines), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(lines)


# -- the hub ---------------------------------------------------------------------------------


def everywhere(capsys: Show, source: str, *says: str) -> None:
    for run in ENTRANCES.values():
        check(capsys, run(source), *says)


@pytest.mark.usefixtures("no_engine")
class TestHub:
    def test_no_such_model(self, capsys: Show, hub: FakeHub) -> None:
        everywhere(
            capsys, "org/typo", "no folder 'org/typo' here", "the hub has no model", "HF_TOKEN"
        )

    def test_no_such_revision(self, capsys: Show, hub: FakeHub) -> None:
        everywhere(capsys, "org/tiny@v9", "org/tiny", "no revision 'v9'", "branch")

    def test_gated(self, capsys: Show, hub: FakeHub, model_folder: Path) -> None:
        hub.add_folder(model_folder)
        hub.refusal = (403, {"X-Error-Code": "GatedRepo"})
        everywhere(capsys, "org/tiny", "org/tiny is gated", "accept its licence", "HF_TOKEN")

    def test_out_of_reach(
        self, capsys: Show, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with closed_port() as port:
            point_client_at(f"http://127.0.0.1:{port}", monkeypatch)
            everywhere(capsys, "org/tiny", f"127.0.0.1:{port} does not answer", "local folder")

    def test_offline(self, capsys: Show, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        everywhere(capsys, "org/tiny", "'org/tiny' is in the cache", "unset HF_HUB_OFFLINE")

    def test_wrong_architecture(self, capsys: Show, hub: FakeHub, model_folder: Path) -> None:
        hub.add_folder(model_folder)
        hub.files["config.json"] = b'{"architectures": ["MambaLM"]}'
        for entrance in ENTRANCES.keys() - {"inspect"}:
            check(capsys, ENTRANCES[entrance]("org/tiny"), "'MambaLM'", "rosellm models")
        assert "model.safetensors" not in hub.got


# -- memory and devices ----------------------------------------------------------------------


def in_process(capsys: Show, model: Path, *flags: str, says: list[str]) -> None:
    """Run the commands that have their engine in this process."""
    for entrance in ("generate", "chat", "bench"):
        check(capsys, ENTRANCES[entrance](str(model), *flags), *says)


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights may take minutes to load: what can be said before is said before."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded for a mistake that can be seen before")

    monkeypatch.setattr(build, "fill", refuse)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-model-len=4000"], ["--max-model-len 4000", "made for 512 positions", "no more"]),
        (
            ["--kv-cache-gb=0.0001"],
            ["512 tokens", "would fit", "smaller --max-model-len", "larger"],
        ),
        (["--kv-cache-gb=1e-7"], ["512 tokens", "use a larger --kv-cache-gb"]),
        (["--kv-cache-gb=1e6"], ["--kv-cache-gb", "GiB are free", "pass less"]),
    ],
)
def test_more_than_fits(capsys: Show, model_folder: Path, flags: list[str], says: Any) -> None:
    flags = [*flags, "--max-model-len=512"] if "len" not in flags[0] else flags
    in_process(capsys, model_folder, "--device=cpu", *flags, says=says)


@pytest.mark.usefixtures("no_loading")
def test_weights_larger_than_the_memory(
    capsys: Show, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda _: 100_000)
    says = ["the weights take", "are free on cpu", "use a smaller model"]
    in_process(capsys, model_folder, "--device=cpu", says=says)
    needs = needs_of(choices(engine_config(model_folder), find(str(model_folder))))
    monkeypatch.setattr(memory, "available", lambda _: needs.serving + 60_000)
    code = ENTRANCES["generate"](str(model_folder), "--device=cpu", "--max-model-len=512")
    check(capsys, code, "512 tokens", "of KV cache", "would fit")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(capsys: Show, model_folder: Path) -> None:
    says = ["--device cuda", "no CUDA device", "use --device cpu"]
    in_process(capsys, model_folder, "--device=cuda", says=says)
    check(capsys, as_a_script(lambda: InferenceEngine(model_folder, device="cuda")), *says)


def test_what_the_engine_process_finds(capsys: Show, model_folder: Path) -> None:
    code = ENTRANCES["serve"](str(model_folder), "--max-model-len", "4000")
    check(capsys, code, "--max-model-len 4000", "made for 512 positions")


# -- addresses -------------------------------------------------------------------------------


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else takes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[int]:
    """The port of a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("answer", "by"),
    [
        (b'{"status": "ok", "model": "my-llama", "engine": {}}', " by rosellm, serving my-llama;"),
        (b"<html>", ";"),
        (b"[]", ";"),
        (b"null", ";"),
    ],
)
def test_a_port_that_is_taken(capsys: Show, model_folder: Path, answer: bytes, by: str) -> None:
    says = f"it is already in use{by} pass another --port"
    with web_server(200, answer) as port:
        for main in (lambda argv: cli.main(["serve", *argv]), server.main):
            code = main([str(model_folder), "--port", str(port)])
            check(capsys, code, f"127.0.0.1:{port}", says)


@pytest.mark.usefixtures("no_engine")
def test_a_port_that_is_taken_by_something_silent(
    capsys: Show, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "_ASK_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code = cli.main(["serve", str(model_folder), "--port", port])
        check(capsys, code, f"127.0.0.1:{port}", "already in use; pass another --port")


@pytest.mark.usefixtures("no_engine")
def test_a_port_or_host_that_cannot_be_had(
    capsys: Show, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(model_folder)
    code = cli.main(["serve", model, "--host", "no.such.host.invalid", "--insecure"])
    check(capsys, code, "cannot listen on 'no.such.host.invalid'")
    code = cli.main(["serve", model, "--host", "192.0.2.1", "--insecure"])
    check(capsys, code, "this machine has no such address", "--host")

    class Guarded(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Guarded)
    code = cli.main(["serve", model, "--port", "80"])
    check(capsys, code, "127.0.0.1:80", "more rights", "--port above 1023")


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"", ["404", "check --url and --model"]),
        (200, b"<html>a page</html>", ["not a list of models", "is --url right?"]),
        (401, b'{"error": {"message": "who?"}}', ["401", "who?", "ROSELLM_API_KEY"]),
    ],
)
def test_a_wrong_server(capsys: Show, status: int, body: bytes, says: list[str]) -> None:
    with web_server(status, body) as port:
        code = cli.main(["chat", "--url", f"http://127.0.0.1:{port}"])
        check(capsys, code, f"127.0.0.1:{port}", *says)
        code = cli.main(["bench", "serve", "--base-url", f"http://127.0.0.1:{port}"])
        check(capsys, code, f"127.0.0.1:{port}", "--base-url right?")


def test_a_server_that_does_not_run(capsys: Show) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        for flag, command in (("--url", ["chat"]), ("--base-url", ["bench", "serve"])):
            code = cli.main([*command, flag, url])
            check(capsys, code, f"127.0.0.1:{port}", "is the server running")

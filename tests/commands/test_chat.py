"""``rosellm chat`` as a person and as a script use it: on a terminal, and between pipes."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from rosellm import cli
from tests.bench.fake_server import FakeServer, running
from tests.commands.terminal import ROSELLM, Terminal, terminal
from tests.e2e.conftest import Server, write_tokenizer
from tests.models.encoders import BERT, write_bert

CHAT = (*ROSELLM, "chat")
PASTE = "\x1b[200~{}\x1b[201~"


def sent(fake: FakeServer) -> list[str]:
    """The conversations that a server was asked to go on with, as role and content."""
    return [
        " ".join(f"{each['role'][0]}:{each['content']}" for each in request["messages"])
        for request in fake.requests
    ]


def say(chat: Terminal, line: str, answer: str) -> None:
    chat.type(line + "\n")
    chat.expect(answer)
    chat.expect("> ")


def test_a_conversation_on_a_terminal() -> None:
    with (
        running(FakeServer()) as fake,
        terminal(*CHAT, "--url", fake.url, "--max-tokens", "2", "--system", "Rhyme.") as chat,
    ):
        chat.expect(f"fake at {fake.url}/v1 · /help for help")
        chat.expect("> ")
        say(chat, "one", " t0 t1\n")
        say(chat, "/system Be brief.", "system prompt: Be brief.")
        say(chat, "two\\\nlines", " t0 t1\n")
        say(chat, "/reset", "a new conversation")
        say(chat, '"""\nthree\nlines"""', " t0 t1\n")
        say(chat, PASTE.format("pasted\nlines"), " t0 t1\n")
        say(chat, "/oops", "/help shows")
        chat.press_ctrl_c_at_the_prompt("/exit or Ctrl-D leaves")
        chat.expect("> ")
        chat.press_ctrl("D")
        assert chat.end() == 0
    assert sent(fake) == [
        "s:Rhyme. u:one",
        "s:Be brief. u:one a: t0 t1 u:two\nlines",
        "s:Be brief. u:three\nlines",
        "s:Be brief. u:three\nlines a: t0 t1 u:pasted\nlines",
    ]
    assert "Traceback" not in chat.text


def test_history_outlives_a_session(home: Path) -> None:
    with running(FakeServer()) as fake:
        for keys in ("first\n", "\x1b[A\n"):  # the second time, only the up arrow
            with terminal(*CHAT, "--url", fake.url, "--max-tokens", "2") as chat:
                chat.expect("> ")
                chat.type(keys)
                chat.expect(" t0 t1\n")
                chat.expect("> ")
                chat.type("/exit\n" if keys != "first\n" else "\x04")
                assert chat.end() == 0
    assert sent(fake) == ["u:first", "u:first"]
    history = home / "rosellm" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_the_answer_only() -> None:
    with (
        running(FakeServer(gap_s=0.02)) as fake,
        terminal(*CHAT, "--url", fake.url, "--max-tokens", "1000") as chat,
    ):
        chat.expect("> ")
        chat.type("count\n")
        chat.expect(" t3")
        chat.press_ctrl("C")
        chat.expect(r"\(stopped\)")
        chat.expect("> ")
        shown = chat.text.partition(" t0")[2].partition("^C")[0].split()
        chat.type("go on\n")
        chat.expect(" t2")
        chat.press_ctrl("C")
        chat.expect("> ")
        chat.press_ctrl("D")
        assert chat.end() == 0
    assert shown[:3] == ["t1", "t2", "t3"]
    assert sent(fake)[1].startswith("u:count a: t0 t1 t2 t3")
    assert sent(fake)[1].endswith(f"{shown[-1]} u:go on")


def piped(*args: str, text: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAT, *args], input=text, capture_output=True, text=True, timeout=60, **more
    )


def test_a_script(home: Path) -> None:
    with running(FakeServer()) as fake:
        script = "one\n/system Be brief.\ntwo\\\nlines\n"
        done = piped("--url", fake.url, "--max-tokens", "2", "--seed", "3", text=script)
        assert (done.returncode, done.stdout) == (0, " t0 t1\n t0 t1\n")
        assert sent(fake) == ["u:one", "s:Be brief. u:one a: t0 t1 u:two\nlines"]
        assert [request["seed"] for request in fake.requests] == [3, 3]
        fake.fail[3] = "broken"
        done = piped("--url", fake.url, "--max-tokens", "2", text="one\ntwo\n")
    assert (done.returncode, done.stdout) == (2, " t0\n")
    assert "broke off" in done.stderr.splitlines()[-1]
    assert len(fake.requests) == 3
    assert list(home.iterdir()) == []


def test_what_cannot_be_done_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; scripts that end so are above and below."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for args, says in (
            (["--url", dead], "is the server running?"),
            (["--url", "nowhere"], "--url"),
            (["--url", dead, "some-model"], "MODEL"),
            (["--url", dead, "--dtype", "float32"], "--dtype"),
            (["--url", dead, "--top-p", "3"], "--top-p must be less than or equal to 1, not 3"),
            (["--model", "gpt"], "--url"),
            (["--tokenizer", "./x"], "which model?"),
        ):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
            assert cli.main(["chat", *args]) == 2
            shown = capsys.readouterr()
            assert shown.out == ""
            (line,) = shown.err.splitlines()
            assert line.startswith("error: ")
            assert says in line


def test_an_encoder_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = write_tokenizer(tmp_path / "tokenizer.json")
    folder = write_bert(tmp_path / "encoder", {**BERT, "vocab_size": size})
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["chat", str(folder)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: 'encoder' is an embedding model" in shown.err


def test_a_model_of_ones_own(model_folder: Path) -> None:
    with terminal(*CHAT, str(model_folder), "--ignore-eos", "--system", "Rhyme.") as chat:
        chat.expect("tiny-llama: float32 on .*, context of 8192 tokens · /help for help")
        for question in ("one", "two"):
            chat.expect("> ")
            chat.type(f"{question}\n")
            chat.expect(rf"{question}\n(.|\n){{20}}")
            chat.press_ctrl("C")
            chat.expect(r"\(stopped\)")
        chat.expect("> ")
        chat.press_ctrl("D")
        assert chat.end() == 0
    assert "Traceback" not in chat.text


def test_against_our_own_server(server: Server) -> None:
    fields = {"max_tokens": 9, "seed": 5}
    messages = [{"role": "user", "content": "one"}]
    body = {"model": server.model, "messages": messages, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    flags = ("--url", server.url, "--max-tokens", "9", "--seed", "5")
    done = piped(*flags, text="one\n")
    assert (done.returncode, done.stdout) == (
        0,
        answer["choices"][0]["message"]["content"] + "\n",
    )
    assert "(cut short" in done.stderr

    done = piped("--url", server.url, text="rose " * 20_000)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the context holds 8192 tokens" in done.stderr.splitlines()[-1]


def test_ctrl_c_in_a_script_frees_the_server(server: Server) -> None:
    with subprocess.Popen(
        [*CHAT, "--url", server.url, "--ignore-eos"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        script.stdin.write(b"one\n")
        script.stdin.flush()
        script.stdout.read(20)
        script.send_signal(signal.SIGINT)
        script.stdin.close()
        assert script.wait(10) == 130
    assert server.wait_until_idle(2.0)["running"] == 0

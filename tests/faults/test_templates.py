"""A server whose model brought a hostile chat template answers everybody else as ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Server, start_server
from tests.faults.neighbours import undisturbed

BOMBS = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "large": "{{ 'a' * 10000000000 }}",
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "curious": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reading": "{% include '/etc/passwd' %}",
    "late": "{% for i in range(9) %}{{ messages[i].content }}{{ [][7].x }}{% endfor %}",
}
TEMPLATE = "".join(
    f"{{% if messages[0].content == '{name}' %}}{source}{{% endif %}}"
    for name, source in BOMBS.items()
)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def hostile(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("hostile") / "template.jinja"
    template.write_text(TEMPLATE + "{% for m in messages %}{{ m.content }}{% endfor %}")
    running = start_server(str(model_folder), f"--chat-template={template}", model="tiny-llama")
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize("path", [CHAT, f"{CHAT}/render", "/tokenize"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_one_refusal_and_nothing_else(hostile: Server, path: str, bomb: str) -> None:
    """On every route that renders; while it does, the event loop answers others."""
    body = {
        "model": "tiny-llama",
        "messages": [{"role": "user", "content": bomb}],
    }
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(hostile.url + path, json=body, timeout=30))

    asking = threading.Thread(target=ask)
    asking.start()
    slowest = 0.0
    while asking.is_alive():
        begun = time.monotonic()
        assert httpx.get(f"{hostile.url}/livez", timeout=10).status_code == 200
        slowest = max(slowest, time.monotonic() - begun)
    asking.join()
    [answer] = answers
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("chat template: ")
    assert "<class" not in answer.text
    assert slowest < 0.9  # less than the second that a template may take, even on a busy machine


def test_neighbours_are_not_disturbed(hostile: Server) -> None:
    with undisturbed(hostile):
        test_one_refusal_and_nothing_else(hostile, CHAT, "endless")
        test_one_refusal_and_nothing_else(hostile, CHAT, "large")

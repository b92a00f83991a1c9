"""Two clients beside a fault, who must not notice it.

One takes the likeliest token each time, the other samples with a seed. They stream while the fault
happens, and their token ids must be those of a run in which nothing happened.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx

from tests.e2e.conftest import Server

# Making a client takes long, so there is one; a connection that the server has closed meanwhile
# would be a fault of its own, so none is used twice.
CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "Once upon a time", "temperature": 0.0},
    "seeded": {"prompt": "A rose is a", "temperature": 1.0, "seed": 1234},
}


@contextmanager
def undisturbed(server: Server, *, tokens: int = 24, again: bool = True) -> Iterator[None]:
    """Around a fault: who is served beside it gets the same tokens, and it leaves nothing behind.

    What other tests have left is kept out of garbage collections: one of all of it takes a second,
    for which these clients too stand still, and a server of short patience hangs up on one that
    has connected and not asked yet.

    Args:
        tokens: of a neighbour's answer.
        again: whether the neighbours ask anew as long as the fault lasts.
    """
    expected = {kind: alone(server.url, kind, tokens) for kind in KINDS}
    clients = [_Neighbour(server.url, kind, tokens, again) for kind in KINDS]
    gc.freeze()
    for client in clients:
        client.start()
    try:
        for client in clients:
            client.begun.wait(30)
        yield
    finally:
        for client in clients:
            client.enough.set()
        for client in clients:
            client.join(120)
        gc.unfreeze()
    for client in clients:
        assert client.error is None, f"{client.kind}: {client.error!r}"
        assert client.answers, f"{client.kind}: no answer"
        assert all(answer == expected[client.kind] for answer in client.answers), client.kind
    health = server.wait_until_idle()
    assert health["blocks_free"] + health["blocks_cached"] == health["blocks_total"]
    assert CLIENT.get(f"{server.url}/readyz").status_code == 200


@cache
def alone(url: str, kind: str, tokens: int) -> list[int]:
    """What a neighbour gets while nobody else is served."""
    answer = [id for ids in stream(url, kind, tokens) for id in ids]
    assert len(answer) == tokens
    return answer


def stream(url: str, kind: str, tokens: int) -> Iterator[list[int]]:
    """A neighbour's token ids as they come."""
    body = {
        **KINDS[kind],
        "model": "tiny-llama",
        "max_tokens": tokens,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }
    with CLIENT.stream("POST", f"{url}/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise AssertionError(answer.read())
        whole = False
        for line in lines(answer):
            data = line.removeprefix("data: ")
            whole = whole or data == "[DONE]"
            if data and data != "[DONE]":
                yield from (choice["token_ids"] for choice in json.loads(data)["choices"])
        assert whole


def lines(answer: httpx.Response) -> Iterator[str]:
    """Lines of a stream. httpx's own also end at characters that a text may hold."""
    rest = ""
    for piece in answer.iter_text():
        *whole, rest = (rest + piece).split("\n")
        yield from whole


class _Neighbour(threading.Thread):
    """Asks, and asks again, until it is told that it is enough."""

    def __init__(self, url: str, kind: str, tokens: int, again: bool) -> None:
        super().__init__(name=kind, daemon=True)
        self.kind = kind
        self.begun, self.enough = threading.Event(), threading.Event()
        self.answers: list[list[int]] = []
        self.error: BaseException | None = None
        self._url, self._tokens, self._again = url, tokens, again

    def run(self) -> None:
        try:
            while not self.answers or (self._again and not self.enough.is_set()):
                self.answers.append(self._ask())
        except BaseException as error:
            self.error = error
        finally:
            self.begun.set()

    def _ask(self) -> list[int]:
        answer: list[int] = []
        for ids in stream(self._url, self.kind, self._tokens):
            answer += ids
            self.begun.set()
        return answer

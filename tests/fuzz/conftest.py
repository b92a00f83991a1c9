"""A small real model in this process behind the server's own application, and what it must keep to.

How many requests are tried is ``FUZZ_CASES`` in the environment, and which ones ``FUZZ_SEED``
(`make fuzz`); by default few, and always the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from rosellm import LLM
from rosellm.roseinfer.server import create_app
from tests.e2e.conftest import write_tokenizer
from tests.faults.conftest import TEMPLATE
from tests.library.conftest import idle
from tests.tiny_models import write_llama

CASES = int(os.environ.get("FUZZ_CASES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
BATCH = 1000
"""Cases that one run of Hypothesis tries: it remembers each, and a million take gigabytes."""

CONTEXT = 64  # so that an answer is soon at its end
PROBE = {"model": "tiny", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}
PLANNED = {503: "queue_full", 504: "timeout"}


@dataclass
class Target:
    """The application, and how to ask it."""

    app: Any
    llm: LLM
    runner: asyncio.Runner
    client: httpx.AsyncClient

    def send(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        return self.runner.run(self.client.request(method, path, content=content))

    def probe(self) -> str:
        """What a request of which nothing is wrong is answered."""
        answer = self.runner.run(self.client.post("/v1/completions", json=PROBE))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz") / "tiny"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    write_llama(
        folder, vocab_size=size, max_position_embeddings=512, bos_token_id=0, eos_token_id=0
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with (
        LLM(
            folder, device="cpu", max_model_len=CONTEXT, max_num_seqs=16, tool_parser="hermes"
        ) as llm,
        asyncio.Runner() as runner,
    ):
        app = create_app(llm)
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://fuzz", timeout=60
        )
        yield Target(app, llm, runner, client)
        runner.run(client.aclose())


@pytest.fixture(autouse=True)
def _as_before(target: Target) -> Iterator[None]:
    """Whatever was sent: the engine lives, holds nothing, and answers what it answered before."""
    before = target.probe()
    yield
    idle(target.llm)
    assert target.probe() == before


def check(answer: httpx.Response) -> None:
    """An answer, or a refusal in the one shape; nothing that a server should not say."""
    status = answer.status_code
    assert answer.headers["x-request-id"]
    if status < 400:
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-500:]
        return
    if answer.request.method == "HEAD":
        return
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert status < 500 or PLANNED.get(status) == error["code"], error
    assert error["message"].isprintable() or status == 400, error


def try_many(
    strategy: SearchStrategy[Any], attempt: Callable[[Any], None], few: int, share: float = 1.0
) -> None:
    """Attempt what the strategy makes: ``few`` cases, or this share of as many as are asked for."""
    cases, done = round(CASES * share) or few, 0
    while done < cases:
        seed, now = SEED + done, min(BATCH, cases - done)
        settings = hypothesis.settings(
            max_examples=now,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        hypothesis.seed(seed)(settings(hypothesis.given(strategy)(attempt)))()
        done += now
        if CASES:
            print(f"{done} of {cases} cases, the last from seed {seed}", flush=True)

"""The seed's own names, and a library's model served over HTTP by whatever runs the application."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from rosellm import LLM, SamplingParams
from rosellm.roseinfer import InferenceEngine
from rosellm.roseinfer.errors import ConfigError, RequestError
from rosellm.roseinfer.server import create_app
from tests.library.conftest import idle
from tests.tiny_models import write_rose_gpt

PROMPT = "Once upon a time"
ENDLESS = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[InferenceEngine]:
    """A rosetrainer checkpoint with the tokenizer of another model."""
    checkpoint = write_rose_gpt(folder.parent / "rose.pt", vocab_size=400)
    with InferenceEngine(checkpoint, str(folder), device="cpu") as engine:
        yield engine


@contextmanager
def serving(served: Any) -> Iterator[str]:
    """A real server on an event loop of its own; gives its address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(served), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join()


# -- the seed's names --------------------------------------------------------------------------


def test_an_engine_continues_a_prompt(engine: InferenceEngine) -> None:
    text = engine.generate(PROMPT, max_new_tokens=8)
    assert text
    assert not text.startswith(PROMPT)
    assert engine.generate(PROMPT, max_new_tokens=8, temperature=0.5) == text, "it is greedy"
    assert "".join(engine.stream_generate(PROMPT, max_new_tokens=8)) == text
    sampled = {engine.generate(PROMPT, 8, 1.5, 50, 0.9, True, do_sample=True) for _ in range(5)}
    assert len(sampled) > 1


def test_an_engine_may_end_at_eos_or_not(engine: InferenceEngine) -> None:
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    assert (
        engine.generate(PROMPT, 20, stop_on_eos=False) == engine.llm.generate(PROMPT, params).text
    )


@pytest.mark.parametrize(
    ("use_amp", "bf16", "dtype"),
    [(False, False, "float32"), (False, True, "float32"), (True, True, "bfloat16")],
)
def test_an_engine_computes_as_it_is_told(
    folder: Path, use_amp: bool, bf16: bool, dtype: str
) -> None:
    with InferenceEngine(folder, device="cpu", use_amp=use_amp, bf16=bf16) as engine:
        assert engine.service.ready.dtype == dtype


def test_an_engine_says_what_is_wrong(folder: Path, engine: InferenceEngine) -> None:
    with pytest.raises(ConfigError, match="device must be one of auto, cpu, cuda, not 'mars'"):
        InferenceEngine(folder, device="mars")
    with pytest.raises(RequestError, match="temperature"):
        engine.generate(PROMPT, temperature=5, do_sample=True)


# -- served ------------------------------------------------------------------------------------


def test_a_test_client_reaches_every_route(engine: InferenceEngine) -> None:
    text = engine.generate(PROMPT, 8)
    with TestClient(create_app(engine)) as client:
        body = {"prompt": PROMPT, "max_new_tokens": 8, "do_sample": False}
        assert client.post("/generate", json=body).json() == {"text": text}
        assert client.post("/generate", json={**body, "stream": True}).text == text
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/v1/models").json()["data"][0]["id"] == "rose"
        assert client.get("/nowhere").status_code == 404
        bad = client.post("/v1/completions", json={"model": "rose", "prompt": PROMPT, "n": 0})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "n")
        assert "x-request-id" in bad.headers
    assert TestClient(create_app(engine)).get("/health").status_code == 200
    assert engine.generate(PROMPT, 8) == text


def test_a_key_is_asked_for(llm: LLM) -> None:
    client = TestClient(create_app(llm, "secret"))
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_http_and_library_answer_alike_in_bits(llm: LLM) -> None:
    params = {"max_tokens": 10, "seed": 5, "n": 3, "top_p": 0.9, "logprobs": 2}
    expected = llm.generate(PROMPT, SamplingParams(**params))  # type: ignore[arg-type]
    body = {"model": "tiny-llama", "prompt": PROMPT, **params}
    with serving(llm) as url:
        answer = httpx.post(f"{url}/v1/completions", json=body).json()
        chat = httpx.post(
            f"{url}/v1/chat/completions",
            json={
                "model": "tiny-llama",
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 5,
                "seed": 2,
            },
        ).json()
    for choice, other in zip(expected.choices, answer["choices"], strict=True):
        assert choice.logprobs is not None
        assert choice.text == other["text"]
        assert [each.logprob for each in choice.logprobs] == other["logprobs"]["token_logprobs"]
    own = llm.chat([{"role": "user", "content": "hello"}], SamplingParams(max_tokens=5, seed=2))
    assert chat["choices"][0]["message"]["content"] == own.text


def test_an_llm_works_while_it_is_served(llm: LLM) -> None:
    params = SamplingParams(max_tokens=10, temperature=0)
    expected = llm.generate(PROMPT, params)
    body = {"model": "tiny-llama", "prompt": PROMPT, "max_tokens": 10, "temperature": 0}

    with serving(llm) as url:

        def ask(index: int) -> str:
            if index % 2:
                return llm.generate(PROMPT, params).text
            with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
                text: str = httpx.Response(200, content=response.read()).json()["choices"][0][
                    "text"
                ]
                return text

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(32))) == {expected.text}
    assert llm.generate(PROMPT, params).choices == expected.choices


def test_two_servers_may_serve_one_llm(llm: LLM) -> None:
    with serving(llm) as one, serving(llm) as other:
        names = [httpx.get(f"{url}/v1/models").json()["data"][0]["id"] for url in (one, other)]
    assert names == ["tiny-llama"] * 2


def test_a_client_that_leaves_frees_its_blocks(llm: LLM) -> None:
    body = {"model": "tiny-llama", "prompt": PROMPT, "stream": True, **ENDLESS}
    with serving(llm) as url, httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        response.close()
        steps = idle(llm).steps
        assert idle(llm).blocks_used == 0
        assert idle(llm).steps == steps


def test_a_closed_llm_is_a_503(folder: Path) -> None:
    with LLM(folder, device="cpu") as llm:
        client = TestClient(create_app(llm))
        assert client.get("/health").status_code == 200
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")


def test_a_route_that_would_wait_for_itself_says_so(llm: LLM) -> None:
    app = create_app(llm)

    @app.get("/wrong")
    async def wrong() -> str:
        try:
            return llm.generate(PROMPT).text
        except RuntimeError as error:
            return str(error)

    @app.get("/right")
    def right() -> str:
        return llm.generate(PROMPT, SamplingParams(max_tokens=0)).finish_reason

    client = TestClient(app)
    assert "write `def` instead of `async def`" in client.get("/wrong").json()
    assert client.get("/right").json() == "length"

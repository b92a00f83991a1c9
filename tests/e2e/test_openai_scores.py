"""Scores and vectors, asked for by the official client, from a real engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionTokenLogprob

from tests.e2e.conftest import Server, write_tokenizer
from tests.models.encoders import BERT, write_bert

MESSAGES: Any = [{"role": "user", "content": "Tell me about the sérver."}]
PROMPT = "def stop(self) -> int: # café"


def written(entries: list[ChatCompletionTokenLogprob] | None) -> bytes:
    return b"".join(bytes(entry.bytes or ()) for entry in entries or ())


def post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{server.url}{path}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_chat_logprobs(server: Server) -> None:
    arguments: Any = {
        "model": server.model,
        "messages": MESSAGES,
        "max_tokens": 30,
        "seed": 3,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 4,
        "extra_body": {"stop_token_ids": [], "ignore_eos": True},
    }
    whole = server.openai.chat.completions.create(**arguments)
    streamed: dict[int, list[ChatCompletionTokenLogprob]] = {0: [], 1: []}
    for chunk in server.openai.chat.completions.create(**arguments, stream=True):
        for piece in chunk.choices:
            if piece.logprobs is not None:
                streamed[piece.index] += piece.logprobs.content or []
    for choice in whole.choices:
        assert choice.logprobs is not None
        entries = choice.logprobs.content
        assert entries is not None
        assert written(entries).decode(errors="replace") == choice.message.content
        assert [entry.logprob for entry in entries] == [
            entry.logprob for entry in streamed[choice.index]
        ]
        for entry in entries:
            assert len(entry.top_logprobs) == 4
            top = [each.logprob for each in entry.top_logprobs]
            assert top == sorted(top, reverse=True)
            assert sum(map(math.exp, top)) <= 1 + 1e-6
            assert entry.logprob <= top[0]


def test_a_token_is_as_likely_in_a_prompt_as_in_an_answer(server: Server) -> None:
    create = server.openai.completions.create
    common: Any = {"model": server.model, "logprobs": 3, "temperature": 0}
    ids = post(server, "/tokenize", prompt=PROMPT)["tokens"]
    [whole] = create(prompt=PROMPT, max_tokens=0, echo=True, **common).choices
    assert whole.text == PROMPT
    assert whole.finish_reason == "length"
    assert whole.logprobs is not None
    assert whole.logprobs.token_logprobs is not None
    assert len(whole.logprobs.token_logprobs) == len(ids)
    for place in range(1, len(ids)):
        forced: Any = {str(ids[place]): 100}  # log-probabilities are those before any bias
        [one] = create(prompt=ids[:place], max_tokens=1, logit_bias=forced, **common).choices
        assert one.logprobs is not None
        assert one.logprobs.token_logprobs is not None
        scored = whole.logprobs.token_logprobs[place]
        assert one.logprobs.token_logprobs[0] == pytest.approx(scored, abs=1e-5)
        assert one.logprobs.tokens == whole.logprobs.tokens[place : place + 1]  # type: ignore[index]


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 2])
def test_an_echo_in_a_stream(server: Server, max_tokens: int, n: int) -> None:
    arguments: Any = {
        "model": server.model,
        "prompt": [PROMPT, "import os"],
        "echo": True,
        "logprobs": 2,
        "max_tokens": max_tokens,
        "n": n,
        "seed": 1,
    }
    whole = server.openai.completions.create(**arguments)
    texts = [""] * len(whole.choices)
    scores: list[list[Any]] = [[] for _ in whole.choices]
    for chunk in server.openai.completions.create(**arguments, stream=True):
        for piece in chunk.choices:
            texts[piece.index] += piece.text
            if piece.logprobs is not None:
                scores[piece.index] += piece.logprobs.token_logprobs or []
    assert texts == [choice.text for choice in whole.choices]
    assert scores == [choice.logprobs.token_logprobs for choice in whole.choices]  # type: ignore[union-attr]
    assert all(each[0] is None and None not in each[1:] for each in scores)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == sum(map(len, scores)) - n * whole.usage.prompt_tokens
    assert texts[0].startswith(PROMPT)


def test_a_long_prompt_is_scored_whatever_its_chunks(server: Server) -> None:
    """Rows bring the scores of a prompt in chunks; a cached prefix does not take any away."""
    ids = [5 + index % 300 for index in range(500)]
    create = server.openai.completions.create
    common: Any = {"model": server.model, "max_tokens": 0, "echo": True, "logprobs": 0}
    [first] = create(prompt=ids, **common).choices
    [again] = create(prompt=ids, **common).choices
    assert first.logprobs is not None
    assert again.logprobs is not None
    assert len(first.logprobs.token_logprobs or ()) == 500
    assert again.logprobs.token_logprobs == first.logprobs.token_logprobs


def test_prompt_logprobs(server: Server) -> None:
    create = server.openai.completions.create
    ids = [10, 20, 30, 40]
    [choice] = create(
        model=server.model, prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 2}
    ).choices
    assert choice.model_extra is not None
    found = choice.model_extra["prompt_logprobs"]
    assert found[0] is None
    for id, position in zip(ids[1:], found[1:], strict=True):
        ranks = [each.get("rank") for each in position.values()]
        assert str(id) in position
        assert ranks[:2] == [1, 2]
    chat = server.openai.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert chat.model_extra is not None
    assert chat.usage is not None
    assert len(chat.model_extra["prompt_logprobs"]) == chat.usage.prompt_tokens


def test_a_prompt_as_long_as_the_context(server: Server) -> None:
    create = server.openai.completions.create
    assert create(model=server.model, prompt=[7] * 512, max_tokens=0).usage is not None
    with pytest.raises(openai.BadRequestError):
        create(model=server.model, prompt=[7] * 512, max_tokens=1)


def test_tokenize_and_back(server: Server) -> None:
    found = post(server, "/tokenize", prompt=PROMPT, return_token_strs=True)
    assert len(found["token_strs"]) == found["count"] == len(found["tokens"])
    assert post(server, "/detokenize", tokens=found["tokens"]) == {"prompt": PROMPT}


def check_vectors(server: Server, size: int) -> None:
    create = server.openai.embeddings.create
    inputs = ["one server", "another one", "one server"]
    texts = create(model=server.model, input=inputs)  # the client asks for base64 by default
    numbers = create(model=server.model, input=inputs, encoding_format="float")
    assert [each.index for each in texts.data] == [0, 1, 2]
    assert [each.embedding for each in texts.data] == [each.embedding for each in numbers.data]
    first, second, third = (each.embedding for each in texts.data)
    assert len(first) == size
    assert first == third != second
    assert math.hypot(*first) == pytest.approx(1, abs=1e-5)
    short = create(model=server.model, input=inputs[0], dimensions=8).data[0].embedding
    length = math.hypot(*first[:8])
    assert short == pytest.approx([number / length for number in first[:8]], abs=1e-5)
    ids = post(server, "/tokenize", prompt=inputs[0])["tokens"]
    assert create(model=server.model, input=ids).data[0].embedding == first
    assert texts.usage.prompt_tokens == texts.usage.total_tokens >= 3 * len(ids) - 3
    with pytest.raises(openai.BadRequestError) as caught:
        create(model=server.model, input=["a", "word " * 600])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input[1]"


def test_vectors_of_a_decoder(server: Server) -> None:
    check_vectors(server, 64)


@pytest.mark.slow
def test_an_encoder(launch: Callable[..., Server], tmp_path: Path) -> None:
    size = write_tokenizer(tmp_path / "tokenizer.json")
    folder = write_bert(tmp_path / "encoder", {**BERT, "vocab_size": size})
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    server = launch(str(folder), model=folder.name)
    check_vectors(server, 48)
    with pytest.raises(openai.BadRequestError, match="embedding model"):
        server.openai.chat.completions.create(model=server.model, messages=MESSAGES)

"""Token ids of texts and conversations, and back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.server.fakes import BOS, EOS, HELLO, MAX_MODEL_LEN, VOCAB, Server, says, serving

TEMPLATE = (
    "{{ bos_token }}{{ tools | length if tools else '' }}{% for m in messages %}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def run(test: Any) -> None:
    asyncio.run(test)


async def tokenize(server: Server, **fields: Any) -> httpx.Response:
    return await server.client.post("/tokenize", json=fields)


async def detokenize(server: Server, **fields: Any) -> httpx.Response:
    return await server.client.post("/detokenize", json=fields)


def test_a_text() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            assert (await tokenize(server, model="m", prompt="hé")).json() == {
                "count": 4,
                "max_model_len": MAX_MODEL_LEN,
                "tokens": [BOS, 104, 0xC3, 0xA9],
                "token_strs": None,
            }
            plain = await tokenize(
                server, prompt="hé", add_special_tokens=False, return_token_strs=True
            )
            assert plain.json()["tokens"] == [104, 0xC3, 0xA9]
            assert plain.json()["token_strs"] == ["h", "\ufffd", "\ufffd"]
            assert (await tokenize(server, prompt="")).json()["tokens"] == [BOS]

    run(test())


def test_it_reads_prompts_as_the_other_routes_do() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.chat()
            await server.complete(prompt="hé")
            chat, completion = (add.prompt for add in server.engine.added)
            assert (await tokenize(server, messages=HELLO)).json()["tokens"] == chat
            assert (await tokenize(server, prompt="hé")).json()["tokens"] == completion

    run(test())


def test_a_conversation() -> None:
    async def test() -> None:
        async with serving(says("x"), chat_template=TEMPLATE) as server:
            messages = [{"role": "user", "content": "a"}]
            for fields, text in (
                ({}, "<s>a>"),
                ({"add_generation_prompt": False}, "<s>a"),
                ({"tools": [{"type": "function"}, {}]}, "<s>2a>"),
            ):
                answer = await tokenize(server, messages=messages, **fields)
                assert bytes(answer.json()["tokens"]).decode() == text
            more = await tokenize(server, messages=messages, add_special_tokens=True)
            assert more.json()["tokens"][0] == BOS

    run(test())


def test_a_text_may_be_longer_than_the_context() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            answer = await tokenize(server, prompt="a" * 100_000)
            assert answer.json()["count"] == 100_001

    run(test())


def test_and_back() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            ids = (await tokenize(server, prompt="hé 🌹")).json()["tokens"]
            answer = await detokenize(server, model="m", tokens=ids[1:])
            assert answer.json() == {"prompt": "hé 🌹"}
            assert (await detokenize(server, tokens=[])).json() == {"prompt": ""}
            long = await detokenize(server, tokens=[97] * 100_000)
            assert long.json()["prompt"] == "a" * 100_000

    run(test())


def test_special_tokens_are_written_out() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            decode = server.service.prompts.tokenizer.decode
            asked = []

            def spy(ids: Any, **options: Any) -> str:
                asked.append(options)
                return decode(ids, **options)

            server.service.prompts.tokenizer.decode = spy  # type: ignore[method-assign]
            await detokenize(server, tokens=[BOS, 97, EOS])
            assert asked == [{"skip_special_tokens": False}]

    run(test())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
        ({"prompt": "a", "tools": []}, "tools"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"prompt": "a", "return_token_strs": "yes"}, "return_token_strs"),
        ({"promt": "a"}, "promt"),
    ],
)
def test_what_cannot_be_tokenized(fields: dict[str, Any], param: str) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            response = await tokenize(server, **fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param

    run(test())


@pytest.mark.parametrize("tokens", [[-1], [97, VOCAB], [10**30], "a", [1.5], None])
def test_what_cannot_be_detokenized(tokens: Any) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            response = await detokenize(server, tokens=tokens)
            assert response.status_code == 400
            assert response.json()["error"]["param"].startswith("tokens")

    run(test())


def test_of_another_model() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            assert (await tokenize(server, model="other", prompt="a")).status_code == 404
            assert (await detokenize(server, model="other", tokens=[1])).status_code == 404

    run(test())


@pytest.mark.alone
def test_a_long_text_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> float:
        async with serving(says("x")) as server:
            kind = type(server.service.prompts.tokenizer)
            monkeypatch.setattr(kind, "encode", lambda *_, **__: time.sleep(0.3) or [1])
            monkeypatch.setattr(kind, "decode", lambda *_, **__: time.sleep(0.3) or "a")
            asking = asyncio.gather(
                tokenize(server, prompt="a" * 20_000), detokenize(server, tokens=[1] * 20_000)
            )
            worst = 0.0
            while not asking.done():
                before = time.monotonic()
                await asyncio.sleep(0)
                worst = max(worst, time.monotonic() - before)
            assert [each.status_code for each in await asking] == [200, 200]
            return worst

    assert asyncio.run(test()) < 0.2

"""What a stream's chunks add up to is the whole answer, however the engine's rows are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.messages import Add, Output
from tests.examples import examples
from tests.server.fakes import BOS, CHAT, COMPLETIONS, EOS, Server, events, score, serving

TEXTS = st.text(alphabet="abé🌹 \n", max_size=8)
STOPS = st.lists(st.text(alphabet="abé🌹", min_size=1, max_size=3), max_size=3)


def in_rows(tokens: list[int], cuts: set[int], finish: Any) -> Any:
    """A script that says these tokens in rows that end at the cuts."""

    def rows(add: Add) -> Iterable[Output]:
        ends = sorted({cut for cut in cuts if 0 < cut < len(tokens)} | {len(tokens)})
        start = 0
        for end in ends:
            row = tokens[start:end]
            top = add.params.logprobs
            told = (
                None if top is None else [score(start + at, id, top) for at, id in enumerate(row)]
            )
            last = end == len(tokens)
            yield Output(add.id, 0, row, told, finish=finish if last else None, last=last)
            start = end

    return rows


def added_up(chunks: list[Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {"text": "", "ids": [], "logprobs": {}, "finish": None, "usage": None}
    for chunk in chunks:
        whole["usage"] = chunk["usage"] or whole["usage"]
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            whole["text"] += piece
            whole["ids"] += choice.get("token_ids", [])
            whole["finish"] = choice["finish_reason"] or whole["finish"]
            for name, entries in (choice["logprobs"] or {}).items():
                whole["logprobs"].setdefault(name, []).extend(entries or [])
    return whole


def as_one(body: dict[str, Any]) -> dict[str, Any]:
    [choice] = body["choices"]
    return {
        "text": choice["message"]["content"] if "message" in choice else choice["text"],
        "ids": choice["token_ids"],
        "logprobs": {name: entries or [] for name, entries in choice["logprobs"].items()},
        "finish": choice["finish_reason"],
        "usage": body["usage"],
    }


async def check(server: Server, path: str, fields: dict[str, Any]) -> None:
    ask = server.chat if path == CHAT else server.complete
    scores = {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"logprobs": 1}
    fields = {**fields, **scores, "return_token_ids": True}
    whole = await ask(**fields)
    options = {"include_usage": True}
    *chunks, done = events(await ask(**fields, stream=True, stream_options=options))
    assert done == "[DONE]"
    streamed, expected = added_up(chunks), as_one(whole.json())
    for name, entries in expected["logprobs"].items():
        assert streamed["logprobs"].setdefault(name, []) == entries
    assert streamed == expected


@settings(max_examples=examples(150), deadline=None)
@given(
    text=TEXTS,
    special=st.integers(0, 8),
    stops=STOPS,
    cuts=st.sets(st.integers(1, 40)),
    finish=st.sampled_from(["stop", "length"]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "include_stop_str_in_output": st.booleans(),
            "skip_special_tokens": st.booleans(),
            "min_tokens": st.integers(0, 4),
        },
    ),
)
def test_a_stream_adds_up_to_the_whole_answer(
    text: str, special: int, stops: list[str], cuts: set[int], finish: str, fields: dict[str, Any]
) -> None:
    spelt = list(text.encode())
    tokens = [*spelt[:special], BOS, *spelt[special:]]  # anywhere, inside a character too
    tokens.append(EOS if finish == "stop" else ord("!"))
    if stops:
        fields = {**fields, "stop": stops}

    async def test() -> None:
        async with serving(in_rows(tokens, cuts, finish)) as server:
            for path in (CHAT, COMPLETIONS):
                await check(server, path, {**fields, "max_tokens": 50})

    asyncio.run(test())


def test_every_way_to_cut_a_short_answer() -> None:
    tokens = [*"éa🌹b".encode(), EOS]

    async def test() -> None:
        async with serving(in_rows(tokens, set(), "stop")) as server:
            for mask in range(2 ** (len(tokens) - 1)):
                cuts = {place + 1 for place in range(len(tokens)) if mask >> place & 1}
                server.engine.script = in_rows(tokens, cuts, "stop")
                fields = {"stop": ["🌹b", "x"], "include_stop_str_in_output": mask % 2 == 0}
                await check(server, CHAT, fields)

    asyncio.run(test())

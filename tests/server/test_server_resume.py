"""What a new engine is told of the requests that the one before it left behind."""

from __future__ import annotations

import asyncio
from typing import Any

from rosellm.roseinfer.messages import Add, Logprobs, Output, Outputs, Stats
from tests.server.asking import TOOLS, assembled, call, called, served
from tests.server.fakes import EOS, Server, events, serving, silent


async def asked(server: Server, count: int = 1) -> None:
    while len(server.engine.added) < count:
        await asyncio.sleep(0)


def say(server: Server, *rows: Output) -> None:
    server.engine.on_outputs(Outputs(list(rows), Stats()))


def restarted(server: Server) -> list[Add]:
    """The requests that the engine is sent again."""
    before = len(server.engine.added)
    server.engine.revive()
    return server.engine.added[before:]


def test_an_answer_goes_on_where_it_was() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            task = asyncio.ensure_future(server.complete(max_tokens=6, seed=3, stream=True))
            await asked(server)
            first = server.engine.added[0]
            say(server, Output(first.id, 0, [104, 101]), Output(first.id, 0, [108]))
            (again,) = restarted(server)
            assert (again.id, again.prompt, again.params) == (first.id, first.prompt, first.params)
            assert (again.generated, again.choices, again.resumed) == ([[104, 101, 108]], [], True)
            assert (first.generated, first.resumed) == ([], False)
            say(server, Output(first.id, 0, [108, 111, 33], finish="length", last=True))
            chunks = events(await task)
            texts = [each["choices"][0]["text"] for each in chunks if each != "[DONE]"]
            assert "".join(texts) == "hello!"
            assert restarted(server) == []

    asyncio.run(test())


def test_a_call_goes_on_where_it_was() -> None:
    """Another engine goes on inside of the arguments, of which the stream has had a part."""
    text = call("add", a="some text", b=[1, 2]).encode()

    async def test() -> None:
        async with served(silent) as server:
            task = asyncio.ensure_future(server.chat(tools=TOOLS, stream=True))
            await asked(server)
            id, cut = server.engine.added[0].id, text.index(b"text")
            say(server, *(Output(id, 0, [token]) for token in text[:cut]))
            (again,) = restarted(server)
            assert again.generated == [list(text[:cut])]
            say(server, *(Output(id, 0, [token]) for token in text[cut:]))
            say(server, Output(id, 0, [EOS], finish="stop", last=True))
            [choice] = assembled(events(await task))["choices"]
            assert choice["finish_reason"] == "tool_calls"
            assert called(choice["message"]) == [("add", {"a": "some text", "b": [1, 2]})]

    asyncio.run(test())


def test_choices_that_have_ended_are_not_answered_again() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            task = asyncio.ensure_future(server.complete(max_tokens=3, n=3, stop="b"))
            await asked(server)
            id = server.engine.added[0].id
            say(server, Output(id, 0, [97]), Output(id, 1, [97, 98]), Output(id, 2, [97, 97]))
            (again,) = restarted(server)
            assert again.choices == again.wanted == [0, 2]
            assert again.generated == [[97], [], [97, 97]]
            say(server, Output(id, 0, [97, 97], finish="length"))
            say(server, Output(id, 2, [99], finish="length", last=True))
            answer = (await task).json()
            assert [each["text"] for each in answer["choices"]] == ["aaa", "a", "aac"]
            assert answer["usage"]["completion_tokens"] == 8

    asyncio.run(test())


def test_scores_of_the_prompt_are_told_once() -> None:
    def scores(*values: float) -> list[Logprobs]:
        return [Logprobs(value, [], []) for value in values]

    async def test() -> None:
        async with serving(silent) as server:
            fields: dict[str, Any] = {"prompt": "abcd", "prompt_logprobs": 0, "max_tokens": 1}
            task = asyncio.ensure_future(server.complete(**fields))
            await asked(server)
            id = server.engine.added[0].id
            length = len(server.engine.added[0].prompt)
            values = [-float(place) for place in range(1, length)]
            say(server, Output(id, prompt_logprobs=scores(*values[:2])))
            (again,) = restarted(server)
            assert again.params.prompt_logprobs == 0
            say(server, Output(id, prompt_logprobs=scores(*values[:1])))
            say(server, Output(id, prompt_logprobs=scores(*values[1:])))
            say(server, Output(id, 0, [97]))
            (again,) = restarted(server)
            assert again.params.prompt_logprobs is None, "they have all been told"
            say(server, Output(id, 0, finish="length", last=True))
            told = (await task).json()["choices"][0]["prompt_logprobs"]
            assert [next(iter(each.values()))["logprob"] for each in told[1:]] == values

    asyncio.run(test())


def test_who_left_meanwhile_is_not_sent_again() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            task = asyncio.ensure_future(server.complete(max_tokens=3))
            await asked(server)
            server.service.pipeline.drop([server.engine.added[0].id])
            assert restarted(server) == []
            task.cancel()

    asyncio.run(test())


def test_a_request_over_which_engines_die_ends_with_its_own_error_and_is_not_tried_again() -> None:
    """Each engine dies when this request has had three tokens more; its neighbours get on."""

    async def test() -> None:
        async with serving(silent) as server:
            tasks = [
                asyncio.ensure_future(server.complete(max_tokens=40, seed=seed, stream=seed == 2))
                for seed in range(4)
            ]
            await asked(server, 4)
            guilty = next(add.id for add in server.engine.added if add.params.seed == 2)
            tokens = {add.id: 0 for add in server.engine.added}
            inside = dict.fromkeys(tokens, 0)
            deaths = 0
            while any(not task.done() for task in tasks):
                before = len(server.engine.added)
                for id in list(inside):
                    inside[id] += 1
                    tokens[id] += 1
                    last = tokens[id] == 40
                    say(server, Output(id, 0, [97], finish="length" if last else None, last=last))
                    if last:
                        del inside[id]
                if inside.get(guilty) == 3:
                    deaths += 1
                    inside.clear()
                    server.engine.revive()
                inside |= {add.id: 0 for add in server.engine.added[before:]}
                await asyncio.sleep(0)
            assert deaths <= 4
            for seed, task in enumerate(tasks):
                if seed != 2:
                    assert (await task).json()["choices"][0]["text"] == "a" * 40
            *_, error = events(await tasks[2])
            assert "died over this request" in error["error"]["message"]
            count = len(server.engine.added)
            again = await server.complete(max_tokens=40, seed=5)
            assert again.status_code == 500
            assert len(server.engine.added) == count
            other = asyncio.ensure_future(server.complete(prompt="another", max_tokens=40))
            await asked(server, count + 1)
            other.cancel()

    asyncio.run(test())


def test_an_engine_in_trouble_is_not_ready_and_says_why() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            for path in ("/health", "/readyz"):
                assert (await server.client.get(path)).status_code == 200
                server.engine.trouble = "the engine does not answer"
                answer = await server.client.get(path)
                assert answer.status_code == 503
                assert "does not answer" in answer.json()["error"]["message"]
                server.engine.trouble = ""
            assert (await server.client.get("/livez")).status_code == 200

    asyncio.run(test())

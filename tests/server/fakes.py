"""A byte tokenizer, an engine that follows a script, and an ASGI client that can leave."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI

from rosellm.roseinfer.config import SamplingDefaults, UnknownParameters
from rosellm.roseinfer.engine.listener import EngineListener
from rosellm.roseinfer.messages import (
    Abort,
    Add,
    Flush,
    Logprobs,
    Output,
    Outputs,
    Pooled,
    Ready,
    RowError,
    Stats,
)
from rosellm.roseinfer.server.app import create_app
from rosellm.roseinfer.server.cors import Cors
from rosellm.roseinfer.server.defaults import Defaults, GenerationConfig
from rosellm.roseinfer.server.journal import Journal
from rosellm.roseinfer.server.keys import Keys
from rosellm.roseinfer.server.limits import Accounts
from rosellm.roseinfer.server.pipeline import Pipeline
from rosellm.roseinfer.server.prompts import Prompts, TextTools
from rosellm.roseinfer.server.sampling import Sampling
from rosellm.roseinfer.server.service import Service
from rosellm.roseinfer.text.tokenizer import Tokenizer

BOS, EOS, VOCAB = 256, 257, 258
MAX_MODEL_LEN = 512
VECTOR_SIZE = 4
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello"}]


class ByteTokenizer(Tokenizer):
    """Every byte is a token."""

    def __init__(self, chat_template: str | None = None) -> None:
        self.vocab_size = VOCAB
        self.special_ids = frozenset({BOS, EOS})
        self.bos_id = BOS
        self.eos_ids = (EOS,)
        self.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        self.chat_template = chat_template

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = (id for id in ids if id < BOS or not skip_special_tokens)
        return b"".join(map(self.token_bytes, shown)).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < BOS else b"<s>" if id == BOS else b"</s>"

    def token_to_id(self, token: str) -> int | None:
        return {"<s>": BOS, "</s>": EOS}.get(token)


class InfillTokenizer(ByteTokenizer):
    """One with tokens for filling a hole in a text: the first three bytes."""

    def token_to_id(self, token: str) -> int | None:
        marks = {"<fim_prefix>": 0, "<fim_suffix>": 1, "<fim_middle>": 2}
        return marks.get(token, super().token_to_id(token))


Script = Callable[[Add], Iterable[Output]]


@dataclass
class FakeEngine:
    """Answers every ``Add`` with the rows of a script, one at a time, until it is aborted."""

    script: Script
    generates: bool = True
    trouble: str = ""
    added: list[Add] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    sent: int = 0

    async def start(self, listener: EngineListener) -> Ready:
        self.on_outputs = listener.on_outputs
        self.die, self.lose, self.restart = (
            listener.on_death,
            listener.on_loss,
            listener.on_restart,
        )
        return Ready(
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB,
            capacity_tokens=4096,
            dtype="float32",
            device="cpu",
            invariant=True,
            fingerprint="fp_test",
            generates=self.generates,
            embedding_size=VECTOR_SIZE,
        )

    def send(self, message: Add | Abort | Flush) -> None:
        if isinstance(message, Add):
            self.added.append(message)
            self._task = asyncio.ensure_future(self._run(message))
        elif isinstance(message, Abort):
            self.aborted += message.ids

    def revive(self) -> int:
        """It has died, and there is another one. Returns how many deaths are explained."""
        explained = self.lose()
        self.restart()
        return explained

    async def stop(self) -> None:
        pass

    async def _run(self, add: Add) -> None:
        for row in self.script(add):
            await asyncio.sleep(0)
            if add.id in self.aborted:
                return
            self.sent += 1
            self.on_outputs(Outputs([row], Stats(running=1)))


def says(text: str, *, size: int = 1, finish: str = "stop", cached: int = 0) -> Script:
    """Every choice says this text, ``size`` bytes a row, and then ends."""

    def rows(add: Add) -> Iterable[Output]:
        tokens = [*text.encode(), *([EOS] if finish == "stop" else [])][: add.params.max_tokens]
        cut = tokens != [*text.encode(), EOS] and finish == "stop"
        for start in range(0, len(tokens), size):
            for choice in range(add.n):
                end = start + size >= len(tokens)
                yield Output(
                    add.id,
                    choice,
                    tokens[start : start + size],
                    cached=cached if start == 0 else 0,
                    finish=(("length" if cut else finish) if end else None),  # type: ignore[arg-type]
                    last=end and choice == add.n - 1,
                )

    return rows


def score(position: int, id: int, top: int) -> Logprobs:
    """In even positions the token is the likeliest one, in odd ones it is not among them."""
    ids = [(id + position % 2 + rank) % BOS for rank in range(top)]
    logprobs = [-0.25 * (rank + 1) for rank in range(top)]
    return Logprobs(-7.5 if position % 2 else -0.25, ids, logprobs)


def scores(text: str, *, size: int = 1, chunk: int = 2, finish: str = "stop") -> Script:
    """``says``, with the log-probabilities that were asked for; the prompt's in chunks."""

    def rows(add: Add) -> Iterable[Output]:
        yield from _prompt_scores(add, chunk)
        if add.params.max_tokens == 0:
            for choice in range(add.n):
                yield Output(add.id, choice, finish="length", last=choice == add.n - 1)
            return
        position = [len(add.prompt)] * add.n
        for row in says(text, size=size, finish=finish)(add):
            if (top := add.params.logprobs) is not None:
                numbered = enumerate(row.tokens, start=position[row.choice])
                row.logprobs = [score(place, id, top) for place, id in numbered]
            position[row.choice] += len(row.tokens)
            yield row

    return rows


def _prompt_scores(add: Add, chunk: int) -> Iterable[Output]:
    if (top := add.params.prompt_logprobs) is not None:
        all = [score(place, id, top) for place, id in enumerate(add.prompt) if place]
        for start in range(0, len(all), chunk):
            yield Output(add.id, prompt_logprobs=all[start : start + chunk])


def vector_of(prompt: Sequence[int]) -> list[float]:
    """What ``gives_vectors`` gives: of unit length, and exact in fp32."""
    sign = -1.0 if sum(prompt) % 2 else 1.0
    return [0.5 * sign, 0.5, -0.5, 0.5]


def gives_vectors(add: Add) -> Iterable[Output]:
    """One vector a prompt."""
    data = struct.pack(f"<{VECTOR_SIZE}f", *vector_of(add.prompt))
    yield Output(add.id, pooled=Pooled(data), finish="stop", last=True)


def refuses(status: int, code: str, after: str = "") -> Script:
    """An error row, after some text."""

    def rows(add: Add) -> Iterable[Output]:
        for byte in after.encode():
            yield Output(add.id, 0, [byte])
        error = RowError("no room", status, code)
        yield Output(add.id, finish="error", error=error, last=True)

    return rows


def endless(add: Add) -> Iterable[Output]:
    """Never stops by itself."""
    while True:
        for choice in range(add.n):
            yield Output(add.id, choice, [ord("x")])


def silent(add: Add) -> Iterable[Output]:
    """Never says anything."""
    return ()


@dataclass
class Server:
    """An application over a fake engine, and a client of it."""

    app: FastAPI
    engine: FakeEngine
    service: Service
    client: httpx.AsyncClient

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={"model": "m", "messages": HELLO, **fields})

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.client.post(COMPLETIONS, json={"model": "m", "prompt": "hi", **fields})

    async def embed(self, **fields: Any) -> httpx.Response:
        return await self.client.post(EMBEDDINGS, json={"model": "m", "input": "hi", **fields})


@cache
def _byte_tools(chat_template: str | None) -> TextTools:
    """Compiling a template takes longer than most answers here."""
    return TextTools.of(ByteTokenizer(chat_template))


@asynccontextmanager
async def serving(
    script: Script,
    *,
    flags: SamplingDefaults | None = None,
    model: GenerationConfig | None = None,
    chat_template: str | None = None,
    api_key: str | None = None,
    keys: Keys | None = None,
    cors_origins: Sequence[str] = (),
    name: str = "m",
    generates: bool = True,
    tokenizer: Tokenizer | None = None,
    parsers: dict[str, Any] | None = None,
    unknown_parameters: UnknownParameters = "reject",
    journal: Journal | None = None,
    **limits: Any,
) -> AsyncIterator[Server]:
    engine = FakeEngine(script, generates)
    if tokenizer is None and not parsers:
        tools = _byte_tools(chat_template)
    else:
        tools = TextTools.of(tokenizer or ByteTokenizer(chat_template), **(parsers or {}))
    pipeline = Pipeline(engine, tools.tokenizer)
    ready = await pipeline.start()
    defaults = Defaults(flags or SamplingDefaults(), model or GenerationConfig(), (EOS,))
    service = Service(
        name,
        ready,
        pipeline,
        Prompts(tools, ready),
        Sampling(defaults, ready.vocab_size, ready.max_model_len),
        unknown_parameters=unknown_parameters,
        journal=journal,
        **limits,
    )
    app = create_app(service, api_key, accounts=Accounts(keys) if keys else None)
    outermost = Cors(app, cors_origins) if cors_origins else app
    transport = httpx.ASGITransport(outermost, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Server(app, engine, service, client)


class Exchange:
    """One request driven message by message, so that the client can leave in the middle."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self.task = asyncio.ensure_future(app(scope, self._inbox.get, self.sent.put))

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})


def events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events; ``[DONE]`` as that string."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    payloads = [line.removeprefix("data: ") for line in lines]
    return [each if each == "[DONE]" else json.loads(each) for each in payloads]


def streamed_texts(chunks: list[Any]) -> dict[int, str]:
    """Text by choice index, put together from the chunks of a stream."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"] if isinstance(chunk, dict) else ():
            piece = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return texts

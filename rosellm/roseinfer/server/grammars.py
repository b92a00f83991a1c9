"""Grammars are checked before the engine sees them, under limits of size, depth and time.

The library runs in worker processes, which are killed when they take too long; they start with the
first grammar. What has been found good is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
from pydantic_core import from_json

from rosellm.roseinfer.engine.client import child_environment
from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.grammar_messages import Check, Specials, Verdict, receive, send
from rosellm.roseinfer.server.off_loop import off_loop, weight
from rosellm.roseinfer.text.grammar_source import GrammarSource, JsonSchema, grammar_text
from rosellm.roseinfer.text.json_schema import pointer, repeated_names, too_deep
from rosellm.roseinfer.text.tokenizer import Tokenizer

MAX_CHARACTERS = 1 << 20
MAX_SECONDS = 5.0
_WORKERS = 2
_KEPT = 256
_SHOWN = 400


class Grammars:
    """Checks what answers must match.

    Args:
        vocab_size: of the model.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        known = sorted(id for id in tokenizer.special_ids if id < vocab_size)
        self._specials = Specials(vocab_size, {id: tokenizer.token_bytes(id) for id in known})
        self._good: OrderedDict[str, str] = OrderedDict()
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._turns = asyncio.Semaphore(_WORKERS)
        self._turns_of: weakref.WeakValueDictionary[str, asyncio.Semaphore]
        self._turns_of = weakref.WeakValueDictionary()

    async def checked(self, source: GrammarSource, param: str, tenant: str = "") -> str:
        """The text that says it to the engine, see ``Add.grammar``.

        Args:
            param: the request field that holds it.
            tenant: who asks; what one asks for is checked one at a time, beside that of others.

        Raises:
            RequestError: it cannot be used; says why, and where in a schema.
        """
        text, schema = await off_loop(
            weight(*vars(source).values()), lambda: _written(source, param)
        )
        if text not in self._good:
            async with self._turn_of(tenant), self._turns:
                if text not in self._good:  # by now, since others may have asked for the same
                    await self._learn(text, schema, param)
        self._good.move_to_end(text)  # what is asked for often stays
        return self._good[text]

    async def _learn(self, text: str, schema: Any, param: str) -> None:
        verdict = await self._judged(Check(text, schema))
        if verdict.error:
            raise _refusal(verdict.error, param, verdict.pointer, schema is not None)
        self._good[text] = verdict.text
        if len(self._good) > _KEPT:
            self._good.popitem(last=False)

    def _turn_of(self, tenant: str) -> asyncio.Semaphore:
        """There while somebody has it. Without keys all are one tenant."""
        new = asyncio.Semaphore(1 if tenant else _WORKERS)
        return self._turns_of.setdefault(tenant, new)

    async def _judged(self, check: Check) -> Verdict:
        worker = await asyncio.to_thread(self._worker)
        try:
            verdict = await asyncio.to_thread(worker.ask, check)
        except asyncio.CancelledError:  # nobody wants to know any more: others need the turn
            worker.kill()
            raise
        if verdict is None:
            return Verdict(
                error=f"compiling it takes more than {MAX_SECONDS:.0f} s, or too much memory"
            )
        self._idle.put(worker)
        return verdict

    def _worker(self) -> _Worker:
        """One that lives, perhaps a new one."""
        with contextlib.suppress(Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker.alive:
                    return worker
        try:
            return _Worker(self._specials)
        except OSError as error:
            raise RequestError(
                f"a grammar cannot be checked now ({error.strerror}); try again later", status=503
            ) from None


class _Worker:
    """A process that checks one grammar at a time."""

    def __init__(self, specials: Specials) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rosellm.roseinfer.server.grammar_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,  # the terminal's Ctrl-C is not for it
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._ready = False
        self._specials = specials

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it now: whoever waits for its verdict gets none."""
        self._process.kill()

    def ask(self, check: Check) -> Verdict | None:
        """Its verdict; None, and the end of it, if there is none in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if not self._ready:
                send(self._process.stdin, self._specials)
                receive(self._process.stdout)  # it is up: its start does not count
                self._ready = True
            alarm = threading.Timer(MAX_SECONDS, self._process.kill)
            alarm.daemon = True
            alarm.start()
            try:
                send(self._process.stdin, check)
                return msgspec.msgpack.decode(receive(self._process.stdout), type=Verdict)
            finally:
                alarm.cancel()
        except (OSError, msgspec.DecodeError):
            self._end()
            return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _written(source: GrammarSource, param: str) -> tuple[str, Any]:
    """What says it to the engine, and the schema that it is, if it is one."""
    read = read_source(source, param)
    text = grammar_text(read)
    _check_size(len(text), param)
    return text, read.schema if isinstance(read, JsonSchema) else None


def read_source(source: GrammarSource, param: str) -> GrammarSource:
    """The source with what is written in a string read, its limits kept.

    Raises:
        RequestError: it is no schema, or beyond the limits.
    """
    _check_size(weight(*vars(source).values(), most=MAX_CHARACTERS), param)
    if not isinstance(source, JsonSchema):
        return source
    schema = _parsed(source.schema, param)
    place = too_deep(schema)
    if place is not None:
        raise _refusal("nested too deeply", param, pointer(place), True)
    place = repeated_names(schema)
    if place is not None:
        message = "is supported up to 1, or up to the number of required properties"
        raise _refusal(message, param, pointer(place), True)
    return JsonSchema(schema)


def _parsed(schema: Any, param: str) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        parsed = from_json(schema, allow_inf_nan=False)
    except ValueError as error:
        raise _refusal(f"not valid JSON: {error}", param) from None
    if not isinstance(parsed, dict | bool):
        raise _refusal("a schema is an object or a boolean", param)
    return parsed


def _check_size(characters: int, param: str) -> None:
    if characters > MAX_CHARACTERS:
        raise _refusal(f"more than {MAX_CHARACTERS} characters", param)


def _refusal(message: str, param: str, place: str = "", schema: bool = False) -> RequestError:
    where = f" at {place or '/'}" if schema else ""
    if len(message) > _SHOWN:  # it may quote what was sent
        message = f"{message[: _SHOWN // 2]}...{message[-_SHOWN // 2 :]}"
    return RequestError(f"{param}{where}: {message}", param=param, code="invalid_value")

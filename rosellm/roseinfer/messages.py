"""What crosses between the API process and the engine process, and how it is framed.

Every message is a tagged msgspec struct. Fields are only ever added at the end
and optional, so both sides can be a version apart. No pickle crosses.

Rules that both sides keep:

* ids are never reused; a control for an unknown or finished id is a no-op;
* every ``Add`` gets exactly one ``Output`` row with ``last=True``;
* rows of a request that come after its abort are dropped by id.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.request import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
Want = Literal["tokens", "pooled"]
Pooling = Literal["mean", "cls", "last"]


class Start(msgspec.Struct, tag="start"):
    """First message to an engine process: what to load."""

    config: EngineConfig


class Add(msgspec.Struct, tag="add"):
    """A new request.

    Attributes:
        id: chosen by the client, unique for the life of the engine.
        prompt: token ids, at least one.
        n: number of choices, sampled independently.
        generated: for resumption, the tokens each choice has already produced.
        tenant: who asks; tenants share the engine's time. Part of the prefix cache's key.
        priority: within a tenant, lower is served earlier; waiting outweighs it in time.
        deadline: when it ends with an error at the latest, by ``time.monotonic``, which is the
            same for all processes of a machine; or None.
        cache_salt: requests share cached prefixes only with equal salts.
        want: new tokens, or one vector of the prompt (then ``n`` is 1 and ``params`` count
            for nothing).
        grammar: what every choice must match, see ``text/grammar_source.py``; none if empty.
        prediction: token ids that the answers may turn out to be; drafts are taken from it.
        choices: those of the ``n`` that are still to be answered, when resumed; none means all.
        resumed: whether an engine had it before, so that no queue is too full for it.
        share: of the engine's time that its tenant gets; most have 1.
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    n: int = 1
    generated: list[list[int]] = []
    tenant: str = ""
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""
    want: Want = "tokens"
    grammar: str = ""
    prediction: list[int] = []
    choices: list[int] = []
    resumed: bool = False
    share: float = 1.0

    @property
    def wanted(self) -> list[int]:
        """The choices to answer."""
        return self.choices or list(range(self.n))


class Abort(msgspec.Struct, tag="abort"):
    """End these requests now and free what they hold."""

    ids: list[int]


class Flush(msgspec.Struct, tag="flush"):
    """Forget every cached prefix that no running request uses."""


ToEngine = Start | Add | Abort | Flush


class Logprobs(msgspec.Struct, array_like=True):
    """Natural-log probabilities at one output position.

    The model's own: before bias, penalties, masks and temperature (``runner/sampler.py``).
    """

    chosen: float
    top_ids: list[int] = []
    top: list[float] = []


class Pooled(msgspec.Struct, array_like=True):
    """One vector of unit length: fp32, little-endian."""

    data: bytes


class Timings(msgspec.Struct, array_like=True):
    """Seconds that a choice has spent in each phase; together, all since its ``Add`` was taken.

    Attributes:
        grammar: until its grammar was compiled.
        queue: until it was admitted.
        prefill: from then to its first token.
        decode: from token to token.
        preempted: from each preemption to the next token.
        preemptions: how many there were.
    """

    grammar: float = 0.0
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    preempted: float = 0.0
    preemptions: int = 0


class Output(msgspec.Struct, tag="output", omit_defaults=True):
    """News of one choice of one request.

    Attributes:
        tokens: new tokens since the last row; the stop token is included.
        logprobs: one entry a token when the request asked for them.
        cached: prompt tokens whose keys and values came from the prefix cache.
        finish: why this choice ended, or None.
        error: why the whole request ended, when finish is "error".
        last: no further row of this request follows.
        prompt_logprobs: of the prompt's tokens from the second on, as asked for; in order,
            in chunks, by the first choice only, the last chunk no later than its first token.
        pooled: the prompt's vector, in the only row of a request that wants one.
        complete: whether "stop" means that the grammar allowed no more: then no stop token was
            sampled, and the last token is part of the answer.
        timings: with the first tokens, the first ones after a preemption, and the end.
    """

    id: int
    choice: int = 0
    tokens: list[int] = []
    logprobs: list[Logprobs] | None = None
    cached: int = 0
    finish: FinishReason | None = None
    error: RowError | None = None
    last: bool = False
    prompt_logprobs: list[Logprobs] | None = None
    pooled: Pooled | None = None
    complete: bool = False
    timings: Timings | None = None


class RowError(msgspec.Struct, omit_defaults=True):
    """A refusal or failure of one request, ready to be shown as an HTTP error."""

    message: str
    status: int = 500
    code: str | None = None
    param: str | None = None


TIMED_OUT = RowError("the request took longer than its timeout", status=504, code="timeout")


class Stats(msgspec.Struct, omit_defaults=True):
    """State after one step; blocks satisfy free + used + cached == total.

    Attributes:
        waiting: sequences that are not running, those whose grammar is being compiled included.
        waiting_grammar: how many those are.
        incomplete: answers that were to match a grammar and ended by their length before they did.
        drafts: how often tokens were drafted so far, for one sequence in one step.
        drafted, accepted: how many tokens, and how many of them were right.
        waiting_tokens: tokens of the prompts that wait; choices share their prompt.
    """

    running: int = 0
    waiting: int = 0
    blocks_free: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_total: int = 0
    steps: int = 0
    preemptions: int = 0
    batched_tokens: int = 0
    waiting_grammar: int = 0
    incomplete: int = 0
    drafted: int = 0
    accepted: int = 0
    waiting_tokens: int = 0
    drafts: int = 0


class Outputs(msgspec.Struct, tag="outputs"):
    """All rows of one step and the state after it."""

    rows: list[Output]
    stats: Stats


class Progress(msgspec.Struct, tag="progress"):
    """How far loading has come, in bytes."""

    phase: str
    done: int = 0
    total: int = 0


class Decision(msgspec.Struct, array_like=True):
    """What a setting came to, and why."""

    name: str
    value: str
    reason: str = ""


class Ready(msgspec.Struct, tag="ready"):
    """The engine serves. Facts about it that the API side needs.

    Attributes:
        capacity_tokens: tokens that the KV cache holds in all.
        invariant: whether outputs are promised, in bits, not to depend on the schedule.
        fingerprint: changes when weights' identity, dtype, device or kernels change.
        generates: whether it can produce tokens; an encoder only gives vectors.
        pooling: how a prompt's vector is made.
        embedding_size: length of such a vector.
    """

    max_model_len: int
    vocab_size: int
    capacity_tokens: int
    dtype: str
    device: str
    invariant: bool
    fingerprint: str
    decisions: list[Decision] = []
    generates: bool = True
    pooling: Pooling = "last"
    embedding_size: int = 0


class Beat(msgspec.Struct, tag="beat"):
    """The engine's process lives; sent a few times a second once it serves.

    Attributes:
        stuck: whether its present step has taken far longer than it should.
    """

    stuck: bool = False


class Failed(msgspec.Struct, tag="failed"):
    """The engine could not start. One line for people; the process exits with ``exit_code``."""

    message: str
    exit_code: int = 2


FromEngine = Outputs | Progress | Ready | Beat | Failed

_LENGTH_BYTES = 4


class Framer:
    """Length-prefixed messages over a byte stream, without doing any I/O.

    >>> framer = Framer()
    >>> list(framer.feed(Framer.frame(b"one") + Framer.frame(b"two")[:3]))
    [b'one']
    >>> list(framer.feed(Framer.frame(b"two")[3:]))
    [b'two']
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @staticmethod
    def frame(payload: bytes) -> bytes:
        return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes; return the payloads that are complete by now."""
        self._buffer += data
        payloads = []
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            end = body + int.from_bytes(self._buffer[start:body], "little")
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[body:end]))
            start = end
        del self._buffer[:start]
        return payloads


encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode

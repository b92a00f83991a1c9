"""What crosses the process boundary arrives, however it is cut and whoever is newer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig
from rosellm.roseinfer.messages import (
    Abort,
    Add,
    Decision,
    Failed,
    Flush,
    Framer,
    Logprobs,
    Output,
    Outputs,
    Progress,
    Ready,
    RowError,
    Start,
    Stats,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from rosellm.roseinfer.request import MAX_SEED, SamplingParams

PARAMS = SamplingParams(seed=MAX_SEED, max_tokens=7, logit_bias=((3, -100.0),), logprobs=2)
READY = Ready(256, 97, 4096, "float32", "cpu", True, "fp_1", [Decision("device", "cpu", "why")])
ROWS = [
    Output(1, 2, [3, 4], [Logprobs(-0.5, [3, 4], [-0.5, float("-inf")])], 16, "stop", last=True),
    Output(2, finish="error", error=RowError("no", status=400, param="n"), last=True),
    Output(3, tokens=[5]),
]
TO_ENGINE = [
    Start(EngineConfig(model=ModelConfig(model="x"), cache=CacheConfig(block_size=8))),
    Add(1, [1, 2, 3], PARAMS, 2, [[4], []], "tenant", -3, 1e9, "salt"),
    Add(2**40, [0], SamplingParams(seed=0, max_tokens=1)),
    Abort([1, 2]),
    Flush(),
]
FROM_ENGINE = [
    Outputs(ROWS, Stats(running=1, blocks_total=9)),
    Outputs([], Stats()),
    Progress("loading", 1, 2),
    READY,
    Failed("no such model"),
]


def decoder_of(message: Any) -> Callable[[bytes], Any]:
    return decode_to_engine if message in TO_ENGINE else decode_from_engine


# -- frames -----------------------------------------------------------------------------------


@given(payloads=st.lists(st.binary(max_size=300), max_size=8), data=st.data())
def test_frames_survive_any_split(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(Framer.frame, payloads))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    framer = Framer()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += framer.feed(stream[start:end])
        complete = sum(len(b"".join(map(Framer.frame, payloads[: i + 1]))) <= end
                       for i in range(len(payloads)))  # fmt: skip
        assert received == payloads[:complete], "a payload is handed out once it is there"
    assert received == payloads


def test_frames_survive_byte_by_byte() -> None:
    payloads = [b"", b"one", b"x" * 1000]
    framer = Framer()
    stream = b"".join(map(Framer.frame, payloads))
    assert [p for i in range(len(stream)) for p in framer.feed(stream[i : i + 1])] == payloads


def test_a_large_frame_in_many_pieces() -> None:
    payload = bytes(range(256)) * (1 << 14)  # 4 MiB
    stream = Framer.frame(payload)
    framer = Framer()
    pieces = [stream[i : i + 65536] for i in range(0, len(stream), 65536)]
    assert [p for piece in pieces for p in framer.feed(piece)] == [payload]


# -- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [*TO_ENGINE, *FROM_ENGINE], ids=lambda m: type(m).__name__)
def test_messages_arrive_as_they_were(message: Any) -> None:
    assert decoder_of(message)(encode(message)) == message


@pytest.mark.parametrize("message", [*TO_ENGINE, *FROM_ENGINE], ids=lambda m: type(m).__name__)
def test_what_a_newer_side_adds_is_ignored(message: Any) -> None:
    content = with_news(msgspec.msgpack.decode(encode(message)))
    assert decoder_of(message)(msgspec.msgpack.encode(content)) == message


def with_news(content: Any) -> Any:
    """A field that is not known yet, in every struct at every depth."""
    if isinstance(content, dict):
        return {name: with_news(value) for name, value in content.items()} | {"news": [1, {}]}
    if isinstance(content, list):
        return [with_news(value) for value in content]
    return content


@pytest.mark.parametrize(
    ("message", "decode"),
    [
        (Logprobs(-0.5, [3], [-0.5]), Logprobs),
        (Decision("device", "cpu", "why"), Decision),
    ],
)
def test_fields_at_the_end_of_a_row_are_ignored_too(message: Any, decode: type) -> None:
    content = [*msgspec.msgpack.decode(encode(message)), "news"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(content), type=decode) == message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"type": "start", "config": {}}, Start(EngineConfig())),
        (
            {"type": "start", "config": {"model": {"model": "x"}}},
            Start(EngineConfig(model=ModelConfig(model="x"))),
        ),
        (
            {"type": "add", "id": 1, "prompt": [1], "params": {"seed": 2, "max_tokens": 3}},
            Add(1, [1], SamplingParams(seed=2, max_tokens=3)),
        ),
        ({"type": "flush"}, Flush()),
        ({"type": "outputs", "rows": [{"type": "output", "id": 1}], "stats": {}},
         Outputs([Output(1)], Stats())),
        ({"type": "progress", "phase": "x"}, Progress("x")),
        ({"type": "failed", "message": "x"}, Failed("x")),
    ],
)  # fmt: skip
def test_what_an_older_side_leaves_out_has_a_default(
    content: dict[str, Any], expected: Any
) -> None:
    assert decoder_of_type(content)(msgspec.msgpack.encode(content)) == expected


def decoder_of_type(content: dict[str, Any]) -> Callable[[bytes], Any]:
    to_engine = content["type"] in ("start", "add", "abort", "flush")
    return decode_to_engine if to_engine else decode_from_engine


@pytest.mark.parametrize(
    "content",
    [
        {"type": "add", "id": 1, "prompt": ["text"], "params": {"seed": 2, "max_tokens": 3}},
        {"type": "add", "id": 1, "prompt": [1]},
        {"type": "outputs", "rows": [], "stats": {}},  # goes the other way
        {"type": "unheard of"},
        [],
    ],
)
def test_what_is_no_message_is_refused(content: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_to_engine(msgspec.msgpack.encode(content))


def test_a_decode_row_is_small() -> None:
    """One is sent for each running sequence in each step."""
    assert len(encode(Output(1000, tokens=[50_000]))) < 40

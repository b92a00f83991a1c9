"""What is compared: an engine with its weights in one format."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

ROOT = Path(__file__).parents[2]

Bits = Literal[4, 8, 16]


class Absent(Exception):
    """A peer is not there. ``str(error)`` says how to get it."""


@dataclass(frozen=True)
class Setup:
    """What is measured, and with what.

    Attributes:
        model: a Hugging Face folder.
        threads: that each engine computes with.
        bits: formats to measure.
        llama_cpp: folder with llama.cpp's sources and ``build``, if it is to be measured.
        openvino: a Python that has OpenVINO GenAI, if that is to be measured.
        forms: where peers keep the model in their own form.
    """

    model: Path
    threads: int
    bits: tuple[Bits, ...]
    llama_cpp: Path | None = None
    openvino: Path | None = None
    forms: Path = Path("forms")

    @property
    def vocab_size(self) -> int:
        size: int = json.loads((self.model / "config.json").read_text())["vocab_size"]
        return size


@dataclass(frozen=True)
class Batch:
    """Prompts of random tokens that are sent at once, and how many tokens answer each."""

    streams: int
    prompt: int
    output: int


@dataclass(frozen=True)
class Speeds:
    """Tokens a second, of all streams together.

    Attributes:
        prefill: while prompts were read.
        decode: while every stream got tokens and none read its prompt.
    """

    prefill: float
    decode: float


class Contender(Protocol):
    """An engine without HTTP. The time to load it is not part of what it measures."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> Bits: ...

    @property
    def weight_bytes(self) -> int:
        """Of all weights as they are read in a step; known once it is open."""
        ...

    def open(self) -> None:
        """Make ready for ``run``, the model converted and perhaps loaded."""
        ...

    def run(self, batch: Batch) -> Speeds: ...

    def close(self) -> None: ...


class Scoring(Contender, Protocol):
    """One whose scores of a text can be had."""

    def scoring(self) -> list[str]:
        """A command to which two words are added: a file of windows, JSON lists of token ids; and
        the file to write, .npy of float32 [all tokens, vocabulary]."""
        ...


class Service(Protocol):
    """An engine that speaks OpenAI's API."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> Bits: ...

    def command(self, port: int, streams: int, context: int) -> list[str]:
        """What starts it for so many streams of up to so many tokens each."""
        ...


def with_threads(count: int) -> dict[str, str]:
    """This process's environment, for a child that computes with so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ROSELLM_CPU_THREADS")
    return os.environ | dict.fromkeys(names, str(count))


def run_once(command: list[str], threads: int) -> str:
    """Output of a program that must succeed."""
    done = subprocess.run(
        command, cwd=ROOT, env=with_threads(threads), text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
    return done.stdout

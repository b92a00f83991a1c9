"""``InferenceEngine``: the seed's names for what ``LLM`` does."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from types import TracebackType

from rosellm.roseinfer.llm.library import LLM
from rosellm.roseinfer.llm.loop_thread import LoopThread
from rosellm.roseinfer.llm.params import SamplingParams
from rosellm.roseinfer.server.service import Service


class InferenceEngine:
    """A rosetrainer checkpoint and a tokenizer, ready to continue prompts.

    ``create_app`` of ``rosellm.roseinfer.server`` serves it; its own methods keep working then.

    Args:
        checkpoint_path: the ``.pt`` file; a Hugging Face folder or a hub id will do too.
        tokenizer_name: a hub id, a folder or a file; None takes the folder's own.
        device: "cuda", "cpu", or "auto": a CUDA device where there is one.
        use_amp: False computes in float32. Otherwise the checkpoint's own type is kept,
        bf16: or, with this, bfloat16 is used. There is no mixed precision.

    Attributes:
        llm: the engine under its other name, with all that it can do.

    Raises:
        ConfigError, ModelError: it cannot be loaded; the message says why.
    """

    def __init__(
        self,
        checkpoint_path: str | PathLike[str],
        tokenizer_name: str | None = None,
        device: str = "auto",
        use_amp: bool = True,
        bf16: bool = False,
    ) -> None:
        self.llm = LLM(
            checkpoint_path,
            tokenizer=tokenizer_name,
            device=str(device),  # type: ignore[arg-type] # a wrong one is an error that says so
            dtype="float32" if not use_amp else "bfloat16" if bf16 else "auto",
        )

    @property
    def service(self) -> Service:
        return self.llm.service

    @property
    def loop(self) -> LoopThread:
        return self.llm.loop

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_on_eos: bool = True,
        do_sample: bool = False,
    ) -> str:
        """The text that follows the prompt, without the prompt, as ``POST /generate`` has it.

        Args:
            temperature, top_k, top_p: how to sample, if ``do_sample``; otherwise the likeliest
                token is taken each time.

        Raises:
            RequestError: the prompt or a parameter is refused.
        """
        params = _params(max_new_tokens, temperature, top_k, top_p, stop_on_eos, do_sample)
        return self.llm.generate(prompt, params).text

    def stream_generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_on_eos: bool = True,
        do_sample: bool = False,
    ) -> Iterator[str]:
        """The same text in pieces, as they come. To close the iterator aborts the request."""
        params = _params(max_new_tokens, temperature, top_k, top_p, stop_on_eos, do_sample)
        return self.llm.stream(prompt, params)

    def close(self) -> None:
        """Free the memory. May be called twice."""
        self.llm.close()

    def __enter__(self) -> InferenceEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def _params(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop_on_eos: bool,
    do_sample: bool,
) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_new_tokens,
        temperature=temperature if do_sample else 0.0,
        top_k=top_k,
        top_p=top_p,
        ignore_eos=not stop_on_eos,
    )

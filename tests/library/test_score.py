"""Log-likelihoods and vectors, against the model's own logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rosellm import LLM, SamplingParams
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.errors import RequestError
from tests.library.conftest import CONTEXT, idle
from tests.tiny_models import all_logits, build

TEXT = "Once upon a time there was a server, and it answered every request."


@pytest.fixture(scope="module")
def core(folder: Path) -> EngineCore:
    return build(folder)


def logprobs(core: EngineCore, ids: tuple[int, ...]) -> torch.Tensor:
    """Natural-log probabilities [T, vocabulary] of what comes after each token."""
    return all_logits(core, ids).double().log_softmax(-1)


def test_a_text_is_scored_as_the_model_scores_it(llm: LLM, core: EngineCore) -> None:
    score = llm.score(TEXT)
    expected = logprobs(core, score.token_ids)[:-1].gather(
        1, torch.tensor(score.token_ids)[1:, None]
    )
    assert score.logprobs[0] is None
    np.testing.assert_allclose(score.logprobs[1:], expected[:, 0], atol=1e-4)
    assert score.total == pytest.approx(expected.sum().item(), abs=1e-3)
    assert "".join(score.tokens) == TEXT
    assert not score.is_greedy
    assert llm.score(["Once", TEXT])[1] == score


def test_a_continuation_is_scored_after_its_prompt(llm: LLM) -> None:
    whole = llm.score(TEXT)
    prompt, continuation = TEXT[:20], TEXT[20:]
    part = llm.score(prompt, continuation)
    size = len(part.token_ids)
    assert 0 < size < len(whole.token_ids)
    assert part.token_ids == whole.token_ids[-size:]
    assert part.logprobs == whole.logprobs[-size:]
    assert part.total == pytest.approx(sum(part.logprobs))  # type: ignore[arg-type]
    assert "".join(part.tokens).endswith(continuation)


def test_a_token_across_the_boundary_is_the_continuations(llm: LLM) -> None:
    """Otherwise a part of the continuation would be scored by nobody."""
    encode = llm.service.prompts.tokenizer.encode
    assert len(encode("serve")) > len(encode("server")) == 1
    assert llm.score("A serve", "r").tokens[-1].endswith("r")
    assert "".join(llm.score("serve", "r").tokens) == "server"


def test_what_the_model_says_itself_is_greedy(llm: LLM) -> None:
    answer = llm.generate(TEXT, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
    said = list(answer.token_ids)
    score = llm.score(list(answer.prompt_token_ids), said)
    assert (score.is_greedy, score.token_ids) == (True, answer.token_ids)
    assert not llm.score(list(answer.prompt_token_ids), [*said[:-1], said[-1] ^ 1]).is_greedy


def test_one_prompt_may_have_several_continuations(llm: LLM) -> None:
    alone = [llm.score(TEXT, each) for each in (" Yes", " No", "")]
    assert llm.score(TEXT, [" Yes", " No", ""]) == alone
    assert llm.score([TEXT] * 3, [" Yes", " No", ""]) == alone
    assert alone[2].token_ids == ()
    assert alone[2].total == 0


def test_a_text_may_fill_the_context(llm: LLM) -> None:
    assert len(llm.score([5] * CONTEXT).logprobs) == CONTEXT
    with pytest.raises(RequestError, match="the context holds"):
        llm.score([5] * (CONTEXT + 1))
    assert llm.score([5]).logprobs == (None,)
    assert idle(llm).blocks_used == 0


def test_scores_that_do_not_pair_up_are_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="3 continuations of 2 texts"):
        llm.score(["a", "b"], ["c", "d", "e"])
    with pytest.raises(RequestError, match="both be text"):
        llm.score("a", [5, 6])


def test_prompt_logprobs_come_with_an_answer(llm: LLM) -> None:
    answer = llm.generate(TEXT, SamplingParams(max_tokens=2, prompt_logprobs=3))
    score = llm.score(TEXT)
    assert answer.prompt_logprobs is not None
    assert tuple(each.logprob for each in answer.prompt_logprobs) == score.logprobs[1:]
    assert tuple(each.id for each in answer.prompt_logprobs) == score.token_ids[1:]
    assert all(len(each.top) == 3 for each in answer.prompt_logprobs)


def test_no_tokens_may_be_asked_for(llm: LLM) -> None:
    answer = llm.generate(TEXT, SamplingParams(max_tokens=0))
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "length")


# -- vectors -----------------------------------------------------------------------------------


def test_texts_become_vectors_of_unit_length(llm: LLM) -> None:
    one, other = llm.embed([TEXT, "another text"])
    assert one.vector.dtype == np.float32
    assert one.vector.shape == (llm.service.ready.embedding_size,)
    assert np.linalg.norm(one.vector) == pytest.approx(1, abs=1e-5)
    assert one.token_ids == llm.score(TEXT).token_ids
    assert not np.array_equal(one.vector, other.vector)
    assert np.array_equal(llm.embed(TEXT).vector, one.vector)


def test_a_vector_may_be_cut(llm: LLM) -> None:
    whole, cut = llm.embed(TEXT).vector, llm.embed(TEXT, dimensions=8).vector
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), rtol=1e-5)
    size = len(whole)
    for wrong in (0, size + 1):
        with pytest.raises(RequestError, match=f"dimensions must be 1 to {size}, not {wrong}"):
            llm.embed(TEXT, dimensions=wrong)

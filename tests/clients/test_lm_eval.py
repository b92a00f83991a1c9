"""lm-eval on a tiny local task: scores of given answers, and answers that are generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rosellm
from rosellm import LLM
from tests.e2e.conftest import Server

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours

DEMO = Path(rosellm.__file__).parent / "data" / "rosellm-demo"
SUMS = [(1, 2), (3, 4), (10, 5), (7, 7)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [
        {"question": f"What is {a} + {b}?", "answer": right, "choices": [right, "I like films."]}
        for a, b in SUMS
        for right in [f"{a} + {b} = {a + b}"]
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}\n",
    }
    write(tmp_path, "sums_choice", common | {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    })  # fmt: skip
    write(tmp_path, "sums_perplexity", common | {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{question}} {{answer}}",
        "doc_to_text": "",
        "metric_list": [{"metric": "word_perplexity"}],
    })  # fmt: skip
    write(tmp_path, "sums_written", common | {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 20, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    })  # fmt: skip
    return tmp_path


def write(folder: Path, name: str, config: dict[str, Any]) -> None:
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **config}))


def evaluated(demo: Server, tasks: Path, model: str, route: str, names: list[str]) -> Any:
    made = lm_eval.simple_evaluate(
        model=model,
        model_args={
            "model": demo.model,
            "base_url": f"{demo.url}/v1/{route}",
            "tokenizer": str(DEMO),
            "num_concurrent": 2,
            "max_retries": 1,
        },
        tasks=names,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=model == "local-chat-completions",
        bootstrap_iters=0,
    )
    return made["results"]


def test_given_answers_are_scored(demo: Server, tasks: Path) -> None:
    names = ["sums_choice", "sums_perplexity"]
    results = evaluated(demo, tasks, "local-completions", "completions", names)
    with LLM(device="cpu") as llm:
        scored = [
            llm.score(f"What is {a} + {b}?\n", [f" {a} + {b} = {a + b}", " I like films."])
            for a, b in SUMS
        ]
    right = sum(good.total > bad.total for good, bad in scored)
    assert results["sums_choice"]["acc,none"] == right / len(SUMS)
    assert results["sums_perplexity"]["word_perplexity,none"] > 1


def test_answers_are_generated(demo: Server, tasks: Path) -> None:
    """In a chat, where the demo model knows what is asked, they are the server's own."""
    right = 0
    for a, b in SUMS:
        answer = demo.openai.chat.completions.create(
            model=demo.model,
            messages=[{"role": "user", "content": f"What is {a} + {b}?\n"}],
            max_tokens=20,
            temperature=0,
            stop="\n",
        )
        right += answer.choices[0].message.content == f"{a} + {b} = {a + b}"
    model, route = "local-chat-completions", "chat/completions"
    results = evaluated(demo, tasks, model, route, ["sums_written"])
    assert results["sums_written"]["exact_match,none"] == right / len(SUMS)
    results = evaluated(demo, tasks, "local-completions", "completions", ["sums_written"])
    assert 0 <= results["sums_written"]["exact_match,none"] <= right / len(SUMS)

"""Chat templates render as Hugging Face renders them; each failure is told to who can mend it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from rosellm.roseinfer.errors import ModelError, RequestError
from rosellm.roseinfer.text.chat import ChatTemplate, choose_template

KNOWN = [
    "chatml",
    "gemma3",
    "llama3",
    "mistral_common_v7",
    "mistral_v3_tekken",
    "phi_35",
    "qwen3_official",
    "smollm3",
]
TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>", "unk_token": "<UNK>"}
HI = [{"role": "user", "content": "Hi"}]


def render(source: str | None, messages: list[dict[str, Any]] = HI, **kwargs: Any) -> str:
    return ChatTemplate(source, TOKENS).render(messages, **kwargs)


@pytest.mark.parametrize("name", KNOWN)
def test_known_templates(shared_data: Path, name: str) -> None:
    folder = shared_data / "chat_templates"
    template = ChatTemplate((folder / f"{name}.jinja").read_text(), TOKENS)
    results = json.loads((folder / f"{name}.expected.json").read_text())
    for case, arguments in json.loads((folder / "cases.json").read_text())["cases"].items():
        messages = arguments.pop("messages")
        if "error" in results[case]:
            with pytest.raises(RequestError):
                template.render(messages, **arguments)
        else:
            rendered = template.render(messages, **arguments)
            assert without_date(rendered) == without_date(results[case]["text"]), case


PREFILLED = [*HI, {"role": "assistant", "content": "Well, [here] is"}]


@pytest.mark.parametrize("name", KNOWN)
def test_known_templates_can_be_continued(shared_data: Path, name: str) -> None:
    """As transformers does it, which looks for the message's text in the whole prompt."""
    source = (shared_data / "chat_templates" / f"{name}.jinja").read_text()
    ours = render(source, PREFILLED, continue_final_message=True, add_generation_prompt=False)
    theirs, _ = render_jinja_template(
        [PREFILLED], chat_template=source, continue_final_message=True, **TOKENS
    )
    assert ours.endswith("Well, [here] is")
    assert without_date(ours) == without_date(theirs[0])


@pytest.mark.parametrize("content", ["[here]", "[here", "x[here]]]", "trailing  ", "\nlines\n"])
def test_a_message_is_continued_where_its_text_ends(content: str) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    messages = [*HI, {"role": "assistant", "content": content}]
    assert render(source, messages, continue_final_message=True) == (
        f"<user>Hi</user><assistant>{content}"
    )
    assert render(None, messages, continue_final_message=True) == (
        f"User: \nHi\nAssistant: \n{content}"
    )


def test_a_message_that_is_not_shown_cannot_be_continued() -> None:
    with pytest.raises(RequestError, match="does not show the last message") as caught:
        render("{{ messages[0].content }}", PREFILLED, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def without_date(prompt: str) -> str:
    return re.sub(r"Today Date: .*", "", prompt)


def test_the_plain_format() -> None:
    template = ChatTemplate(None, {})
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1+1?\n"},
        {"role": "assistant", "content": "2"},
        {"role": "developer", "content": " Terse. "},
        {"role": "user", "content": "{{ 2+2 }}?"},
    ]
    expected = (
        "[system]\nBe kind.\nUser: \n1+1?\n\nAssistant: \n2\n[system]\n Terse. \n"
        "User: \n{{ 2+2 }}?\n"
    )
    assert not template.has_own
    assert template.render(messages) == expected + "Assistant:"
    assert template.render(messages, add_generation_prompt=False) == expected
    assert template.render([{"role": "assistant", "content": None}]) == "Assistant: \n\nAssistant:"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "21"},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
    ],
)
def test_the_plain_format_refuses_what_it_cannot_say(message: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="only text messages"):
        ChatTemplate(None, {}).render([message])


def test_the_plain_format_refuses_tools() -> None:
    with pytest.raises(RequestError, match="takes no tools"):
        ChatTemplate(None, {}).render(HI, tools=[{"type": "function"}])


def test_variables() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ mood }}{{ add_generation_prompt }}"
    assert render(source, mood="!") == "<BOS>Hi!True"
    assert render(source, add_generation_prompt=False) == "<BOS>HiFalse"
    assert render("{{ nothing }}{{ self is defined }}", self=1) == "True"


def test_named_templates() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0] }}"}, {})
    assert template.has_own
    assert template.render(HI) == "plain"
    assert template.render(HI, tools=["hammer"]) == "hammer"
    assert ChatTemplate({"default": "plain"}, {}).render(HI, tools=["hammer"]) == "plain"
    with pytest.raises(ModelError, match="no default among the chat templates a, b"):
        ChatTemplate({"a": "", "b": ""}, {})


def test_tojson_is_not_escaped_for_html() -> None:
    assert render("{{ x | tojson }}", x={"é": "<b>"}) == '{"é": "<b>"}'
    assert render("{{ x | tojson(indent=1) }}", x={"a": 1}) == '{\n "a": 1\n}'
    source = "{{ x | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
    assert render(source, x={"b": "é", "a": 1}) == '{"a":1,"b":"\\u00e9"}'


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


def test_loop_controls_and_trimmed_blocks() -> None:
    source = (
        "{% for i in range(9) %}\n  {% if i > 2 %}\n{% break %}{% endif %}\n{{ i }}\n{% endfor %}"
    )
    assert render(source) == "0\n1\n2\n"


def test_generation_blocks_are_a_scope() -> None:
    source = "{% set x = 1 %}{% generation %}\n{{ x }}{% set x = 2 %}{% endgeneration %}{{ x }}"
    assert render(source) == "11"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
        ("{{ messages[0].content.nonsense() }}", "no attribute 'nonsense'"),
    ],
)
def test_a_failing_template_is_the_requests_fault(source: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        render(source)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_template_that_is_not_jinja_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match=r"chat template 'default' is not valid Jinja.*line 2"):
        ChatTemplate("\n{% if %}", {})


# -- a template that was asked for -----------------------------------------------------------


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"default": "d", "tool_use": "t"}
    assert choose_template("tool_use", own) == "t"
    assert choose_template("default", "only") == "only"
    Path("tool_use").write_text("from a file: é")
    assert choose_template("tool_use", own) == "from a file: é"
    assert choose_template(str(tmp_path / "tool_use"), None) == "from a file: é"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.jinja", None, "no such file, nor one of the model's own, which has default"),
        ("broken.jinja", b"\n{% if %}", "is not valid Jinja: .*line 2"),
        ("binary.jinja", b"\xff", "cannot be read"),
        ("config.json", b"{}", "a file of Jinja source is expected, not JSON"),
        (".", None, "cannot be read"),
    ],
)
def test_a_template_that_cannot_be_used_names_the_file(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        choose_template(str(path), "own")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_templates_says_so() -> None:
    with pytest.raises(ModelError, match="which brings none"):
        choose_template("tool_use", None)

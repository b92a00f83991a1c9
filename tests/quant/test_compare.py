"""``rosellm verify``: the figures are right, and mistakes are told in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rosellm import cli
from rosellm.commands import verify
from rosellm.roseinfer.engine.compare import compare, reference_of
from rosellm.roseinfer.engine.passage import Passage
from rosellm.roseinfer.errors import ConfigError
from tests.e2e.conftest import write_tokenizer
from tests.models.encoders import BERT, write_bert
from tests.tiny_models import all_logits, build, engine_config, random_prompts, write_llama

Show = pytest.CaptureFixture[str]
IDS = random_prompts([150], 97)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "tiny"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    return write_llama(folder, vocab_size=size, dtype=torch.bfloat16, std=0.1)


def scores(model: Path, window: list[int], **settings: str) -> Tensor:
    return all_logits(build(model, kernels="reference", **settings), window)[:-1].double()


@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_the_figures_are_those_of_the_definitions(model, kind):
    config = engine_config(model, quantization=kind, kernels="reference")
    found = compare(config, reference_of(config), Passage(IDS, bos=1, window=64)).comparison
    windows = [[1, *IDS[start : start + 63]] for start in range(0, 150, 63)]
    ours = torch.cat([scores(model, window, quantization=kind) for window in windows])
    theirs = torch.cat([scores(model, window, dtype="float32") for window in windows])
    targets = torch.tensor([id for window in windows for id in window[1:]])
    p, q = theirs.softmax(-1), ours.softmax(-1)
    divergence = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1)
    expected = {
        "tokens": 150,
        "max_logit_difference": (ours - theirs).abs().max().item(),
        "mean_logit_difference": (ours - theirs).abs().mean().item(),
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "agreement": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        "perplexity": math.exp(torch.nn.functional.cross_entropy(ours, targets).item()),
        "reference_perplexity": math.exp(torch.nn.functional.cross_entropy(theirs, targets).item()),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-9), name
    assert (divergence > 1.0001 * found.kl_99).double().mean() <= 0.01
    assert found.kl_mean > 0


def test_a_model_does_not_differ_from_itself(model):
    config = reference_of(engine_config(model))
    found = compare(config, config, Passage(IDS, bos=None)).comparison
    assert (found.max_logit_difference, found.kl_max, found.agreement) == (0, 0, 1)
    assert found.perplexity == found.reference_perplexity


def test_fewer_bits_are_further_off(model):
    def divergence(**settings: str) -> float:
        config = engine_config(model, kernels="reference", dtype="float32", **settings)
        return compare(config, reference_of(config), Passage(IDS, bos=None)).comparison.kl_mean

    eight, four = divergence(quantization="int8"), divergence(quantization="int4")
    less = divergence(quantization="int4", head_quantization="int4")
    assert 0 < 20 * eight < four < less


def test_a_cache_in_int8_is_measured(model, capsys):
    settings = {"kernels": "reference", "dtype": "float32"}
    plain = engine_config(model, **settings)
    config = engine_config(model, kv_cache_dtype="int8", **settings)
    assert reference_of(config) == reference_of(plain)
    assert compare(plain, plain, Passage(IDS, bos=None)).comparison.kl_mean == 0
    verified = compare(config, reference_of(config), Passage(IDS, bos=None))
    assert 0 < verified.comparison.kl_mean < 0.01
    wanted = "float32 on cpu, reference kernels"
    assert verify._about(verified.reference) == wanted
    assert verify._about(verified.build) == f"{wanted}, keys and values in int8"


def test_what_cannot_be_compared(model, tmp_path):
    config = engine_config(model)
    with pytest.raises(ConfigError, match="fewer than two tokens"):
        compare(config, config, Passage([3], bos=1))
    other = engine_config(write_llama(tmp_path / "other", vocab_size=50))
    with pytest.raises(ConfigError, match="the same model"):
        compare(config, other, Passage([3, 4, 5], bos=None))
    encoder = engine_config(write_bert(tmp_path / "encoder", BERT))
    with pytest.raises(ConfigError, match="gives vectors"):
        compare(encoder, encoder, Passage([3, 4, 5], bos=None))


def test_stories(shared_data):
    """A trained model: what a bit more or less means for it."""
    folder = shared_data / "stories260K"
    cases = json.loads((folder / "expected.json").read_text())["cases"]
    ids = [id for case in cases for id in case["prompt_token_ids"] + case["greedy_token_ids"]]

    def divergence(kind: str) -> float:
        config = engine_config(folder / "hf", quantization=kind, kernels="reference")
        return compare(config, reference_of(config), Passage(ids[:600], bos=1)).comparison.kl_mean

    assert 0 < divergence("int8") < 0.0006
    assert 0 < divergence("int4") < 0.06


# -- the command -----------------------------------------------------------------------------


def complaint(capsys: Show, *argv: str) -> str:
    assert cli.main(["verify", *argv]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_table_for_people(capsys, model):
    assert cli.main(["verify", str(model), "--quantization", "int4", "--max-tokens", "100"]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == str(model)
    found = dict(row.strip().split("  ", maxsplit=1) for row in rows if row)
    assert found["compared"].strip() == "99 tokens of the text that comes with rosellm"
    assert found["reference"].strip() == "float32 on cpu, reference kernels"
    assert "int4 in groups of 128, head int8" in found["this build"]
    assert {"logits", "KL divergence", "likeliest token", "perplexity"} < found.keys()


def test_a_line_for_programs(capsys, model, tmp_path):
    (tmp_path / "text").write_text("a b c " * 30)
    argv = [str(model), "--kernels", "reference", "--text", str(tmp_path / "text"), "--json"]
    assert cli.main(["verify", *argv]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["model"], found["reference"]) == (str(model), str(model))
    assert found["text"] == str(tmp_path / "text")
    assert 0 < found["comparison"]["kl_mean"] < 1e-3
    assert found["build"]["dtype"] == "bfloat16"


def test_another_reference(capsys, model, tmp_path):
    out = str(tmp_path / "out")
    assert cli.main(["quantize", str(model), out]) == 0
    for reference, same in (([], True), (["--reference", str(model)], False)):
        argv = ["verify", out, "--dtype", "float32", "--kernels", "reference", "--json", *reference]
        assert cli.main([*argv, "--max-tokens", "50"]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert (json.loads(line)["comparison"]["kl_max"] == 0) is same


def test_the_demo_model_by_its_name_as_reference(capsys):
    argv = ["verify", "rosellm-demo", "--reference", "rosellm-demo", "--max-tokens", "20"]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["reference"] == "rosellm-demo"
    assert found["comparison"]["kl_mean"] < 1e-3


def test_mistakes(capsys, model, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "--text nowhere: No such file" in complaint(capsys, str(model), "--text", "nowhere")
    assert "not UTF-8" in complaint(capsys, str(model), "--text", str(tmp_path / "latin"))
    assert "at least 2" in complaint(capsys, str(model), "--max-tokens", "1")
    assert "no such folder" in complaint(capsys, str(model), "--reference", "./nowhere")
    assert "no such folder" in complaint(capsys, "./nowhere")
    assert "invalid choice" in complaint(capsys, str(model), "--quantization", "int3")


def test_the_text_that_comes_with_rosellm():
    text = verify.TEXT.read_text("utf-8")
    assert len(text.split()) > 1200
    assert text.isprintable() or set(text) >= {"\n"}

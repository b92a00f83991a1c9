"""A trainer's .pt, written by a GPT that is defined here and owes the package nothing."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rosellm.roseinfer.errors import ModelError
from tests.tiny_models import all_logits, build, generate, greedy, random_prompts

CONFIG: dict[str, Any] = {
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "n_layers": 3,
    "n_heads": 3,
    "d_model": 54,
    "d_ff": 172,
    "dropout": 0.1,
}


# -- the model, in plain torch ----------------------------------------------------


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        scores = q @ k.transpose(2, 3) / math.sqrt(width // self.heads)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        mixed: Tensor = self.out_proj((weights @ v).transpose(1, 2).reshape(x.shape))
        return mixed


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        mixed: Tensor = self.fc2(0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
        return mixed


class Block(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["d_model"]
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, config["n_heads"])
        self.mlp = FeedForward(width, config["d_ff"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        mixed: Tensor = x + self.mlp(self.ln2(x))
        return mixed


class GPT(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["d_model"]
        self.token_embedding = nn.Embedding(config["vocab_size"], width)
        self.position_embedding = nn.Embedding(config["max_position_embeddings"], width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["n_layers"]))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)
        self.lm_head.weight = self.token_embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        scores: Tensor = self(torch.tensor([list(tokens)]))[0]
        return scores

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


def make_model(dtype: torch.dtype = torch.float32) -> GPT:
    """A model whose weights fit ``dtype``, held in fp32 so that it computes in that."""
    torch.manual_seed(3)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.2 + parameter).to(dtype))
    return model


def save(
    path: Path, gpt: GPT, *, prefix: str = "", dtype: torch.dtype = torch.float32, **replaced: Any
) -> Path:
    """As a trainer does after a few steps of AdamW."""
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=0.0, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    gpt(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    scheduler.step()
    checkpoint = {
        "model": {prefix + name: t.to(dtype) for name, t in gpt.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": None,
        "scheduler": {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"},
        "step": 1,
        "config": CONFIG,
        "extra": {"tokens_seen": 3, "tags": ["a", ("b", 1.5)], "rng": torch.get_rng_state()},
    }
    torch.save({**checkpoint, **replaced}, path)
    return path


# -- what it says -----------------------------------------------------------------

PROMPT_LENGTHS = [1, 40, 7, 90, 16]
PREFIXES = ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize(
    ("prefix", "stored"),
    [
        *((prefix, torch.bfloat16) for prefix in PREFIXES),
        (PREFIXES[0], torch.float32),
        *(pytest.param(prefix, torch.float32, marks=pytest.mark.slow) for prefix in PREFIXES[1:]),
    ],
    ids=str,
)
def test_token_for_token(prefix: str, stored: torch.dtype, tmp_path: Path) -> None:
    model = make_model(stored)
    path = save(tmp_path / "step1.pt", model, prefix=prefix, dtype=stored)
    prompts = random_prompts(PROMPT_LENGTHS, CONFIG["vocab_size"])
    wanted = [model.greedy(prompt, 12) for prompt in prompts]

    whole = build(path, dtype="float32")
    torch.testing.assert_close(
        all_logits(whole, prompts[3]), model.logits(prompts[3]), rtol=1e-4, atol=1e-4
    )
    chunked = build(path, dtype="float32", max_num_batched_tokens=9)
    for core in (whole, whole, chunked):  # cold, over a prefix hit, chunked
        assert [r.tokens[0] for r in generate(core, prompts, greedy(12))] == wanted


def test_bf16_stays_close(tmp_path: Path) -> None:
    """Computed in bf16, as the checkpoint is: each token is the module's own, or nearly so."""
    model = make_model(torch.bfloat16)
    core = build(save(tmp_path / "bf16.pt", model, dtype=torch.bfloat16))
    assert core.facts.dtype == "bfloat16"
    prompts = random_prompts(PROMPT_LENGTHS, CONFIG["vocab_size"])
    for prompt, result in zip(prompts, generate(core, prompts, greedy(12)), strict=True):
        tokens = [*prompt, *result.tokens[0]]
        scores = model.logits(tokens)[len(prompt) - 1 : -1]
        chosen = scores.gather(1, torch.tensor(result.tokens[0])[:, None])
        assert (scores.amax(-1, keepdim=True) - chosen).max() < 0.15
        assert scores.std() > 1


def test_without_lm_head(tmp_path: Path) -> None:
    """It is the embedding, so a trainer may leave it out."""
    model = make_model()
    state = model.state_dict()
    del state["lm_head.weight"]
    core = build(save(tmp_path / "model.pt", model, model=state))
    prompt = random_prompts([10], CONFIG["vocab_size"])[0]
    assert generate(core, [prompt], greedy(6))[0].tokens[0] == model.greedy(prompt, 6)


def test_unknown_config_keys_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {**CONFIG, "use_flash": True, "betas": (0.9, 0.95), "bias": None}
    path = save(tmp_path / "model.pt", make_model(), config=config)
    with caplog.at_level(logging.INFO, logger="rosellm"):
        build(path)
    assert caplog.messages == ["model.pt: config keys without effect: betas, bias, use_flash"]


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_optimizer_state_stays_on_disk(tmp_path: Path) -> None:
    moments = torch.zeros(48 << 20)  # 192 MiB
    path = save(tmp_path / "big.pt", make_model(), optimizer={"state": {0: {"exp_avg": moments}}})
    del moments
    build(path, kv_cache_gb=0.001)
    before = resident_bytes()
    core = build(path, kv_cache_gb=0.001)
    assert resident_bytes() - before < 64 << 20
    assert core.facts.vocab_size == 101


# -- what is refused --------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        build(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message or "tensor" in message or "config" in message
    return message


class Touch:
    """Its unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_the_pickle_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = save(tmp_path / "evil.pt", make_model(), extra=Touch(trap))
    assert "holds objects other than tensors" in refusal(path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Touch(trap)))
    refusal(tmp_path / "plain.pt")
    assert not trap.exists()


def test_a_config_object_is_explained(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", make_model(), config=argparse.Namespace(**CONFIG))
    assert "save plain dicts" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model": None}, "'model' is missing"),
        ({"model": {}}, "missing from the checkpoint"),
        ({"model": {"step": 3}}, "'model' is missing or is not a state dict"),
        ({"model": {7: torch.zeros(2)}}, "'model' is missing or is not a state dict"),
        ({"config": None}, "'config' is missing"),
        ({"config": {}}, "the model's config has no vocab_size"),
        ({"config": {**CONFIG, "n_heads": 4}}, "not a multiple of its 4 heads"),
        ({"config": {**CONFIG, "d_model": 57}}, "token_embedding.weight: expected shape [101, 57]"),
        ({"config": {**CONFIG, "n_layers": 4}}, "blocks.3.ln1.weight: missing"),
        ({"config": {**CONFIG, "n_layers": 2}}, "blocks.2.ln1.weight: not part of this model"),
        ({"config": {**CONFIG, "d_ff": "172"}}, "d_ff = '172', expected an integer"),
        ({"config": {**CONFIG, "vocab_size": 0}}, "vocab_size = 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contents_that_do_not_fit(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    assert wanted in refusal(save(tmp_path / "model.pt", make_model(), **changes))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: t.long(),
        lambda t: t.to(torch.complex64),
        lambda t: t[None],
        lambda t: torch.nested.nested_tensor([t]),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "int", "complex", "deeper", "nested", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds(change: Any, tmp_path: Path) -> None:
    state = make_model().state_dict()
    state["blocks.1.mlp.fc1.weight"] = change(state["blocks.1.mlp.fc1.weight"])
    refusal(save(tmp_path / "model.pt", make_model(), model=state))


def test_contents_that_are_no_checkpoint(tmp_path: Path) -> None:
    for content in (torch.zeros(3), [1, 2], {}, {"model": {}}, "text", None):
        torch.save(content, tmp_path / "other.pt")
        refusal(tmp_path / "other.pt")


def test_old_file_format(tmp_path: Path) -> None:
    """Torch before 1.6 wrote files that cannot be mapped."""
    path = tmp_path / "old.pt"
    torch.save({"model": {}, "config": {}}, path, _use_new_zipfile_serialization=False)
    assert "no zip archive" in refusal(path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated(keep: float, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", make_model())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "not a readable torch checkpoint" in refusal(path)

"""Two language models in plain torch: a GPT-2 and a Llama.

Their parameters carry the names that the server's loader reads: GPT-2 those of rosetrainer's
checkpoints, Llama those of Hugging Face. They share nothing with the serving code, which is
tested against them.

Both take ids [B, L] and give logits [B, L, vocabulary], or, with targets, the loss.
Positions [B, L], which start at zero in every document, hide documents from each other; without
them, all of a row is one document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rosellm.roseinfer.errors import ConfigError
from rosellm.rosetrainer.config import TrainConfig
from rosellm.rosetrainer.forms import FORMS, stems_and_forms

INIT_STD = 0.02


@dataclass(frozen=True)
class GPT2Config:
    """Shape of a GPT-2, under the names that its checkpoints have."""

    vocab_size: int
    max_position_embeddings: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    dropout: float = 0.0


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama, under Hugging Face's names."""

    vocab_size: int
    max_position_embeddings: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    hidden_size: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    stems: int = 0  # where tokens share their embeddings: how many stems there are


class LanguageModel(nn.Module):
    """What both have in common: initialisation, the blocks' loop and the loss.

    Attributes:
        lm_head: hidden states to logits.
        recompute: activation checkpointing; blocks are computed again for the backward pass.
    """

    lm_head: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        where: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Logits; or, with targets, their loss in nats, summed.

        Args:
            where: [targets], in the flattened ids. The head is not computed anywhere else.
            targets: [targets], the tokens that follow there.
        """
        hidden = self.hidden(ids, positions)
        if where is None or targets is None:
            return self.logits(hidden)
        chosen = self.logits(hidden.flatten(0, 1)[where])
        return F.cross_entropy(chosen.float(), targets, reduction="sum")

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] to [..., vocabulary]."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def hidden(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """What the head reads: [B, L, width], normalised."""
        raise NotImplementedError

    def run_blocks(self, blocks: nn.ModuleList, x: Tensor, *args: Any) -> Tensor:
        for block in blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, *args, use_reentrant=False)
            else:
                x = block(x, *args)
        return x

    def initialise(self, depth: int, into_residual: tuple[str, ...]) -> None:
        """Normal weights; smaller where a product is added to the residual stream (GPT-2, 2.3)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                small = name.endswith(into_residual)
                nn.init.normal_(
                    parameter, std=INIT_STD / math.sqrt(2 * depth) if small else INIT_STD
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Causal attention over [B, L, heads, width]; the result is [B, L, heads * width].

    Args:
        mask: from ``visibility``.
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if q.device.type == "cpu" and q.shape[2] <= SHORT and not dropout:
        mixed = _attend_to_short_rows(q, k, v, mask)
    else:
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
        )
    return mixed.transpose(1, 2).flatten(2)


SHORT = 512
"""Rows up to here take two plain products on a CPU: in bfloat16 up to three times as fast as
``scaled_dot_product_attention``, whose products there are not the processor's own."""


def _attend_to_short_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + hidden
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed


def visibility(positions: Tensor | None) -> Tensor | None:
    """Booleans [B, 1, L, L], true where a token may look: back, within its own document.

    None where all of a row is one document; attention is causal then.
    """
    if positions is None:
        return None
    document = (positions == 0).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    length = positions.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    return same & causal


# -- GPT-2 (Radford et al., 2019) --------------------------------------------------


class GPT2Attention(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_heads, config.dropout
        self.qkv_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        dropout = self.dropout if self.training else 0.0
        mixed: Tensor = self.out_proj(attend(q, k, v, mask, dropout))
        return mixed


class GPT2MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_ff)
        self.fc2 = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.d_model)
        self.attn = GPT2Attention(config)
        self.ln2 = nn.LayerNorm(config.d_model)
        self.mlp = GPT2MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.drop(self.attn(self.ln1(x), mask))
        out: Tensor = x + self.drop(self.mlp(self.ln2(x)))
        return out


class GPT2(LanguageModel):
    """GPT-2 with the exact GELU; its head is its embedding."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.initialise(config.n_layers, ("out_proj.weight", "fc2.weight"))

    def hidden(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        at = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions
        x = self.drop(self.token_embedding(ids) + self.position_embedding(at))
        x = self.run_blocks(self.blocks, x, visibility(positions))
        out: Tensor = self.ln_f(x)
        return out


# -- Llama (Touvron et al., 2023) --------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LlamaAttention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary positions (Su et al., 2021)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = config.hidden_size // self.heads
        linear = partial(nn.Linear, bias=False)
        self.q_proj = linear(config.hidden_size, self.heads * self.width)
        self.k_proj = linear(config.hidden_size, self.kv_heads * self.width)
        self.v_proj = linear(config.hidden_size, self.kv_heads * self.width)
        self.o_proj = linear(self.heads * self.width, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.width))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.kv_heads != self.heads:
            shared = self.heads // self.kv_heads
            k, v = k.repeat_interleave(shared, dim=2), v.repeat_interleave(shared, dim=2)
        out: Tensor = self.o_proj(attend(q, k, v, mask))
        return out


class LlamaMLP(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LlamaBlock(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class SharedEmbedding(nn.Module):
    """An embedding in which the forms of a word have a part in common (factors, as in
    Garcia-Martinez et al., 2016): a token's vector is its own, its stem's and its form's, added.

    What is learnt about a word in one form then holds for the others.

    Attributes:
        stem_of: [vocabulary], from ``forms.stems_and_forms``.
        form_of: likewise.
    """

    stem_of: Tensor
    form_of: Tensor

    def __init__(self, vocab_size: int, stems: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.stems = nn.Parameter(torch.empty(stems, width))
        self.forms = nn.Parameter(torch.empty(FORMS, width))
        self.register_buffer("stem_of", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("form_of", torch.zeros(vocab_size, dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.matrix())

    def matrix(self) -> Tensor:
        """The embedding as any other model has it: [vocabulary, width]."""
        return self.weight + self.stems[self.stem_of] + self.forms[self.form_of]

    @torch.no_grad()
    def tell_forms(self, tokenizer: str) -> None:
        """Which stem and form each token has, from a ``tokenizer.json``."""
        stems, forms = stems_and_forms(tokenizer)
        self.stem_of.copy_(torch.tensor(stems))
        self.form_of.copy_(torch.tensor(forms))


def with_one_embedding(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Llama's weights with what a shared embedding has in parts added up."""
    prefix = "model.embed_tokens."
    parts = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    others = {name: t for name, t in state.items() if not name.startswith(prefix)}
    whole = parts["weight"]
    if "stems" in parts:
        whole = whole + parts["stems"][parts["stem_of"]] + parts["forms"][parts["form_of"]]
    return {f"{prefix}weight": whole, **others}


class LlamaBody(nn.Module):
    embed_tokens: nn.Embedding | SharedEmbedding

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size = config.vocab_size, config.hidden_size
        if config.stems:
            self.embed_tokens = SharedEmbedding(size[0], config.stems, size[1])
        else:
            self.embed_tokens = nn.Embedding(*size)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(LanguageModel):
    """Llama. Its positions are relative, so a document's place in a row does not matter."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaBody(config)
        if not config.stems:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            if config.tie_word_embeddings:
                self.lm_head.weight = self.model.embed_tokens.weight
        width = config.hidden_size // config.num_attention_heads
        cos, sin = rope_tables(width, config.max_position_embeddings, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise(config.num_hidden_layers, ("o_proj.weight", "down_proj.weight"))

    def hidden(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        length = ids.shape[1]
        tables = self.cos[:length, None], self.sin[:length, None]
        x = self.model.embed_tokens(ids)
        x = self.run_blocks(self.model.layers, x, *tables, visibility(positions))
        out: Tensor = self.model.norm(x)
        return out

    def tell_forms(self, tokenizer: str) -> None:
        """What a shared embedding has to know of its ``tokenizer.json``."""
        if isinstance(self.model.embed_tokens, SharedEmbedding):
            self.model.embed_tokens.tell_forms(tokenizer)

    def logits(self, hidden: Tensor) -> Tensor:
        embedding = self.model.embed_tokens
        if isinstance(embedding, SharedEmbedding):
            return F.linear(hidden, embedding.matrix())
        return super().logits(hidden)


def rope_tables(width: int, positions: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, width], both halves alike."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + width / 2) of [B, L, heads, width] by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


# -- by name -----------------------------------------------------------------------

ModelShape: TypeAlias = GPT2Config | LlamaConfig


def shape_of(config: TrainConfig, vocab_size: int, stems: int) -> ModelShape:
    """The model that a config asks for, over so many tokens of so many stems."""
    model = config.model
    if model.architecture == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size,
            max_position_embeddings=config.max_positions,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            d_model=model.d_model,
            d_ff=model.d_ff or 4 * model.d_model,
            dropout=model.dropout,
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=config.max_positions,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads or model.n_heads,
        hidden_size=model.d_model,
        intermediate_size=model.d_ff or -(-model.d_model * 8 // 3 // 32) * 32,
        rope_theta=model.rope_theta,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.tied,
        stems=stems if model.shared_embedding else 0,
    )


def as_dict(shape: ModelShape) -> dict[str, Any]:
    """A shape as checkpoints have it. GPT-2's is exactly the seed's; a Llama's says so."""
    if isinstance(shape, GPT2Config):
        return asdict(shape)
    return {"architecture": "llama", **asdict(shape)}


def build_model(config: Mapping[str, Any]) -> LanguageModel:
    """A model with fresh weights from what ``as_dict`` wrote.

    Raises:
        ConfigError: a key is missing or unknown.
    """
    values = dict(config)
    try:
        if values.pop("architecture", "gpt2") == "llama":
            return Llama(LlamaConfig(**values))
        return GPT2(GPT2Config(**values))
    except TypeError as error:
        raise ConfigError(f"the checkpoint's config fits no model here: {error}") from None

"""Which architecture a checkpoint names. Strings, so that only the one in use is imported.

The table itself needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rosellm.roseinfer.errors import ModelError, shown

if TYPE_CHECKING:
    from rosellm.roseinfer.models.spec import Architecture

ARCHITECTURES = {
    "LlamaForCausalLM": "rosellm.roseinfer.models.llama:LLAMA",
    "LLaMAForCausalLM": "rosellm.roseinfer.models.llama:LLAMA",
    "MistralForCausalLM": "rosellm.roseinfer.models.mistral:MISTRAL",
    "Qwen2ForCausalLM": "rosellm.roseinfer.models.qwen:QWEN2",
    "Qwen3ForCausalLM": "rosellm.roseinfer.models.qwen:QWEN3",
    "Gemma2ForCausalLM": "rosellm.roseinfer.models.gemma2:GEMMA2",
    "Gemma3ForCausalLM": "rosellm.roseinfer.models.gemma3:GEMMA3",
    "Gemma3ForConditionalGeneration": "rosellm.roseinfer.models.gemma3:GEMMA3",
    "Phi3ForCausalLM": "rosellm.roseinfer.models.phi3:PHI3",
    "SmolLM3ForCausalLM": "rosellm.roseinfer.models.smollm3:SMOLLM3",
    "Olmo2ForCausalLM": "rosellm.roseinfer.models.olmo2:OLMO2",
    "GPTNeoXForCausalLM": "rosellm.roseinfer.models.gpt_neox:GPT_NEOX",
    "GPT2LMHeadModel": "rosellm.roseinfer.models.gpt2:GPT2",
    "MixtralForCausalLM": "rosellm.roseinfer.models.mixtral:MIXTRAL",
    "Qwen3MoeForCausalLM": "rosellm.roseinfer.models.qwen3_moe:QWEN3_MOE",
    "BertModel": "rosellm.roseinfer.models.bert:BERT",
    "BertForMaskedLM": "rosellm.roseinfer.models.bert:BERT",
    "RobertaModel": "rosellm.roseinfer.models.bert:ROBERTA",
    "RobertaForMaskedLM": "rosellm.roseinfer.models.bert:ROBERTA",
    "XLMRobertaModel": "rosellm.roseinfer.models.bert:ROBERTA",
    "XLMRobertaForMaskedLM": "rosellm.roseinfer.models.bert:ROBERTA",
    "RoseGPT": "rosellm.roseinfer.models.gpt2:ROSE_GPT",
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name, as config.json's ``architectures`` has it."""
    from rosellm.roseinfer.models.spec import Architecture

    _check(name)
    module, attribute = ARCHITECTURES[name].split(":")
    architecture = getattr(importlib.import_module(module), attribute)
    assert isinstance(architecture, Architecture)
    return architecture


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse a model by its config.json, before its weights are here. Raises ModelError."""
    names = config.get("architectures")
    if isinstance(names, list) and names:
        _check(names[0])


def _check(name: object) -> None:
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(
            f"unknown architecture {shown(repr(name))}; supported families: {_families()} "
            "(rosellm models lists all names)"
        )


def _families() -> str:
    """The modules that read the architectures, in words."""
    modules = {place.partition(":")[0].rpartition(".")[2] for place in ARCHITECTURES.values()}
    return ", ".join(sorted(modules))

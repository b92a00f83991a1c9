"""Which architecture a checkpoint names. Strings, so that only the one in use is imported."""

from __future__ import annotations

import importlib

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.models.spec import Architecture

ARCHITECTURES = {
    "LlamaForCausalLM": "rosellm.roseinfer.models.llama:LLAMA",
    "GPT2LMHeadModel": "rosellm.roseinfer.models.gpt2:GPT2",
    "RoseGPT": "rosellm.roseinfer.models.gpt2:ROSE_GPT",
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name, as config.json's ``architectures`` has it."""
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"unknown architecture {shown(repr(name))}; supported: {known}")
    module, attribute = ARCHITECTURES[name].split(":")
    architecture = getattr(importlib.import_module(module), attribute)
    assert isinstance(architecture, Architecture)
    return architecture

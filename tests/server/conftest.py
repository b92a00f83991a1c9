"""Fixtures for the server's tests."""

from tests.text.conftest import tokenizer_folders, tokenizers

__all__ = ["tokenizer_folders", "tokenizers"]  # small tokenizers of every form

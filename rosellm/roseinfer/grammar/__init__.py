"""Grammars that answers must match: compiled, followed, and brought to an end. No torch."""

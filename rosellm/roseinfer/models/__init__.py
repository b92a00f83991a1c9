"""Architectures: each is a config reader, a table of weight names and a block."""

"""Engines to be compared with ours: one module each, which knows how to get, tune and drive it."""

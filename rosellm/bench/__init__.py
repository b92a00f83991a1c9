"""Benchmarks: load on any OpenAI-compatible server, and the engine alone. Not needed to serve."""

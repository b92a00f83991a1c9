"""Benchmarks of this package, to be run as modules from the repository's root."""

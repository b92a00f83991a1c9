"""Weights in fewer bits: which, in what form, by what search, and on disk."""

"""Executes step plans: inputs, forward, sampling."""

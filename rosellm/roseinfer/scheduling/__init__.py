"""Who computes what in the next step, and what comes of it. Start at ``scheduler.py``."""

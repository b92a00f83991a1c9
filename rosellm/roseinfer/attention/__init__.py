"""Attention over the paged KV cache.

``base`` is the interface; a backend turns the plan into whatever it needs once a
step (``prepare``) and is then called once a layer (``run``).
"""

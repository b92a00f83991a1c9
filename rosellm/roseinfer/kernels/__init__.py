"""Operations on tensors. ``reference`` is the specification; ``table`` chooses."""

"""rosetrainer: the small trainer whose checkpoints rosellm serves."""

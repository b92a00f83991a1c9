"""Drafts: tokens that may come next, proposed before the model has said so. No torch."""

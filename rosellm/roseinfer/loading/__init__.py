"""From files on disk to named tensors, strictly."""

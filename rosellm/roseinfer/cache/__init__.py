"""The paged KV cache: blocks and tables here are numbers; the tensors are in ``storage``."""

"""The engine: a plain synchronous core, and the process and clients round it."""

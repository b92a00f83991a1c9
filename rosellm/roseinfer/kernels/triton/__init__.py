"""The operations on a CUDA device, as kernels in Triton, all of them our own.

Nothing outside this room imports triton. ``support`` says whether it can run here, and why not.
"""

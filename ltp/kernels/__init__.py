"""Triton kernels for GPUs; only :mod:`ltp.execution` and :mod:`ltp.deploy` use them, and only on CUDA."""

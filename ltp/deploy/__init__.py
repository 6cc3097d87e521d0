"""Inference: a frozen copy of a pruned classifier, optimised for speed on a CPU or, in ``cuda.py``, on a GPU.

Results equal those of :mod:`ltp.execution.packed`; the pruner selects the tokens. On a CPU this form adds prepacked and
quantised weights (:mod:`ltp.deploy.linears`) and uses few, large operations.
"""

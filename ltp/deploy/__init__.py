"""Inference on a CPU: a frozen copy of a pruned classifier, optimised for speed.

Results equal those of :mod:`ltp.execution.packed`; the pruner selects the tokens. This form adds prepacked and
quantised weights (:mod:`ltp.deploy.linears`) and uses few, large operations.
"""

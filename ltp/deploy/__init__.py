"""Serving on a CPU: a frozen copy of a pruned classifier in the form that runs fastest there.

It decides nothing: the pruner decides who survives, as in :mod:`ltp.execution.packed`, whose results it equals. It adds
prepacked and quantised weights (:mod:`ltp.deploy.linears`) and few, large operations.
"""

"""Post-training calibration of a pruned model to a FLOPs or latency budget (``python -m ltp.calibrate``).

- :mod:`~ltp.calibration.request`: settings and the checked request
- :mod:`~ltp.calibration.sample`: validation data, and the training examples on which costs are measured
- :mod:`~ltp.calibration.search`: the root search over the pruning strength; training uses it too
- :mod:`~ltp.calibration.flops`, :mod:`~ltp.calibration.latency`: the search for a FLOPs or a latency target
- :mod:`~ltp.calibration.run`: the whole command
- :mod:`~ltp.calibration.directory`: the new run directory
- :mod:`~ltp.calibration.summary`: the printed table
"""

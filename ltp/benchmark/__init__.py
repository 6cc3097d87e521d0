"""How fast pruning is: engines side by side in one process, in interleaved rounds. Needs neither Hydra nor Lightning.

:func:`run_benchmark` is behind ``python -m ltp.bench``; :func:`measured_speedup` is its small sister for a trained
model.
"""

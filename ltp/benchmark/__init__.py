"""Speed benchmark: compares inference engines in one process, in interleaved rounds. Uses neither Hydra nor Lightning.

:func:`~ltp.benchmark.compare.run_benchmark` implements ``python -m ltp.bench``;
:func:`~ltp.benchmark.compare.measured_speedup` is a short version that compares a pruned model with a dense one.
"""

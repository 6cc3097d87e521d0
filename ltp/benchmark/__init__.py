"""How fast pruning is: engines side by side in one process, in interleaved rounds. Needs neither Hydra nor Lightning.

:func:`run_benchmark` is behind ``python -m ltp.bench``; :func:`measured_speedup` is its small sister for a trained
model.
"""

from ltp.benchmark.compare import Plan, measured_speedup, run_benchmark
from ltp.benchmark.engines import DTYPES, ENGINES, WrongResultsError
from ltp.benchmark.models import SHAPES, random_classifier
from ltp.benchmark.profiles import calibrate, reach
from ltp.benchmark.sequences import LENGTHS, Batch, make_batches, random_sequences, synthetic_lengths

__all__ = [
    "DTYPES",
    "ENGINES",
    "LENGTHS",
    "SHAPES",
    "Batch",
    "Plan",
    "WrongResultsError",
    "calibrate",
    "make_batches",
    "measured_speedup",
    "random_classifier",
    "random_sequences",
    "reach",
    "run_benchmark",
    "synthetic_lengths",
]

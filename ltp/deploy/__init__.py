"""Serving on a CPU: a frozen copy of a pruned classifier in the form that runs fastest there.

It decides nothing: who survives is the pruner's decision, as in :mod:`ltp.packed`, whose results it equals. What it
adds is prepacked and quantised weights (:mod:`ltp.deploy.linears`) and few, large operations.
"""

from ltp.deploy.classifier import DeployedClassifier
from ltp.deploy.linears import DTYPES

__all__ = ["DTYPES", "DeployedClassifier"]

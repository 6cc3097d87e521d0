"""What a sweeper that optimises is told of a run: one number, the larger the better."""

import math
from collections.abc import Mapping
from typing import Any

_WORST_METRIC = -1.0  # of all metrics: correlations start there, accuracy and F1 at 0


def objective(results: Mapping[str, Any], flops_budget: float | None) -> float:
    """The main metric of a run within a budget; outside it, how far it is from the budget.

    A run over the budget says nothing about the metric at the budget, however good its own is. It ranks below every
    run within, and the further the lower, so that a sampler finds its way back.

    Args:
        results: the content of ``results.json``.
        flops_budget: the largest ``relative_flops`` allowed; None for no limit.

    Returns:
        The metric, in [-1, 1]; for a run over the budget -1 less the excess, in [-2, -1).
    """
    excess = 0.0 if flops_budget is None else results["relative_flops"] - flops_budget
    if excess > 0:
        return _WORST_METRIC - excess
    metric = float(results["metric"]["value"])
    return _WORST_METRIC if math.isnan(metric) else metric

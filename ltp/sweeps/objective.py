"""Objective of optimising sweepers: one number per run, to be maximised."""

from collections.abc import Mapping
from typing import Any

_WORST_METRIC = -1.0  # the lower bound of correlations; accuracy and F1 start at 0


def objective(results: Mapping[str, Any], flops_budget: float | None) -> float:
    """Return the main metric of a run within the budget, or a penalty for one that exceeds it.

    A run over the budget ranks below every run within it, whatever its metric. The penalty grows with the excess, so
    that a sampler is guided back to the budget.

    Args:
        results: content of ``results.json``.
        flops_budget: largest allowed ``relative_flops``; None for no limit.

    Returns:
        The metric, in [-1, 1] (-1 if undefined). For a run over the budget -1 minus the excess, in [-2, -1).
    """
    excess = 0.0 if flops_budget is None else results["relative_flops"] - flops_budget
    if excess > 0:
        return _WORST_METRIC - excess
    metric = results["metric"]["value"]
    return _WORST_METRIC if metric is None else float(metric)

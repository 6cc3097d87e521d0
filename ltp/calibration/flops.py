"""Calibrate a model to a target of relative FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ltp.calibration.search import TOLERANCE, TYPICAL_SLOPE, Calibrated, calibrate, measured_flops, strength_control
from ltp.data.sequences import Batch
from ltp.model.pretrained import LTPPreTrainedModel

_SUBSAMPLE_TOLERANCE = 0.01  # of a search on the subsample, in relative FLOPs

Tick = Callable[[int], None]  #: called with the number of examples computed since the last call


def flops_of(
    model: LTPPreTrainedModel, batches: Sequence[Batch], dtype: str, tick: Tick = lambda count: None
) -> Callable[[], float]:
    """Return a function that measures the relative FLOPs of a sample with the model's current pruning.

    Args:
        model: the classifier, on its device.
        batches: the sample.
        dtype: ``float32``, or ``bfloat16`` for autocast, as in the model's evaluations.
        tick: called after each measurement with its number of examples.
    """
    last: tuple[Any, float] | None = None  # pruning parameters and cost of the last measurement

    def cost() -> float:
        nonlocal last
        thresholds = model.thresholds
        pruning = model.config.pruning if thresholds is None else thresholds.tolist()
        if last is None or last[0] != pruning:  # a measurement of a large model takes a minute
            with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                flops, dense = measured_flops(model, batches).tolist()
            last = pruning, flops / dense
            tick(sum(len(batch["input_ids"]) for batch in batches))
        return last[1]

    return cost


def calibrate_flops(
    model: LTPPreTrainedModel, cost: Callable[[], float], rough: Callable[[], float] | None, target: float
) -> Calibrated:
    """Search the target cost on a subsample first, then on the whole sample.

    Args:
        model: the classifier; its thresholds or settings are changed in place.
        cost: measures relative FLOPs of the sample, with the model's current pruning.
        rough: measures relative FLOPs of a subsample; None skips the first search.
        target: target relative FLOPs.

    Returns:
        The result; ``trials`` counts measurements of the whole sample.

    Raises:
        UnreachableError: see :func:`ltp.calibration.search.calibrate`.
    """
    strength, slope = 1.0, TYPICAL_SLOPE
    if rough is not None and abs(cost() - target) > TOLERANCE:
        control = strength_control(model)
        near = calibrate(model, rough, target, tolerance=_SUBSAMPLE_TOLERANCE, reached=math.inf)
        strength, slope = near.strength, near.slope
        if control.initial == 0 or strength == 0:  # thresholds of 0 would lose their ratios
            control.reset_to_start()
            strength = 1.0
    result = calibrate(model, cost, target, slope=slope)
    return dataclasses.replace(result, strength=strength * result.strength)


def prepare_budgets(model: LTPPreTrainedModel, budgets: Sequence[float]) -> None:
    """Replace the budgets of a model with thresholds.

    Each new budget starts from the thresholds of the nearest old budget; without old budgets, from those in use.

    Args:
        model: the classifier; afterwards it uses the thresholds of the first budget.
        budgets: relative FLOPs, ascending; an empty sequence removes the old budgets.
    """
    thresholds = model.thresholds
    assert thresholds is not None
    old_thresholds = {}
    for budget in model.config.budgets if budgets else ():
        model.use_budget(budget)
        old_thresholds[budget] = thresholds.detach().clone()
    model.set_budgets(budgets)
    for budget in budgets if old_thresholds else ():
        model.use_budget(budget)
        in_use = model.thresholds
        assert in_use is not None
        with torch.no_grad():
            in_use.copy_(old_thresholds[min(old_thresholds, key=lambda other: abs(other - budget))])
    if budgets:
        model.use_budget(budgets[0])

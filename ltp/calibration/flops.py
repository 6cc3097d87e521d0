"""A model brought to a share of the dense FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ltp.calibration.search import TOLERANCE, TYPICAL_SLOPE, Calibrated, calibrate, measured_flops, strength_control
from ltp.data.sequences import Batch
from ltp.model.classifier import LTPForSequenceClassification

_ROUGH = 0.01  # of relative FLOPs: where the search on a part of the examples ends

Tick = Callable[[int], None]  # told how many examples were computed


def flops_of(
    model: LTPForSequenceClassification, batches: Sequence[Batch], dtype: str, tick: Tick = lambda count: None
) -> Callable[[], float]:
    """What measures the relative FLOPs of a sample, as the model prunes then.

    Args:
        model: on its device; executed packed.
        batches: the sample.
        dtype: ``float32``, or ``bfloat16`` for autocast, as the model's evaluations have it.
        tick: told the number of examples after each measurement.
    """
    last: tuple[Any, float] | None = None

    def cost() -> float:
        nonlocal last
        thresholds = model.thresholds
        stands = model.config.token_keep_rate if thresholds is None else thresholds.tolist()
        if last is None or last[0] != stands:  # asked again, a minute on a large model is spared
            with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                flops, dense = measured_flops(model, batches).tolist()
            last = stands, flops / dense
            tick(sum(len(batch["input_ids"]) for batch in batches))
        return last[1]

    return cost


def calibrate_flops(
    model: LTPForSequenceClassification, cost: Callable[[], float], rough: Callable[[], float] | None, target: float
) -> Calibrated:
    """Turn how hard a model prunes until it costs what is wished, on few examples before it is on all.

    Args:
        model: its thresholds, or its keep rate, are changed in place.
        cost: relative FLOPs of the sample, as the model stands.
        rough: of a part of it; None goes without.
        target: the wished cost.

    Returns:
        What was found; ``trials`` are those on all examples.

    Raises:
        UnreachableError: see :func:`ltp.calibration.search.calibrate`.
    """
    strength, slope = 1.0, TYPICAL_SLOPE
    if rough is not None and abs(cost() - target) > TOLERANCE:
        control = strength_control(model)
        near = calibrate(model, rough, target, tolerance=_ROUGH, reached=math.inf)
        strength, slope = near.strength, near.slope
        if control.initial == 0 or strength == 0:  # to begin at 0 would forget the thresholds' ratios
            control.reset_to_start()
            strength = 1.0
    found = calibrate(model, cost, target, slope=slope)
    return dataclasses.replace(found, strength=strength * found.strength)


def prepare_budgets(model: LTPForSequenceClassification, budgets: Sequence[float]) -> None:
    """Let a model of thresholds hold other budgets than it does.

    Each starts from the thresholds of the nearest one that was held; without any, from those in use.

    Args:
        model: its thresholds in use are the first budget's afterwards.
        budgets: relative FLOPs, ascending; none forgets those held.
    """
    thresholds = model.thresholds
    assert thresholds is not None
    held = {}
    for budget in model.config.budgets if budgets else ():
        model.use_budget(budget)
        held[budget] = thresholds.detach().clone()
    model.set_budgets(budgets)
    for budget in budgets if held else ():
        model.use_budget(budget)
        in_use = model.thresholds
        assert in_use is not None
        with torch.no_grad():
            in_use.copy_(held[min(held, key=lambda other: abs(other - budget))])
    if budgets:
        model.use_budget(budgets[0])

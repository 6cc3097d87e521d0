"""Agreement of a pruned classifier with the predictions that it makes without pruning. Needs no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltp.calibration.flops import Tick
from ltp.calibration.search import StrengthControl, strength_control
from ltp.data.sequences import Batch
from ltp.model.pretrained import LTPPreTrainedModel

_NARROW = 0.02  # the search stops at this width of the bracket, in log strength: some 0.005 of the FLOPs
_STEP_AFTER_ROUGH = 0.1  # first step, in log strength
_MAX_TRIALS = 40


@dataclass(frozen=True)
class Measured:
    """A measurement of a sample.

    Attributes:
        relative_flops: cost, as a share of the dense FLOPs.
        agreement: share of the examples with the unpruned model's prediction; NaN for a regression.
    """

    relative_flops: float
    agreement: float


@dataclass(frozen=True)
class Kept(Measured):
    """Result of :func:`keep_agreement`: the measurement, the pruning strength and the number of measurements."""

    strength: float
    trials: int


def measure_against_dense(
    model: LTPPreTrainedModel, batches: Sequence[Batch], dtype: str, tick: Tick = lambda count: None
) -> Callable[[], Measured]:
    """Return a function that measures a sample with the model's current pruning against the model without pruning.

    Args:
        model: a classifier with thresholds, on its device, in evaluation mode.
        batches: the sample.
        dtype: ``float32``, or ``bfloat16`` for autocast.
        tick: called after each measurement with its number of examples.
    """
    dense: Tensor | None = None

    @torch.inference_mode()
    def outputs() -> tuple[Tensor, float]:
        made, flops = [], torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                output = model(**{name: value.to(model.device) for name, value in batch.items()})
            made.append(decisions(output.logits, model.config.problem_type).cpu())
            flops += torch.stack([part.sum() for part in model.cost.flops_and_dense(output.token_lengths.cpu())])
        tick(sum(len(batch["input_ids"]) for batch in batches))
        return torch.cat(made), float(flops[0] / flops[1])

    def measure() -> Measured:
        nonlocal dense
        if dense is None:
            thresholds = model.thresholds
            assert thresholds is not None
            before = thresholds.detach().clone()
            with torch.no_grad():
                thresholds.zero_()  # importance is never negative: every token is kept
                dense, _ = outputs()
                thresholds.copy_(before)
        predicted, cost = outputs()
        if predicted.is_floating_point():
            return Measured(cost, math.nan)
        same = (predicted == dense).flatten(1).all(dim=1) if predicted.dim() > 1 else predicted == dense
        return Measured(cost, same.double().mean().item())

    return measure


def decisions(logits: Tensor, problem_type: str | None) -> Tensor:
    """Return what a classifier decides.

    Args:
        logits: (B, num_labels).
        problem_type: Hugging Face's name of the problem.

    Returns:
        Class ids, (B,) int64; of several labels a text those above one half, (B, num_labels) bool; of a regression the
        scores, (B, 1) float.
    """
    if problem_type == "multi_label_classification":
        return logits > 0
    return logits if logits.shape[1] == 1 else logits.argmax(dim=1)


def keep_agreement(
    model: LTPPreTrainedModel,
    measure: Callable[[], Measured],
    bound: float,
    rough: Callable[[], Measured] | None = None,
) -> Kept:
    """Prune as strongly as a bound on the agreement allows.

    The strength is doubled until the agreement falls below the bound, then the interval is bisected. Where the
    agreement rises again with the strength, a stronger pruning that keeps it may be missed.

    Args:
        model: a classifier with thresholds, which are changed in place.
        measure: see :func:`measure_against_dense`.
        bound: smallest agreement, in (0, 1].
        rough: measures a subsample, on which the search starts; None to start at the model's own strength.

    Returns:
        The strongest pruning tried that keeps the agreement.
    """
    control = strength_control(model)
    if rough is None:
        return _keep_agreement(control, measure, bound, 0.0, math.log(2))
    near = _keep_agreement(control, rough, bound, 0.0, math.log(2))
    return _keep_agreement(control, measure, bound, math.log(max(near.strength, control.weakest)), _STEP_AFTER_ROUGH)


def _keep_agreement(
    control: StrengthControl, measure: Callable[[], Measured], bound: float, position: float, step: float
) -> Kept:
    """Search from a log strength, in steps that double."""
    kept: Kept | None = None
    broken = math.inf  # log strength of the weakest pruning tried that breaks the bound
    trials = 0
    lowest, highest = math.log(control.weakest), math.log(control.strongest)
    while trials < _MAX_TRIALS:
        trials += 1
        control.apply(math.exp(position))
        measured = measure()
        if measured.agreement >= bound:
            kept = Kept(measured.relative_flops, measured.agreement, math.exp(position), trials)
        else:
            broken = position
        if kept is None:
            if position <= lowest:
                break
            position = max(position - step, lowest)
        elif broken == math.inf:
            if position >= highest:
                break
            position = min(position + step, highest)
        else:
            best = math.log(kept.strength)
            if broken - best < _NARROW:
                break
            position = (best + broken) / 2
            continue
        step *= 2
    if kept is None:  # not even the weakest pruning keeps it
        kept = Kept(1.0, 1.0, 0.0, trials)
    control.apply(kept.strength)
    return Kept(kept.relative_flops, kept.agreement, kept.strength, trials)

"""Search the pruning strength at which a model has a given cost.

No weights are trained and no labels are read. Thresholds keep their ratios: all are multiplied by one factor, the
strength. Other methods say with which settings they prune how strongly
(:meth:`~ltp.pruning.method.Method.at_strength`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE, variants
from ltp.pruning.method import Method

#: The search stops at this distance from the target, in relative FLOPs.
TOLERANCE = 0.002
#: Largest accepted distance from the target, in relative FLOPs; beyond it the target is unreachable.
REACHED = 0.01
_MAX_TRIALS = 40
#: Initial guess of d(relative FLOPs) / d(log strength). A trained MiniLM had −0.16 to −0.46.
TYPICAL_SLOPE = -0.3


class UnreachableError(ValueError):
    """No pruning strength has the target cost.

    Attributes:
        target: the target cost.
        lowest: the nearest cost at or below the target; if there is none, the lowest cost.
        highest: the cost above the target from which the cost jumps to ``lowest``, as on very few examples; None if
            even the strongest pruning costs more than the target.
    """

    def __init__(self, target: float, lowest: float, highest: float | None = None) -> None:
        nearest = f"the lowest is {lowest:.3f}"
        if highest is not None:
            nearest = f"it jumps from {highest:.3f} to {lowest:.3f}; more examples give smaller steps"
        super().__init__(f"a cost of {target:g} cannot be reached: {nearest}")
        self.target, self.lowest, self.highest = target, lowest, highest


class AboveDenseError(ValueError):
    """The cost without pruning is below the target.

    Attributes:
        target: the target cost.
        dense: the cost without pruning.
    """

    def __init__(self, target: float, dense: float) -> None:
        super().__init__(f"a cost of {target:g} cannot be reached: without pruning it is {dense:.3f}")
        self.target, self.dense = target, dense


#: Threshold of the last layer at strength 1, where no threshold is positive: LTP's, of importance with Z = 128. The
#: search finds others of any unit.
FINAL_THRESHOLD = 0.01
#: Thresholds of 0 or below start at this share of the smallest positive threshold.
SUBSTITUTE = 0.05


class StrengthControl(ABC):
    """Control how strongly a model prunes, by one number: the strength."""

    #: strength of the initial model: 1, or 0 if its thresholds prune nothing
    initial: float = 1.0
    #: at and below this strength no token is pruned
    weakest: float
    #: at and above this strength the pruning does not change
    strongest: float

    @abstractmethod
    def apply(self, strength: float) -> None:
        """Set the strength; 0 keeps every token."""

    @abstractmethod
    def reset_to_start(self) -> None:
        """Restore the initial pruning bit for bit."""


class ThresholdControl(StrengthControl):
    """Multiply the thresholds by the strength.

    If no threshold is positive, those of strength 1 rise linearly to :data:`FINAL_THRESHOLD`. Otherwise thresholds of 0
    or below, which a factor cannot raise, start at ``SUBSTITUTE`` times the smallest positive one. Thus every budget
    down to the classification token alone can be reached.
    """

    def __init__(self, model: LTPPreTrainedModel) -> None:
        thresholds = model.thresholds
        assert thresholds is not None
        start = thresholds.detach().clone()
        self.thresholds, self.original = thresholds, start
        if not bool((start > 0).any()):
            self.initial = 0.0
            start = torch.arange(1, len(start) + 1, device=start.device) * (FINAL_THRESHOLD / len(start))
        smallest = start[start > 0].min()
        self.start = torch.where(start > 0, start, SUBSTITUTE * smallest)
        # no score is above, so a threshold above it leaves only the classification token
        max_importance = model.pruner.method.largest_score(model.pruner.shape)
        self.strongest = 2 * max_importance / float(self.start.min())
        self.weakest = 1e-9 / float(self.start.max())

    def apply(self, strength: float) -> None:
        with torch.no_grad():
            self.thresholds.copy_(self.start * strength)

    def reset_to_start(self) -> None:
        with torch.no_grad():
            self.thresholds.copy_(self.original)


class SettingsControl(StrengthControl):
    """Change the settings of the method."""

    def __init__(self, model: LTPPreTrainedModel) -> None:
        self.model = model
        self.start = model.pruner.method
        self.weakest, self.strongest = self.start.strength_range

    def apply(self, strength: float) -> None:
        self.model.set_pruning(**self.start.at_strength(strength))

    def reset_to_start(self) -> None:
        self.model.set_pruning(**{key: getattr(self.start, key) for key in self.start.at_strength(1.0)})


def strength_control(model: LTPPreTrainedModel) -> StrengthControl:
    """Return the control for a model's pruning method.

    Raises:
        ValueError: the model does not prune, or its method cannot be brought to a cost.
    """
    method = model.pruner.method
    if model.config.prune_mode == DENSE_MODE:
        raise ValueError("prune_mode is none: a model that does not prune has nothing to calibrate")
    if not method.has_strength():
        raise ValueError(f"prune_mode is {method.name}, which has no setting that brings it to a cost")
    return ThresholdControl(model) if method.has_thresholds() else SettingsControl(model)


@torch.no_grad()
def measured_flops(model: LTPPreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Measure the FLOPs of examples under the hard rule.

    Args:
        model: the classifier; it runs in evaluation mode, and its mode is restored.
        batches: inputs of the model; labels are ignored.

    Returns:
        FLOPs and dense FLOPs, summed over the examples, (2,) float64.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    try:
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            lengths = model(**inputs).token_lengths.cpu()
            total += torch.stack([part.sum() for part in model.cost.flops_and_dense(lengths)])
    finally:
        model.train(was_training)
    return total


@dataclass(frozen=True)
class Calibrated:
    """Result of a search.

    Attributes:
        cost: the cost at ``strength``.
        strength: the pruning strength. The initial model has strength 1; if its thresholds pruned nothing it has
            strength 0, and 1 is the published schedule.
        trials: number of cost measurements.
        slope: d(cost) / d(log strength) near the end of the search.
    """

    cost: float
    strength: float
    trials: int
    slope: float


def calibrate(
    model: LTPPreTrainedModel,
    cost: Callable[[], float],
    target: float,
    *,
    tolerance: float = TOLERANCE,
    reached: float = REACHED,
    slope: float = TYPICAL_SLOPE,
) -> Calibrated:
    """Change how strongly a model prunes until it has the target cost.

    After any error, including errors of ``cost``, the model's initial pruning is restored.

    Args:
        model: the classifier; its thresholds or settings are changed in place.
        cost: measures the model's current cost, for example with :func:`measured_flops`; it must not rise with the
            strength.
        target: the target cost, in the unit of ``cost`` (a share of the dense cost).
        tolerance: the search stops at this distance from the target; a model already this near is not changed.
        reached: largest accepted distance of the nearest cost; the cost on few examples is a step function.
        slope: initial guess of d(cost) / d(log strength), for example from a search on a subsample; a good guess
            saves trials.

    Raises:
        UnreachableError: the strongest pruning costs more, or the cost jumps over the target.
        AboveDenseError: the model without pruning costs less.
        ValueError: the model does not prune.
    """
    control = strength_control(model)
    try:
        search = _search(control, cost, target, tolerance, slope)
        best = search.best
        if abs(best.cost - target) > reached:
            if search.under is None:
                raise UnreachableError(target, best.cost)
            if search.over is None:
                raise AboveDenseError(target, best.cost)
            raise UnreachableError(target, search.under, search.over)
    except BaseException:
        control.reset_to_start()
        raise
    if best.strength == control.initial:
        control.reset_to_start()
    else:
        control.apply(best.strength)
    return best


@dataclass(frozen=True)
class _Search:
    """Result of :func:`_search`.

    Attributes:
        best: the trial nearest to the target.
        over: the nearest cost above the target; None if there is none.
        under: the nearest cost at or below the target; None if there is none.
    """

    best: Calibrated
    over: float | None
    under: float | None


def _search(
    control: StrengthControl, cost: Callable[[], float], target: float, tolerance: float, slope: float = TYPICAL_SLOPE
) -> _Search:
    """Search the strength whose cost is nearest to the target, by the secant method over log strength.

    Steps grow until two trials bracket the target; then the bracket shrinks (safeguarded regula falsi). The control is
    left at the last trial's strength.
    """
    lowest, highest = math.log(control.weakest), math.log(control.strongest)
    position, max_step = (0.0 if control.initial else lowest), 0.5  # position: log strength; lowest stands for 0
    over: tuple[float, float] | None = None  # (position, cost) of the strongest trial above the target
    under: tuple[float, float] | None = None  # (position, cost) of the weakest trial at or below the target
    last: tuple[float, float] | None = None  # (position, cost) of the previous trial
    is_over: list[bool] = []  # whether each trial was above the target
    nearest, nearest_strength, trial = math.inf, 1.0, 0
    for trial in range(1, _MAX_TRIALS + 1):
        strength = math.exp(position) if position > lowest else 0.0
        if trial > 1:
            control.apply(strength)
        current = cost()
        if abs(current - target) <= abs(nearest - target):  # of equal costs take the later, nearer to the other side
            nearest, nearest_strength = current, strength
        is_over.append(current > target)
        if last is not None and position != last[0]:
            slope = (current - last[1]) / (position - last[0])
        last = (position, current)
        if is_over[-1]:
            over = last
        else:
            under = last
        if abs(current - target) <= tolerance:
            break
        if over is not None and under is not None:
            width = under[0] - over[0]
            if width < 1e-6:
                break
            fraction = (over[1] - target) / (over[1] - under[1])
            # stay away from the ends, and bisect if only one end has moved, so that the bracket shrinks
            is_one_sided = len(set(is_over[-3:])) == 1
            position = over[0] + width * (0.5 if is_one_sided else min(max(fraction, 0.05), 0.95))
        elif position == (highest if current > target else lowest):
            break
        elif position == lowest:  # the initial model prunes nothing: continue at the schedule
            position, over, last = 0.0, None, None
        else:
            step = min(max(abs((current - target) / slope), 0.02), max_step) if slope < 0 else max_step
            position = min(max(position + math.copysign(step, current - target), lowest), highest)
            max_step *= 2
    best = Calibrated(nearest, nearest_strength, trial, slope)
    return _Search(best, None if over is None else over[1], None if under is None else under[1])


def adopt_calibrated_settings(model: LTPPreTrainedModel) -> None:
    """Set the settings that describe calibrated thresholds, so that a later training starts with them."""
    for key, value in model.pruner.method.settings_of(model.pruner).items():
        setattr(model.config, key, value)
    model.pruner.method = model.config.method


def calibrated_settings(model: LTPPreTrainedModel, variant: str) -> dict[str, Any]:
    """Return the settings that a calibration of a variant without learned parameters has determined, by field."""
    method = model.pruner.method
    if variants()[variant].learned and method.has_thresholds():  # its thresholds are in the weights
        return {}
    return {name: getattr(method, name) for name in calibrated_names(type(method))}


def calibrated_names(method: type[Method]) -> list[str]:
    """Return the settings of a method that a calibration may change."""
    return [name for name, fact in method.settings().items() if fact.set_by_budget and not fact.learned]

"""A budget met without training: how hard a model prunes is turned up or down until its cost is the wished one.

Nothing is learned and no label is read. The thresholds keep their ratios: they are multiplied by one factor; methods
that keep a share of the tokens get another ``token_keep_rate``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.flops import flops_and_dense
from ltp.pruning.threshold import threshold_schedule

#: Of relative FLOPs: where the search stops.
TOLERANCE = 0.002
#: Of relative FLOPs: a budget that is missed by more cannot be met.
REACHED = 0.01
_MOST_TRIALS = 40
#: Of the relative FLOPs over the strength's logarithm: a search's first guess. A trained MiniLM had −0.16 to −0.46.
TYPICAL_SLOPE = -0.3


class UnreachableError(ValueError):
    """No strength gives the wished cost.

    Attributes:
        target: the wished cost.
        lowest: the lowest cost that was found.
        highest: the cost above the target from which it falls to ``lowest`` at once, as on very few examples; None
            where the hardest pruning costs more than the target.
    """

    def __init__(self, target: float, lowest: float, highest: float | None = None) -> None:
        nearest = f"the lowest is {lowest:.3f}"
        if highest is not None:
            nearest = f"it falls from {highest:.3f} to {lowest:.3f} at once; more examples have finer steps"
        super().__init__(f"a cost of {target:g} cannot be reached: {nearest}")
        self.target, self.lowest, self.highest = target, lowest, highest


class AboveDenseError(ValueError):
    """Even without pruning the cost is below the wished one.

    Attributes:
        target: the wished cost.
        dense: the cost without pruning.
    """

    def __init__(self, target: float, dense: float) -> None:
        super().__init__(f"a cost of {target:g} cannot be reached: without pruning it is {dense:.3f}")
        self.target, self.dense = target, dense


#: Of the smallest threshold that prunes: what stands for one that does not.
SUBSTITUTE = 0.05


class StrengthControl(ABC):
    """Turns how hard a model prunes, by one number: the strength."""

    #: where the model stood: 1, or 0 where its thresholds prune nothing
    initial: float = 1.0
    #: the strengths between which something changes: below the first everything is kept
    weakest: float
    strongest: float

    @abstractmethod
    def apply(self, strength: float) -> None:
        """Set the strength; 0 keeps every token."""

    @abstractmethod
    def reset_to_start(self) -> None:
        """Put the model back to where it stood, to the bit."""


class ThresholdControl(StrengthControl):
    """Multiplies the thresholds. Where none prunes, the schedule of the published ones is taken.

    Learned thresholds of 0 or below, which multiplied would stay so, are taken for a small share of the smallest of the
    others: they too prune in the end, so that every budget down to the classification token alone can be reached.
    """

    def __init__(self, model: LTPForSequenceClassification) -> None:
        thresholds = model.thresholds
        assert thresholds is not None
        start = thresholds.detach().clone()
        self.thresholds, self.original = thresholds, start
        if not bool((start > 0).any()):
            self.initial = 0.0
            start = threshold_schedule(0.01, len(start)).to(start.device)
        smallest = start[start > 0].min()
        self.start = torch.where(start > 0, start, SUBSTITUTE * smallest)
        # importance is at most N/Z, so that this leaves nothing but the classification token
        highest = max(1.0, model.config.max_position_embeddings / model.config.score_length)
        self.strongest = 2 * highest / float(self.start.min())
        self.weakest = 1e-9 / float(self.start.max())

    def apply(self, strength: float) -> None:
        with torch.no_grad():
            self.thresholds.copy_(self.start * strength)

    def reset_to_start(self) -> None:
        with torch.no_grad():
            self.thresholds.copy_(self.original)


class KeepRateControl(StrengthControl):
    """Moves ``token_keep_rate`` away from 1."""

    def __init__(self, model: LTPForSequenceClassification) -> None:
        self.model = model
        self.original = model.config.token_keep_rate
        self.start = max(1.0 - self.original, 1e-3)
        self.weakest, self.strongest = 1e-5 / self.start, 11 / self.start  # shares of a token, and −10

    def apply(self, strength: float) -> None:
        self.model.set_pruning(token_keep_rate=max(1.0 - self.start * strength, -10.0))

    def reset_to_start(self) -> None:
        self.model.set_pruning(token_keep_rate=self.original)


def strength_control(model: LTPForSequenceClassification) -> StrengthControl:
    """The dial of a model's pruning method.

    Raises:
        ValueError: the model does not prune.
    """
    if model.thresholds is not None:
        return ThresholdControl(model)
    if model.config.prune_mode == "none":
        raise ValueError("prune_mode is none: a model that does not prune has nothing to calibrate")
    return KeepRateControl(model)


@torch.no_grad()
def measured_flops(model: LTPForSequenceClassification, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """FLOPs of examples under the hard rule, and their dense FLOPs: (2,) float64.

    Args:
        model: left in the mode it is in.
        batches: what the model takes; labels are ignored.
    """
    was_training = model.training
    model.eval()
    sizes = (model.config.hidden_size, model.config.intermediate_size)
    total = torch.zeros(2, dtype=torch.float64)
    try:
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            lengths = model(**inputs).token_lengths.cpu()
            total += torch.stack([part.sum() for part in flops_and_dense(lengths, *sizes)])
    finally:
        model.train(was_training)
    return total


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        cost: what the examples cost now.
        strength: what the model's pruning was turned to. 1 is where it stood; where its thresholds pruned nothing, it
            stood at 0, and 1 is the published schedule.
        trials: how often the cost was measured.
        slope: of the cost over the strength's logarithm, near the end of the search.
    """

    cost: float
    strength: float
    trials: int
    slope: float


def calibrate(
    model: LTPForSequenceClassification,
    cost: Callable[[], float],
    target: float,
    *,
    tolerance: float = TOLERANCE,
    reached: float = REACHED,
    slope: float = TYPICAL_SLOPE,
) -> Calibrated:
    """Turn how hard a model prunes until it costs what is wished.

    Args:
        model: its thresholds, or its keep rate, are changed in place.
        cost: measures it as it stands, such as by :func:`measured_flops`; falls where the model prunes harder.
        target: the wished cost, in the unit of ``cost``: a share of the dense cost.
        tolerance: the search stops where the cost is so near; a model that already is is left alone.
        reached: how far the nearest cost may be; a cost on few examples has steps.
        slope: what an earlier search has found, such as one on a part of the examples; a good one spares trials.

    Raises:
        UnreachableError: even the hardest pruning costs more, or the cost leaps over the target.
        AboveDenseError: even without pruning it costs less.
        ValueError: the model does not prune. After any error, also of ``cost``, the model is as it was.
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
    """How a search ended.

    Attributes:
        best: what is nearest to the target.
        over, under: the nearest costs that were found above and below it, or at it; None where there is none.
    """

    best: Calibrated
    over: float | None
    under: float | None


def _search(
    control: StrengthControl, cost: Callable[[], float], target: float, tolerance: float, slope: float = TYPICAL_SLOPE
) -> _Search:
    """The strength whose cost is nearest to the target: secants within a bracket, in the strength's logarithm.

    The dial is left at the last strength that was tried.
    """
    lowest, highest = math.log(control.weakest), math.log(control.strongest)
    place, step = (0.0 if control.initial else lowest), 0.5
    over: tuple[float, float] | None = None  # (place, cost) of the hardest pruning known to cost too much
    under: tuple[float, float] | None = None  # and of the softest known to cost too little
    last: tuple[float, float] | None = None  # and of the trial before
    sides: list[bool] = []  # whether each trial cost too much
    nearest, nearest_strength, trial = math.inf, 1.0, 0
    for trial in range(1, _MOST_TRIALS + 1):
        strength = math.exp(place) if place > lowest else 0.0
        if trial > 1:
            control.apply(strength)
        now = cost()
        if abs(now - target) <= abs(nearest - target):  # of equal costs the one that is nearer to the other side
            nearest, nearest_strength = now, strength
        sides.append(now > target)
        if last is not None and place != last[0]:
            slope = (now - last[1]) / (place - last[0])
        last = (place, now)
        if sides[-1]:
            over = last
        else:
            under = last
        if abs(now - target) <= tolerance:
            break
        if over is not None and under is not None:
            width = under[0] - over[0]
            if width < 1e-6:
                break
            share = (over[1] - target) / (over[1] - under[1])
            # away from the ends, and by half where one side is all that moves, so that the bracket shrinks
            stuck = len(set(sides[-3:])) == 1
            place = over[0] + width * (0.5 if stuck else min(max(share, 0.05), 0.95))
        elif place == (highest if now > target else lowest):
            break
        elif place == lowest:  # where a model without pruning stood: on to the schedule
            place, over, last = 0.0, None, None
        else:
            far = min(max(abs((now - target) / slope), 0.02), step) if slope < 0 else step
            place = min(max(place + math.copysign(far, now - target), lowest), highest)
            step *= 2
    best = Calibrated(nearest, nearest_strength, trial, slope)
    return _Search(best, None if over is None else over[1], None if under is None else under[1])


def update_final_threshold(model: LTPForSequenceClassification) -> None:
    """Let given thresholds be given from now on as a budget left them: training starts them again from this number."""
    thresholds = model.thresholds
    assert thresholds is not None
    last = float(thresholds[-1].detach())
    if 0 <= last < 1:  # the range of a configuration
        model.config.final_token_threshold = last

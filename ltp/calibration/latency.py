"""Calibrate a model to a target latency on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ltp.calibration.search import AboveDenseError, UnreachableError, calibrate, strength_control
from ltp.data.sequences import Batch
from ltp.deploy.model import DeployedModel
from ltp.errors import RunError, UserError
from ltp.evaluation.scoring import Engine
from ltp.model.pretrained import LTPPreTrainedModel

#: Accepted distance of the final measurement from the target, as a share of the target.
ACCEPTED = 0.1
_SEARCHED = 0.03  # the search stops at this distance from the target, as a share of the target
_ATTEMPTS = 3  # number of searches, in case the machine's speed changes before the final measurement
_SHORT, _LONG = (1.0, 4.0), (3.0, 12.0)  # seconds of a measurement (see Stopwatch) in the search and at its end


class ServedModel:
    """A model in the form in which it is served, whose pruning can be updated.

    Args:
        model: the classifier, in evaluation mode, on the CPU. Unless ``deployed``, it is moved to ``device``.
        execution: ``deployed`` or ``packed``.
        dtype: ``float32`` or ``bfloat16``; deployed also ``int8``.
        device: device of a packed model.

    Raises:
        UserError: this machine cannot compute in ``dtype``.
    """

    def __init__(self, model: LTPPreTrainedModel, execution: str, dtype: str, device: torch.device) -> None:
        self.model, self.execution, self.dtype = model, execution, dtype
        self.device = torch.device("cpu") if execution == "deployed" else device
        try:
            self._engine = Engine.create(model, execution, dtype, self.device)
        except RuntimeError as error:
            raise UserError(f"dtype={dtype}: {error}") from error

    def update_pruning(self) -> None:
        """Copy the model's current pruning."""
        deployed = self._engine.forward
        if isinstance(deployed, DeployedModel):  # keep the prepacked weights: prepacking takes longer than a trial
            deployed.set_pruner(self.model.pruner)

    def __call__(self, batch: Batch) -> None:
        """Compute a batch, and wait for the result."""
        self._engine(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Stopwatch:
    """Measure the median milliseconds of one batch's forward pass.

    Args:
        served: the model to time.
        batches: the batches to time it on, in this order.
        clock: returns seconds.
        tick: called after each measurement.
    """

    def __init__(
        self,
        served: ServedModel,
        batches: Sequence[Batch],
        clock: Callable[[], float] = time.perf_counter,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.served, self.batches, self.clock, self.tick = served, batches, clock, tick

    def __call__(self, seconds: tuple[float, float]) -> float:
        """Measure with the model's current pruning, after one untimed round through all batches.

        Args:
            seconds: minimum and maximum duration. Rounds continue until there are at least three and the minimum is
                reached; after the maximum no further round starts.

        Returns:
            Milliseconds per batch.
        """
        self.served.update_pruning()
        for batch in self.batches:  # oneDNN compiles code for new shapes
            self.served(batch)
        minimum, maximum = seconds
        start, rounds = self.clock(), 0
        times: list[float] = []
        while not rounds or ((rounds < 3 or self.clock() - start < minimum) and self.clock() - start < maximum):
            for batch in self.batches:
                started = self.clock()
                self.served(batch)
                times.append(self.clock() - started)
            rounds += 1
        self.tick()
        return 1000 * statistics.median(times)


@dataclass(frozen=True)
class Latency:
    """Result of a latency calibration. Latencies are medians in milliseconds per batch.

    Attributes:
        reached: latency of the final measurement, after the search.
        before: latency of the initial model.
        dense: latency without pruning.
        lowest: latency with the strongest pruning.
        strength: see :class:`~ltp.calibration.search.Calibrated`.
        trials: number of measurements in the search.
    """

    reached: float
    before: float
    dense: float
    lowest: float
    strength: float
    trials: int


def calibrate_latency(model: LTPPreTrainedModel, stopwatch: Stopwatch, target: float) -> Latency:
    """Change how strongly a model prunes until a batch takes the target time on this machine.

    After any error the model's initial pruning is restored.

    Args:
        model: the classifier; its thresholds or settings are changed in place.
        stopwatch: measures the model with its current pruning.
        target: milliseconds per batch.

    Raises:
        UserError: the target is outside the range between strongest and no pruning.
        RunError: the measurements contradict each other.
    """
    control = strength_control(model)
    try:
        control.apply(0.0)
        dense = stopwatch(_SHORT)
        control.apply(control.strongest)
        lowest = stopwatch(_SHORT)
    finally:
        control.reset_to_start()
    setting = f"target_latency_ms={target:g}"
    if target > dense * (1 + ACCEPTED):
        bound = f", down to {lowest:.3g}" if lowest < dense else ""  # a small model may gain nothing
        raise UserError(
            f"{setting} is more than the {dense:.3g} ms that a batch takes without pruning on this machine: nothing "
            f"need be pruned. Give less than that{bound}."
        )
    if target < lowest * (1 - ACCEPTED):
        raise UserError(
            f"{setting} cannot be reached: on this machine a batch takes {lowest:.3g} ms with the hardest pruning, and "
            f"{dense:.3g} ms without. Give something between, or serve in another way (dtype=…, threads=…)."
        )
    strength = 1.0
    measured: list[float] = []

    def relative_latency() -> float:  # like relative FLOPs, for which the search is tuned
        measured.append(stopwatch(_SHORT))
        return measured[-1] / dense

    try:
        for _ in range(_ATTEMPTS):
            share = target / dense
            result = calibrate(model, relative_latency, share, tolerance=_SEARCHED * share, reached=ACCEPTED * share)
            strength *= result.strength
            reached = stopwatch(_LONG)
            if abs(reached - target) <= ACCEPTED * target:
                return Latency(reached, measured[0], dense, lowest, strength, len(measured))
        reason = f"the model took {reached:.3g} ms when it was measured again after the search"
    except (UnreachableError, AboveDenseError) as error:  # by noise near an end of the range, or a jump of the latency
        reason = _contradiction(error, dense)
    except BaseException:
        control.reset_to_start()
        raise
    control.reset_to_start()
    raise RunError(
        f"{setting}: {reason}. Measurements are this unsteady where the machine is busy with other things: try again "
        "when it is not, or with fewer threads (threads=1)."
    )


def _contradiction(error: UnreachableError | AboveDenseError, dense: float) -> str:
    """Describe, in milliseconds, how the search contradicts the first measurements."""
    if isinstance(error, AboveDenseError):
        return f"a batch took {dense:.3g} ms without pruning, and then {error.dense * dense:.3g} ms"
    if error.highest is None:
        return f"no later measurement was below {error.lowest * dense:.3g} ms"
    return f"the latency jumps from {error.highest * dense:.3g} to {error.lowest * dense:.3g} ms"

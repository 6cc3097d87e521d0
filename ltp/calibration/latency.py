"""A model brought to a latency on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ltp.calibration.search import AboveDenseError, UnreachableError, calibrate, strength_control
from ltp.data.sequences import Batch
from ltp.deploy.classifier import DeployedClassifier
from ltp.errors import RunError, UserError
from ltp.evaluation.scoring import Engine
from ltp.model.classifier import LTPForSequenceClassification

#: Of the wished milliseconds: how far a fresh measurement may be.
ACCEPTED = 0.1
_SEARCHED = 0.03  # of the wished milliseconds, where the search stops
_ATTEMPTS = 3  # searches, where the machine changes its pace between a search and the fresh measurement
_SHORT, _LONG = (1.0, 4.0), (3.0, 12.0)  # seconds that a measurement takes, of a search and at its end: see Stopwatch


class ServedModel:
    """The model as it would be served, pruning as hard as the model does.

    Args:
        model: the classifier, in evaluation mode: on the CPU for ``deployed``. It is moved to ``device`` otherwise.
        execution: ``deployed`` or ``packed``.
        dtype: ``float32``, ``bfloat16``; deployed also ``int8``.
        device: where packed models compute.

    Raises:
        UserError: this machine cannot compute in the type.
    """

    def __init__(self, model: LTPForSequenceClassification, execution: str, dtype: str, device: torch.device) -> None:
        self.model, self.execution, self.dtype = model, execution, dtype
        self.device = torch.device("cpu") if execution == "deployed" else device
        try:
            self._engine = Engine.of(model, execution, dtype, self.device)
        except RuntimeError as error:
            raise UserError(f"dtype={dtype}: {error}") from error

    def update_pruning(self) -> None:
        """Prune as the model does now."""
        deployed = self._engine.forward
        if isinstance(deployed, DeployedClassifier):  # its weights stay: to prepack them for each trial would cost most
            deployed.set_pruner(self.model.pruner)

    def __call__(self, batch: Batch) -> None:
        """Compute a batch, and wait for it."""
        self._engine(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Stopwatch:
    """Median milliseconds of a forward pass of one batch.

    Args:
        served: what is timed.
        batches: what it is timed on, in the order of serving.
        clock: seconds.
        tick: told after each measurement.
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
        """Measure as the model prunes now, after a round without the clock.

        Args:
            seconds: rounds through all batches go on until there are three of them that took so long together; none
                begins after the second number.
        """
        self.served.update_pruning()
        for batch in self.batches:  # oneDNN makes code for shapes that it has not seen yet
            self.served(batch)
        least, most = seconds
        began, rounds = self.clock(), 0
        times: list[float] = []
        while not rounds or ((rounds < 3 or self.clock() - began < least) and self.clock() - began < most):
            for batch in self.batches:
                started = self.clock()
                self.served(batch)
                times.append(self.clock() - started)
            rounds += 1
        self.tick()
        return 1000 * statistics.median(times)


@dataclass(frozen=True)
class Latency:
    """A latency that was searched for.

    Attributes:
        reached: milliseconds a batch, measured afresh after the search.
        before, dense, lowest: as the model stood, without pruning, and with the hardest, in milliseconds a batch.
        strength: see :class:`~ltp.calibration.search.Calibrated`.
        trials: how often it was measured while searching.
    """

    reached: float
    before: float
    dense: float
    lowest: float
    strength: float
    trials: int


def calibrate_latency(model: LTPForSequenceClassification, stopwatch: Stopwatch, target: float) -> Latency:
    """Turn how hard a model prunes until a batch takes as long as wished, on this machine and as it is now.

    Args:
        model: its thresholds, or its keep rate, are changed in place.
        stopwatch: measures it as it stands.
        target: milliseconds a batch.

    Raises:
        UserError: the target is out of what pruning can reach.
        RunError: the measurements contradict each other. The model is as it was then, too.
    """
    control = strength_control(model)
    try:
        control.apply(0.0)
        dense = stopwatch(_SHORT)
        control.apply(control.strongest)
        lowest = stopwatch(_SHORT)
    finally:
        control.reset_to_start()
    given = f"target_latency_ms={target:g}"
    if target > dense * (1 + ACCEPTED):
        raise UserError(
            f"{given} is more than the {dense:.3g} ms that a batch takes without pruning on this machine: nothing need "
            f"be pruned. Give less than that, down to {lowest:.3g}."
        )
    if target < lowest * (1 - ACCEPTED):
        raise UserError(
            f"{given} cannot be reached: on this machine a batch takes {lowest:.3g} ms with the hardest pruning, and "
            f"{dense:.3g} ms without. Give something between, or serve in another way (dtype=…, threads=…)."
        )
    strength = 1.0
    measured: list[float] = []

    def share() -> float:
        measured.append(stopwatch(_SHORT))
        return measured[-1] / dense  # so that the search sees what it sees with FLOPs

    try:
        for _ in range(_ATTEMPTS):
            wanted = target / dense
            found = calibrate(model, share, wanted, tolerance=_SEARCHED * wanted, reached=ACCEPTED * wanted)
            strength *= found.strength
            reached = stopwatch(_LONG)
            if abs(reached - target) <= ACCEPTED * target:
                return Latency(reached, measured[0], dense, lowest, strength, len(measured))
        why = f"what the search found took {reached:.3g} ms when it was measured again"
    except (UnreachableError, AboveDenseError) as error:  # at one end but for the noise, or between two strengths
        why = _contradiction(error, dense)
    except BaseException:
        control.reset_to_start()
        raise
    control.reset_to_start()
    raise RunError(
        f"{given}: {why}. Measurements are this unsteady where the machine is busy with other things: try again when "
        "it is not, or with fewer threads (threads=1)."
    )


def _contradiction(error: UnreachableError | AboveDenseError, dense: float) -> str:
    if isinstance(error, AboveDenseError):
        return f"a batch took {dense:.3g} ms without pruning, and then {error.dense * dense:.3g} ms"
    if error.highest is None:
        return f"no pruning came below {error.lowest * dense:.3g} ms again"
    return f"it leaps from {error.highest * dense:.3g} to {error.lowest * dense:.3g} ms"

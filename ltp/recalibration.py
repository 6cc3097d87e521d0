"""A finished model brought to a budget: the sample that it is measured on, the clock, and what the new run is worth."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ltp.benchmark.report import hardware
from ltp.benchmark.sequences import Batch, make_batches
from ltp.calibration import (
    TOLERANCE,
    AboveDenseError,
    Calibrated,
    UnreachableError,
    calibrate,
    dial,
    measured_flops,
)
from ltp.checkpoints import Checkpoint
from ltp.config import TaskSettings
from ltp.data import GLUEDataModule
from ltp.deploy import DeployedClassifier
from ltp.errors import RunError, UserError
from ltp.evaluation import Engine, evaluate, summarise
from ltp.modeling import LTPForSequenceClassification
from ltp.plan import check_labels, task_of
from ltp.restored import check_tokens, longest_input
from ltp.sources import load_splits

#: Of the wished milliseconds: how far a fresh measurement may be.
ACCEPTED = 0.1
_SEARCHED = 0.03  # of the wished milliseconds, where the search stops
_ATTEMPTS = 3  # searches, where the machine changes its pace between a search and the fresh measurement
_TIMED = 64  # sequences that latency is measured on, unless that is fewer than _FEWEST batches
_FEWEST = 5
_SHORT, _LONG = (1.0, 4.0), (3.0, 12.0)  # seconds that a measurement takes, of a search and at its end: see Stopwatch
_EVALUATION_BATCH = 64
_TYPICAL_TRIALS = 7
_MANY = 256  # examples from which on a search begins on a part of them, every _MANIETH, and ends there so near:
_MANIETH, _ROUGH = 8, 0.01

Tick = Callable[[int], None]  # told how many examples were computed


def read_data(
    checkpoint: Checkpoint,
    task: TaskSettings,
    data_dir: str | None,
    tokenizer: PreTrainedTokenizerBase,
    model: LTPForSequenceClassification,
) -> dict[str, GLUEDataModule]:
    """A task's validation splits, tokenised: a data module each; the first, the main one's, has training rows too.

    Raises:
        UserError: data, tokenizer and model do not fit.
    """
    splits = load_splits(
        task_of(task),
        data_dir=data_dir,
        train_file=task.train_file,
        validation_file=task.validation_file,
        max_train_samples=task.max_train_samples,
        max_validation_samples=task.max_validation_samples,
    )
    check_labels(checkpoint, splits.task)
    if task.max_length > (limit := longest_input(model, tokenizer)):
        raise UserError(f"task.max_length={task.max_length}: the model reads at most {limit} tokens")
    modules = {}
    for name, split in splits.validation.items():
        modules[name] = GLUEDataModule(
            dataclasses.replace(splits, validation={name: split}),
            tokenizer,
            batch_size=_EVALUATION_BATCH,
            eval_batch_size=_EVALUATION_BATCH,
            max_length=task.max_length,
        )
        modules[name].setup("validate" if len(modules) > 1 else "fit")
    return modules


@dataclass(frozen=True)
class Sample:
    """Training examples to measure with, as long as those of the main validation split. Labels are not among them.

    Attributes:
        ids: token ids of each, the short ones first.
        types: their token types, where the tokenizer makes them.
        pad_token_id: what batches are padded with.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    pad_token_id: int

    @classmethod
    def of(cls, data: GLUEDataModule, examples: int, model: LTPForSequenceClassification) -> Sample:
        """The sample that training calibrates on, of so many examples, or fewer where there are no more.

        Raises:
            UserError: the tokenizer does not belong to the model.
        """
        found: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        for batch in data.calibration_batches(examples):
            check_tokens(int(batch["input_ids"].max()), model)
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            for name in found.keys() & batch.keys():
                found[name] += [row[:length] for row, length in zip(batch[name].tolist(), lengths, strict=True)]
        return cls(found["input_ids"], found["token_type_ids"] or None, int(data.tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, *, every: int = 1) -> list[Batch]:
        """All of it, or every so manieth, in batches of examples that are about as long."""
        return self._batches(range(every // 2, len(self), every), size)

    def timed_batches(self, size: int, seed: int = 0) -> list[Batch]:
        """As many full batches as latency is measured on, in random order; their lengths are those of the sample.

        Raises:
            UserError: the sample is smaller than a batch.
        """
        if size > len(self):
            raise UserError(
                f"batch_size={size}: there are {len(self)} examples to measure with; give more with examples=…, or "
                "take a smaller batch"
            )
        count = min(max(_TIMED // size, _FEWEST), len(self) // size) * size
        rows = ((np.arange(count) + 0.5) * len(self) / count).astype(int)  # quantiles
        return self._batches(np.random.default_rng(seed).permutation(rows).tolist(), size)

    def _batches(self, rows: Sequence[int], size: int) -> list[Batch]:
        types = None if self.types is None else [self.types[row] for row in rows]
        ids = [self.ids[row] for row in rows]
        return make_batches(ids, size, pad_token_id=self.pad_token_id, token_types=types)


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
        UnreachableError: see :func:`ltp.calibration.calibrate`.
    """
    pressure = 1.0
    if rough is not None and abs(cost() - target) > TOLERANCE:
        turned = dial(model)
        pressure = calibrate(model, rough, target, tolerance=_ROUGH, reached=math.inf).pressure
        if turned.stood == 0 or pressure == 0:  # to begin at 0 would forget the thresholds' ratios
            turned.undo()
            pressure = 1.0
    found = calibrate(model, cost, target)
    return dataclasses.replace(found, pressure=pressure * found.pressure)


# -- several budgets --------------------------------------------------------------------------------------------


def hold(model: LTPForSequenceClassification, budgets: Sequence[float]) -> None:
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
    model.hold_budgets(budgets)
    for budget in budgets if held else ():
        model.use_budget(budget)
        in_use = model.thresholds
        assert in_use is not None
        with torch.no_grad():
            in_use.copy_(held[min(held, key=lambda other: abs(other - budget))])
    if budgets:
        model.use_budget(budgets[0])


# -- latency ----------------------------------------------------------------------------------------------------


class Served:
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

    def follow(self) -> None:
        """Prune as the model does now."""
        deployed = self._engine.forward
        if isinstance(deployed, DeployedClassifier):  # its weights stay: to prepack them for each trial would cost most
            deployed._pruner = copy.deepcopy(self.model.pruner).cpu().eval().requires_grad_(False)

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
        served: Served,
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
        self.served.follow()
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
        pressure: see :class:`~ltp.calibration.Calibrated`.
        trials: how often it was measured while searching.
    """

    reached: float
    before: float
    dense: float
    lowest: float
    pressure: float
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
    turned = dial(model)
    try:
        turned.turn(0.0)
        dense = stopwatch(_SHORT)
        turned.turn(turned.most)
        lowest = stopwatch(_SHORT)
    finally:
        turned.undo()
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
    pressure = 1.0
    measured: list[float] = []

    def share() -> float:
        measured.append(stopwatch(_SHORT))
        return measured[-1] / dense  # so that the search sees what it sees with FLOPs

    try:
        for _ in range(_ATTEMPTS):
            wanted = target / dense
            found = calibrate(model, share, wanted, tolerance=_SEARCHED * wanted, reached=ACCEPTED * wanted)
            pressure *= found.pressure
            reached = stopwatch(_LONG)
            if abs(reached - target) <= ACCEPTED * target:
                return Latency(reached, measured[0], dense, lowest, pressure, len(measured))
        why = f"what the search found took {reached:.3g} ms when it was measured again"
    except (UnreachableError, AboveDenseError) as error:  # at one end but for the noise, or between two pressures
        why = _contradiction(error, dense)
    except BaseException:
        turned.undo()
        raise
    turned.undo()
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


# -- what the model is worth ------------------------------------------------------------------------------------


def score(
    model: LTPForSequenceClassification,
    data: dict[str, GLUEDataModule],
    dtype: str,
    device: torch.device,
    tick: Tick = lambda count: None,
) -> dict[str, Any]:
    """What ``results.json`` says of a model on its validation splits, as after a training.

    Returns:
        ``metric``, ``metrics``, the keys of :meth:`ltp.module.CostMetric.compute` and ``thresholds``.
    """
    engine = Engine.of(model, "packed", dtype, device)
    result: dict[str, Any] = {}
    for name, module in data.items():
        found = summarise(evaluate(engine, module, model, tick), module.task, model)
        if not result:
            result = {key: value for key, value in found.items() if key not in ("examples", "input_tokens")}
        else:
            suffix = "_" + name.removeprefix("validation_")
            result["metrics"] |= {f"{metric}{suffix}": value for metric, value in found["metrics"].items()}
    thresholds = model.thresholds
    return {**result, "thresholds": None if thresholds is None else thresholds.tolist()}


# -- all of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What is to be met: shares of the dense FLOPs, ascending, or milliseconds of a batch as it is served."""

    flops: Sequence[float] = ()
    milliseconds: float | None = None
    batch_size: int = 1
    execution: str = "deployed"
    dtype: str = "float32"


def meet(
    wish: Wish,
    model: LTPForSequenceClassification,
    data: dict[str, GLUEDataModule],
    sample: Sample,
    *,
    dtype: str,
    device: torch.device,
    shown: Callable[[int], AbstractContextManager[Tick]] = lambda total: contextlib.nullcontext(lambda count: None),
) -> dict[str, Any]:
    """Turn a model to what is wished, and score it on its validation splits.

    Args:
        wish: one or several budgets. Several need thresholds, which the model holds afterwards; it is left at the
            largest.
        model: on the CPU, in evaluation mode; it is moved to ``device``.
        data: see :func:`read_data`.
        sample: what the budget is met on.
        dtype: of the scoring and of the counting, ``float32`` or ``bfloat16``.
        device: where both are computed.
        shown: makes a progress bar of so many examples.

    Returns:
        What ``results.json`` says: the keys of :func:`score`, ``budgets`` (the same of each) and ``calibrated``, where
        ``reached``, ``relative_flops`` (of the ``examples`` that were measured), ``pressure`` and ``trials`` are
        lists, one a budget.

    Raises:
        UnreachableError, UserError, RunError: it cannot be met.
    """
    served, timed = None, []
    if wish.milliseconds is not None:
        timed = sample.timed_batches(wish.batch_size)
        served = Served(model, wish.execution, wish.dtype, device)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides self from mypy
    has_thresholds = model.thresholds is not None
    used = len(sample) if served is None else len(timed) * wish.batch_size
    searching = _TYPICAL_TRIALS * used
    scoring = sum(len(next(iter(module.splits.validation.values()))) for module in data.values())
    scores, reached, costs, pressures, trials = [], [], [], [], []
    extra: dict[str, Any] = {}
    with shown(max(len(wish.flops), 1) * (searching + scoring)) as advance:
        tick = _Ticks(advance)
        cost = flops_of(model, timed or sample.batches(_EVALUATION_BATCH), dtype, tick)
        rough = None
        if len(sample) >= _MANY:
            rough = flops_of(model, sample.batches(_EVALUATION_BATCH, every=_MANIETH), dtype, tick)
        before = {"sample_relative_flops": cost()}
        if has_thresholds:
            hold(model, wish.flops)
        for target in wish.flops:
            tick.begin(searching)
            if has_thresholds:
                model.use_budget(target)
            found = calibrate_flops(model, cost, rough, target)
            reached.append(found.cost)
            costs.append(found.cost)
            pressures.append(found.pressure)
            trials.append(found.trials)
            tick.begin(scoring)
            scores.append(score(model, data, dtype, device, tick))
        if served is not None and wish.milliseconds is not None:
            tick.begin(searching)
            stopwatch = Stopwatch(served, timed, tick=lambda: tick(used))
            latency = calibrate_latency(model, stopwatch, wish.milliseconds)
            reached, pressures, trials = [latency.reached], [latency.pressure], [latency.trials]
            before["latency_ms"] = latency.before
            extra = {"dense_ms": latency.dense, "lowest_ms": latency.lowest}
            extra |= _timed_on(served.device)
            tick.begin(scoring)
            scores.append(score(model, data, dtype, device, tick))
            costs.append(cost())
        tick.begin(0)
    if model.thresholds is None:
        extra["token_keep_rate"] = model.config.token_keep_rate
    return {
        **scores[-1],
        "budgets": [{"budget": target, **one} for target, one in zip(wish.flops, scores, strict=False)],
        "calibrated": {
            "reached": reached,
            "relative_flops": costs,
            "pressure": pressures,
            "trials": trials,
            "examples": used,
            "before": before,
            **extra,
        },
    }


def _timed_on(device: torch.device) -> dict[str, Any]:
    facts = hardware(device)
    return {"processor": facts["device"]} | ({"threads": facts["threads"]} if device.type == "cpu" else {})


class _Ticks:
    """Shares a progress bar out between phases whose lengths are not known before."""

    def __init__(self, advance: Tick) -> None:
        self._advance, self._left = advance, 0

    def begin(self, total: int) -> None:
        """Begin a phase that has so much of the bar; the one before has the rest of its own."""
        self._advance(self._left)
        self._left = total

    def __call__(self, count: int) -> None:
        """Some of it is done."""
        count = min(count, self._left)
        self._left -= count
        self._advance(count)

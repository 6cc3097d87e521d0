"""A calibration from its request to its results: searched, scored on the validation splits, written."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ltp.calibration.directory import check_can_write, check_directory, new_config, write_run
from ltp.calibration.flops import Tick, calibrate_flops, flops_of, prepare_budgets
from ltp.calibration.latency import ServedModel, Stopwatch, calibrate_latency
from ltp.calibration.request import LATENCY_DEFAULTS, CalibrateSettings, Request
from ltp.calibration.sample import EVALUATION_BATCH, Sample, read_data
from ltp.calibration.search import UnreachableError, update_final_threshold
from ltp.data.datamodule import GLUEDataModule
from ltp.errors import RunError, UserError, format_value
from ltp.evaluation.scoring import Engine, evaluate, summarise
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning import RATE_MODES
from ltp.pruning.flops import DEFINITION
from ltp.runs.directory import is_finished, read_results
from ltp.runs.loading import load_model, load_tokenizer, select_device, set_threads, silence_libraries
from ltp.runs.locks import run_lock
from ltp.runs.provenance import GIT_STATE, device_name, hardware, versions

log = logging.getLogger("ltp")

Progress = Callable[[int], AbstractContextManager[Tick]]  #: a progress bar of so many examples

_TYPICAL_TRIALS = 7
_SUBSAMPLE_FROM = 256  # examples from which on a search begins on a part of them, every _MANIETH
_SUBSAMPLE_STEP = 8


def run(request: Request, progress: Progress) -> dict[str, Any]:
    """Calibrate, score and write the run.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: model, data or device do not fit, or the budget cannot be met. Nothing is left then.
        RunError: a latency could not be measured, or the run not be written.
    """
    started = time.monotonic()
    silence_libraries()
    settings, directory = request.settings, request.directory
    set_threads(settings.threads)
    check_can_write(request)
    model, tokenizer = load_model(request.checkpoint), load_tokenizer(request.checkpoint)
    measured = measure(request, model, tokenizer, progress)
    results = {**describe(request, model), **measured, "duration_seconds": round(time.monotonic() - started, 1)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with run_lock(directory):
            if is_finished(directory) and not settings.overwrite:
                log.info("another process has calibrated it meanwhile: %s", directory)
                check_directory(request)
            else:
                write_run(request, model, tokenizer, results)
    except OSError as error:
        raise RunError(f"cannot write {directory}: {error.strerror or error}") from error
    return read_results(directory)


def measure(
    request: Request, model: LTPForSequenceClassification, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> dict[str, Any]:
    """Turn the model to its budget, and score it on its validation splits.

    Returns:
        What ``results.json`` says of both. The model is left at its largest budget.

    Raises:
        UserError, RunError: see :func:`run`.
    """
    settings, results = request.settings, request.checkpoint.results or {}
    assert settings.task is not None
    device = select_device(settings.device)
    dtype = request.stored.evaluation_dtype if request.stored is not None else "float32"
    data = read_data(request.checkpoint, settings.task, settings.data_dir, tokenizer, model)
    split, main_data = next(iter(data.items()))
    sample = Sample.of(main_data, settings.examples, model)
    latency_settings = {key: getattr(settings, key) for key in LATENCY_DEFAULTS if getattr(settings, key) is not None}
    goal = Goal(request.targets, settings.target_latency_ms, **latency_settings)
    try:
        measured = calibrate_to_goal(goal, model, data, sample, dtype=dtype, device=device, progress=progress)
    except UnreachableError as error:
        raise UserError(_unreachable(settings, error, len(sample))) from error
    calibrated = measured["calibrated"]
    if request.kind != "budgets":
        calibrated |= {key: value[0] for key, value in calibrated.items() if isinstance(value, list)}
    own = results if request.is_own_task else {}
    calibrated["before"] |= {key: own[key] for key in ("relative_flops", "metric") if key in own}
    if request.method == "manual":
        update_final_threshold(model)
    return {
        **measured,
        "calibrated": {request.kind: getattr(settings, request.kind), **latency_settings, **calibrated},
        "flops_definition": DEFINITION,
        "train_examples": results.get("train_examples"),
        "validation_examples": len(main_data.splits.validation[split]),
        "train_steps": 0,
        "device": device_name(device),
        "devices": 1,
    }


def _unreachable(settings: CalibrateSettings, error: Any, examples: int) -> str:
    key = "target_flops" if settings.target_flops is not None else "budgets"
    given = f"{key}={format_value(getattr(settings, key))}"
    if settings.budgets is not None:
        given += f": {error.target:g}"
    if error.highest is not None:
        return (
            f"{given} cannot be reached on {examples} examples: their cost falls from {error.highest:.3f} to "
            f"{error.lowest:.3f} of the dense FLOPs at once. More of them (examples=…) have finer steps."
        )
    return (
        f"{given} cannot be reached: the hardest pruning of this model costs {error.lowest:.3f} of the dense FLOPs on "
        f"{examples} examples. Ask for more than that."
    )


def describe(request: Request, model: LTPForSequenceClassification) -> dict[str, Any]:
    """What ``results.json`` says of the run besides what was measured, in the keys of a training."""
    settings, checkpoint = request.settings, request.checkpoint
    assert settings.task is not None
    parent = checkpoint.results or {}
    rate = "token_keep_rate" if model.config.prune_mode in RATE_MODES else "final_token_threshold"
    defaults = {key: getattr(model.config, key) for key in ("scoring_mode", "score_length", rate)}
    hyperparameters: dict[str, Any] = {**(parent.get("hyperparameters") or defaults)}
    trained_for = hyperparameters.get("budgets") or hyperparameters.get("target_flops")
    if trained_for is not None and "calibrated" not in parent:
        hyperparameters["trained_for"] = trained_for
    hyperparameters |= {"target_flops": settings.target_flops, "budgets": settings.budgets}
    hyperparameters["max_length"] = settings.task.max_length
    latency_settings = {"target_latency_ms": settings.target_latency_ms}
    latency_settings |= {f"latency_{key}": getattr(settings, key) for key in LATENCY_DEFAULTS}
    for key, value in latency_settings.items():
        hyperparameters.pop(key, None)  # an earlier calibration's
        if value is not None:
            hyperparameters[key] = value
    return {
        "task": settings.task.name,
        "model": checkpoint.name,
        "method": request.method,
        "prune_mode": model.config.prune_mode,
        "stage": parent.get("stage", "hard"),
        "seed": parent.get("seed", 0),
        "hyperparameters": hyperparameters,
        "parent": request.parent_name,
        "parent_run_id": parent.get("run_id"),
        "config": new_config(request),
        "git": GIT_STATE,
        "versions": versions(),
    }


@dataclass(frozen=True)
class Goal:
    """What is to be met: shares of the dense FLOPs, ascending, or milliseconds of a batch as it is served."""

    flops: Sequence[float] = ()
    milliseconds: float | None = None
    batch_size: int = 1
    execution: str = "deployed"
    dtype: str = "float32"


def calibrate_to_goal(
    goal: Goal,
    model: LTPForSequenceClassification,
    data: dict[str, GLUEDataModule],
    sample: Sample,
    *,
    dtype: str,
    device: torch.device,
    progress: Progress = lambda total: contextlib.nullcontext(lambda count: None),
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
        progress: makes a progress bar of so many examples.

    Returns:
        What ``results.json`` says: the keys of :func:`score`, ``budgets`` (the same of each) and ``calibrated``, where
        ``reached``, ``relative_flops`` (of the ``examples`` that were measured), ``strength`` and ``trials`` are
        lists, one a budget.

    Raises:
        UnreachableError, UserError, RunError: it cannot be met.
    """
    served, timed = None, []
    if goal.milliseconds is not None:
        timed = sample.timed_batches(goal.batch_size)
        served = ServedModel(model, goal.execution, goal.dtype, device)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides self from mypy
    has_thresholds = model.thresholds is not None
    used = len(sample) if served is None else len(timed) * goal.batch_size
    searching = _TYPICAL_TRIALS * used
    scoring = sum(len(next(iter(module.splits.validation.values()))) for module in data.values())
    scores, reached, costs, strengths, trials = [], [], [], [], []
    extra: dict[str, Any] = {}
    with progress(max(len(goal.flops), 1) * (searching + scoring)) as advance:
        tick = _PhasedProgress(advance)
        cost = flops_of(model, timed or sample.batches(EVALUATION_BATCH), dtype, tick)
        rough = None
        if len(sample) >= _SUBSAMPLE_FROM:
            rough = flops_of(model, sample.batches(EVALUATION_BATCH, every=_SUBSAMPLE_STEP), dtype, tick)
        before = {"sample_relative_flops": cost()}
        if has_thresholds:
            prepare_budgets(model, goal.flops)
        for target in goal.flops:
            tick.begin(searching)
            if has_thresholds:
                model.use_budget(target)
            found = calibrate_flops(model, cost, rough, target)
            reached.append(found.cost)
            costs.append(found.cost)
            strengths.append(found.strength)
            trials.append(found.trials)
            tick.begin(scoring)
            scores.append(score(model, data, dtype, device, tick))
        if served is not None and goal.milliseconds is not None:
            tick.begin(searching)
            stopwatch = Stopwatch(served, timed, tick=lambda: tick(used))
            latency = calibrate_latency(model, stopwatch, goal.milliseconds)
            reached, strengths, trials = [latency.reached], [latency.strength], [latency.trials]
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
        "budgets": [{"budget": target, **one} for target, one in zip(goal.flops, scores, strict=False)],
        "calibrated": {
            "reached": reached,
            "relative_flops": costs,
            "strength": strengths,
            "trials": trials,
            "examples": used,
            "before": before,
            **extra,
        },
    }


def _timed_on(device: torch.device) -> dict[str, Any]:
    facts = hardware(device)
    return {"processor": facts["device"]} | ({"threads": facts["threads"]} if device.type == "cpu" else {})


def score(
    model: LTPForSequenceClassification,
    data: dict[str, GLUEDataModule],
    dtype: str,
    device: torch.device,
    tick: Tick = lambda count: None,
) -> dict[str, Any]:
    """What ``results.json`` says of a model on its validation splits, as after a training.

    Returns:
        ``metric``, ``metrics``, the keys of :meth:`ltp.evaluation.cost.CostMetric.compute` and ``thresholds``.
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


class _PhasedProgress:
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

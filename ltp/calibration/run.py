"""Run a calibration: search the budget, score the model on its validation splits, write the new run."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ltp.calibration.agreement import keep_agreement, measure_against_dense
from ltp.calibration.directory import check_can_write, check_directory, new_config, write_run
from ltp.calibration.evolution import POPULATION, evolve
from ltp.calibration.flops import Tick, calibrate_flops, flops_of, prepare_budgets
from ltp.calibration.latency import ServedModel, Stopwatch, calibrate_latency
from ltp.calibration.request import LATENCY_DEFAULTS, CalibrateSettings, Request
from ltp.calibration.sample import EVALUATION_BATCH, Sample, read_data
from ltp.calibration.search import UnreachableError, adopt_calibrated_settings, calibrated_names
from ltp.data.datamodule import GLUEDataModule
from ltp.errors import RunError, UserError, format_value
from ltp.evaluation.run import Progress
from ltp.evaluation.scoring import Engine, evaluate, summarise
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import RankedMethod, untrained, variants
from ltp.pruning.flops import DEFINITION
from ltp.runs.checkpoints import is_finished
from ltp.runs.loading import load_model, load_tokenizer, select_device, set_threads, silence_libraries
from ltp.runs.locks import run_lock
from ltp.runs.plan import task_of
from ltp.runs.provenance import GIT_STATE, device_name, hardware, versions
from ltp.runs.results import read_results

log = logging.getLogger("ltp")

_TYPICAL_TRIALS = 7  # per budget, for the progress bar
_SUBSAMPLE_FROM = 256  # smallest sample for which a search starts on a subsample
_EVOLUTION_STEP = 4  # configurations are measured on every fourth example
_SUBSAMPLE_STEP = 8  # the subsample has every eighth example


def run(request: Request, progress: Progress) -> dict[str, Any]:
    """Calibrate, score and write the run.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: model, data or device do not fit, or the target cannot be reached. Nothing is written.
        RunError: a latency could not be measured, or the run could not be written.
    """
    started = time.monotonic()
    silence_libraries()
    settings, directory = request.settings, request.directory
    set_threads(settings.threads)
    check_can_write(request)
    model, tokenizer = load_model(request.checkpoint), load_tokenizer(request.checkpoint, task_of(settings.task))
    if request.is_dense:
        model.set_pruning(**untrained(), score_length=settings.task.max_length)
    measured = measure(request, model, tokenizer, progress)
    results = {**run_facts(request, model), **measured, "duration_seconds": round(time.monotonic() - started, 1)}
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
    request: Request, model: LTPPreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> dict[str, Any]:
    """Calibrate the model, and score it on its validation splits.

    Returns:
        The part of ``results.json`` that was measured. The model is left at its largest budget.

    Raises:
        UserError, RunError: see :func:`run`.
    """
    settings, results = request.settings, request.checkpoint.results or {}
    device = select_device(settings.device)
    data = read_data(request.checkpoint, settings.task, settings.data_dir, tokenizer, model)
    sample = Sample.from_data(data, settings.examples)
    latency_settings = {key: getattr(settings, key) for key in LATENCY_DEFAULTS if getattr(settings, key) is not None}
    try:
        measured = calibrate_to_goal(request, model, data, sample, device=device, progress=progress)
    except UnreachableError as error:
        raise UserError(_unreachable(settings, error, len(sample))) from error
    calibrated = measured["calibrated"]
    if request.kind != "budgets":
        calibrated |= {key: value[0] for key, value in calibrated.items() if isinstance(value, list)}
    if request.is_own_task:
        calibrated["before"] |= {key: results[key] for key in ("relative_flops", "metric") if key in results}
    goal = "agreement_bound" if request.kind == "agreement" else request.kind
    if not variants()[request.method].learned:
        adopt_calibrated_settings(model)
    return {
        **measured,
        "calibrated": {goal: getattr(settings, request.kind), **latency_settings, **calibrated},
        "flops_definition": DEFINITION,
        "train_examples": results.get("train_examples"),
        "validation_examples": len(data.splits.validation[data.validation_splits[0]]),
        "label_counts": data.label_counts,
        "train_steps": 0,
        "device": device_name(device),
        "devices": 1,
    }


def _unreachable(settings: CalibrateSettings, error: UnreachableError, examples: int) -> str:
    key = "target_flops" if settings.target_flops is not None else "budgets"
    given = f"{key}={format_value(getattr(settings, key))}"
    if settings.budgets is not None:
        given += f": {error.target:g}"
    if error.highest is not None:
        return (
            f"{given} cannot be reached on {examples} examples: their cost jumps from {error.highest:.3f} to "
            f"{error.lowest:.3f} of the dense FLOPs. More examples (examples=…) give smaller steps."
        )
    return (
        f"{given} cannot be reached: the hardest pruning of this model costs {error.lowest:.3f} of the dense FLOPs on "
        f"{examples} examples. Ask for more than that."
    )


def run_facts(request: Request, model: LTPPreTrainedModel) -> dict[str, Any]:
    """Return the part of ``results.json`` that describes the run's configuration, with the keys of a training."""
    settings, checkpoint = request.settings, request.checkpoint
    parent = checkpoint.results or {}
    method = model.pruner.method
    kept = ("scoring_mode", "score_length", *calibrated_names(type(method)))
    defaults = {name: getattr(method, name) for name in kept if hasattr(method, name)}
    hyperparameters: dict[str, Any] = {**(parent.get("hyperparameters") or defaults)}
    trained_for = hyperparameters.get("budgets") or hyperparameters.get("target_flops")
    if trained_for is not None and "calibrated" not in parent:
        hyperparameters["trained_for"] = trained_for
    hyperparameters |= {"target_flops": settings.target_flops, "budgets": settings.budgets}
    if request.is_dense:
        hyperparameters |= {**defaults, "agreement_bound": settings.agreement}
    if settings.search == "evolution":
        hyperparameters |= {"search": settings.search, "generations": settings.generations}
        assert isinstance(method, RankedMethod)
        hyperparameters |= method.setting_of(method.rates(model.pruner.shape.num_layers))
    hyperparameters["max_length"] = settings.task.max_length
    latency_settings = {"target_latency_ms": settings.target_latency_ms}
    latency_settings |= {f"latency_{key}": getattr(settings, key) for key in LATENCY_DEFAULTS}
    for key, value in latency_settings.items():
        hyperparameters.pop(key, None)  # drop the values of an earlier calibration
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


def calibrate_to_goal(
    request: Request,
    model: LTPPreTrainedModel,
    data: GLUEDataModule,
    sample: Sample,
    *,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Calibrate a model to the requested FLOPs or latency, and score it on its validation splits.

    Args:
        request: the targets. A model with thresholds stores one set per FLOPs target, and is left at the largest.
        model: the classifier, on the CPU, in evaluation mode; it is moved to ``device``.
        data: see :func:`~ltp.calibration.sample.read_data`.
        sample: the examples on which the cost is measured.
        device: device for scoring, counting FLOPs and packed latency.
        progress: opens a progress bar of a given number of examples.

    Returns:
        The keys of :func:`score`, ``budgets`` (the same keys per budget) and ``calibrated``, in which ``reached``,
        ``relative_flops`` (of the sample), ``strength`` and ``trials`` are lists with one value per target.

    Raises:
        UnreachableError: a FLOPs target cannot be reached.
        UserError: the latency target cannot be reached, or the sample is smaller than a batch.
        RunError: the latency measurements contradict each other.
    """
    settings, targets = request.settings, request.targets
    dtype = request.stored.evaluation_dtype if request.stored is not None else "float32"
    served, timed = None, []
    if settings.target_latency_ms is not None:
        assert settings.batch_size and settings.execution and settings.dtype
        timed = sample.timed_batches(settings.batch_size)
        served = ServedModel(model, settings.execution, settings.dtype, device)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides self from mypy
    has_thresholds = model.thresholds is not None
    examples = sum(len(batch["input_ids"]) for batch in timed) or len(sample)
    searching = _TYPICAL_TRIALS * examples
    if settings.generations is not None:
        searching += 2 * POPULATION * settings.generations * len(sample) // _EVOLUTION_STEP
    scoring = sum(map(len, data.splits.validation.values()))
    scores: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    with progress(max(len(targets), 1) * (searching + scoring)) as advance:
        tick = _PhasedProgress(advance)
        cost = flops_of(model, timed or sample.batches(EVALUATION_BATCH), dtype, tick)
        rough = None
        if len(sample) >= _SUBSAMPLE_FROM:
            rough = flops_of(model, sample.batches(EVALUATION_BATCH, every=_SUBSAMPLE_STEP), dtype, tick)
        before = {"sample_relative_flops": 1.0 if request.is_dense else cost()}
        against_dense = None
        if request.is_dense:
            against_dense = measure_against_dense(model, timed or sample.batches(EVALUATION_BATCH), dtype, tick)
        if has_thresholds:
            prepare_budgets(model, targets)
        for target in targets:
            tick.begin(searching)
            if has_thresholds:
                model.use_budget(target)
            result = calibrate_flops(model, cost, rough, target)
            costs = {"reached": result.cost, "relative_flops": result.cost}
            searches.append({**costs, "strength": result.strength, "trials": result.trials})
            if against_dense is not None:
                searches[-1]["agreement"] = against_dense().agreement
            if settings.search == "evolution":
                assert settings.generations is not None
                part = sample.batches(EVALUATION_BATCH, every=1 if rough is None else _EVOLUTION_STEP)
                tick.begin(2 * POPULATION * settings.generations * sum(len(batch["input_ids"]) for batch in part))
                evolved = evolve(model, part, generations=settings.generations, tick=tick)
                searches[-1] |= {
                    "reached": cost(),
                    "relative_flops": cost(),
                    "rates": list(evolved.rates),
                    "configurations": evolved.tried,
                    "divergence": evolved.divergence,
                    "divergence_before": evolved.start_divergence,
                }
            tick.begin(scoring)
            scores.append(score(model, data, dtype, device, tick))
        if settings.agreement is not None:
            assert against_dense is not None  # only dense checkpoints have an agreement
            tick.begin(searching)
            some = None
            if len(sample) >= _SUBSAMPLE_FROM:
                part = sample.batches(EVALUATION_BATCH, every=_SUBSAMPLE_STEP)
                some = measure_against_dense(model, part, dtype, tick)
            kept = keep_agreement(model, against_dense, settings.agreement, some)
            costs = {"reached": kept.agreement, "relative_flops": kept.relative_flops}
            searches.append({**costs, "agreement": kept.agreement, "strength": kept.strength, "trials": kept.trials})
            tick.begin(scoring)
            scores.append(score(model, data, dtype, device, tick))
        if served is not None and settings.target_latency_ms is not None:
            tick.begin(searching)
            stopwatch = Stopwatch(served, timed, tick=lambda: tick(examples))
            latency = calibrate_latency(model, stopwatch, settings.target_latency_ms)
            costs = {"reached": latency.reached, "relative_flops": cost()}
            searches.append({**costs, "strength": latency.strength, "trials": latency.trials})
            if against_dense is not None:
                searches[-1]["agreement"] = against_dense().agreement
            before["latency_ms"] = latency.before
            facts = hardware(served.device)
            extra = {"dense_ms": latency.dense, "lowest_ms": latency.lowest, "processor": facts["device"]}
            if served.device.type == "cpu":
                extra["threads"] = facts["threads"]
            tick.begin(scoring)
            scores.append(score(model, data, dtype, device, tick))
        tick.begin(0)
    if model.thresholds is None:
        extra |= {name: getattr(model.pruner.method, name) for name in calibrated_names(type(model.pruner.method))}
    return {
        **scores[-1],
        "budgets": [{"budget": target, **scored} for target, scored in zip(targets, scores, strict=False)],
        "calibrated": {
            **{key: [search[key] for search in searches] for key in searches[0]},
            "examples": examples,
            "before": before,
            **extra,
        },
    }


def score(
    model: LTPPreTrainedModel, data: GLUEDataModule, dtype: str, device: torch.device, tick: Tick
) -> dict[str, Any]:
    """Score a model on its validation splits, with the keys of a training's ``results.json``.

    Returns:
        ``metric``, ``metrics``, the keys of :meth:`ltp.evaluation.cost.CostMetric.compute` and ``thresholds``.
    """
    engine = Engine.create(model, "packed", dtype, device)
    result: dict[str, Any] = {}
    for index, name in enumerate(data.validation_splits):
        summary = summarise(evaluate(engine, data, tick, split=index), model)
        if not result:
            result = {key: value for key, value in summary.items() if key not in ("examples", "input_tokens")}
        else:
            suffix = "_" + name.removeprefix("validation_")
            result["metrics"] |= {f"{metric}{suffix}": value for metric, value in summary["metrics"].items()}
    thresholds = model.thresholds
    return {**result, "thresholds": None if thresholds is None else thresholds.tolist()}


class _PhasedProgress:
    """Divide a progress bar into phases of fixed size whose real lengths are unknown."""

    def __init__(self, advance: Tick) -> None:
        self._advance, self._remaining = advance, 0

    def begin(self, total: int) -> None:
        """Complete the current phase, and begin one of ``total`` examples."""
        self._advance(self._remaining)
        self._remaining = total

    def __call__(self, count: int) -> None:
        """Advance the current phase, at most to its end."""
        count = min(count, self._remaining)
        self._remaining -= count
        self._advance(count)

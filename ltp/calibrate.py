"""``python -m ltp.calibrate``: bring a classifier to a budget without training.

The search is in :mod:`ltp.calibration.search`, the rest of the work in :mod:`ltp.calibration`. ``ltp.calibrate`` can
also be called; see :func:`ltp.calibration.texts.calibrate`.
"""

import dataclasses
import logging
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ltp.calibration.directory import check_directory, check_model_directory, new_directory
from ltp.calibration.request import BUDGETS, GENERATIONS, LATENCY_DEFAULTS, CalibrateSettings, Request, is_dense
from ltp.calibration.summary import print_record, print_summary
from ltp.command.cli import Command
from ltp.command.imports import fast_imports
from ltp.command.output import progress
from ltp.errors import UserError, check_choice, check_range, format_value
from ltp.pruning import DENSE_MODE, RankedMethod, method_class
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint, is_finished
from ltp.runs.loading import check_of_texts, stored_task, task_and_data
from ltp.runs.plan import task_of
from ltp.runs.results import SHOWN, read_results
from ltp.runs.settings import check_shares, is_unset

log = logging.getLogger("ltp")

EXECUTIONS = ("deployed", "packed")
SEARCHES = ("strength", "evolution")
DTYPES = ("float32", "bfloat16", "int8")


def main(settings: CalibrateSettings) -> None:
    """Calibrate a run, or skip it if that is done already, and print a summary."""
    if settings.texts is not None:
        calibrate_texts(settings)
        return
    request = resolve(settings)
    directory = request.directory
    if is_finished(directory) and not request.settings.overwrite:
        log.info("finished already, skipped: %s (overwrite=true calibrates afresh)", directory)
        results = read_results(directory, required=(*SHOWN, "calibrated"))
    else:
        with fast_imports():
            from ltp.calibration.run import run

        results = run(request, progress)
    print_summary(results, directory)


def calibrate_texts(settings: CalibrateSettings) -> None:
    """Calibrate a classifier on a file of texts, and print what it costs and keeps."""
    checkpoint, directory = resolve_texts(settings)
    with fast_imports():
        from ltp.calibration.on_texts import calibrate_on_texts

    print_record(calibrate_on_texts(settings, checkpoint, directory, progress), directory)


def resolve_texts(settings: CalibrateSettings) -> tuple[Checkpoint, Path]:
    """Check the settings of a calibration on a file of texts, and fill their nulls.

    Returns:
        The checkpoint, and the directory of the new model.

    Raises:
        UserError: a value is out of range, keys contradict each other, the checkpoint does not exist, or the directory
            is in use.
    """
    check(settings)
    if settings.search == "evolution":
        raise UserError("search=evolution calibrates runs: leave texts out, or search")
    given = [key for key in ("target_latency_ms", "budgets", "data_dir") if getattr(settings, key) is not None]
    for key in [*given, *([] if is_unset(settings.task) else ["task"])]:
        raise UserError(f"{key} needs a task with its data, in place of texts={settings.texts}: leave one of them out")
    checkpoint = inspect_checkpoint(settings.restore)
    _check_kind(settings, checkpoint)
    if settings.columns is None:
        stored = stored_task(checkpoint)
        settings.columns = list(task_of(stored.task).text_columns) if stored is not None else ["text"]
    directory = new_directory(settings, checkpoint)
    check_model_directory(settings, directory)
    return checkpoint, directory


def _check_kind(settings: CalibrateSettings, checkpoint: Checkpoint) -> None:
    """Check that what is searched exists for the kind of the model's outputs."""
    for key, is_given in (("agreement", settings.agreement is not None), ("search", settings.search == "evolution")):
        if is_given:
            check_of_texts(checkpoint, f"{key}={getattr(settings, key)}")


def fill(settings: CalibrateSettings) -> CalibrateSettings:
    """Fill the nulls of the settings."""
    if settings.texts is not None:
        return dataclasses.replace(settings, to=str(resolve_texts(settings)[1]))
    request = resolve(settings)
    return dataclasses.replace(request.settings, to=str(request.directory))


def resolve(settings: CalibrateSettings) -> Request:
    """Check the settings and fill their nulls. Reads small files only.

    Raises:
        UserError: a value is out of range, keys contradict each other, the checkpoint does not exist or does not
            prune, or the directory of the new run is in use.
    """
    check(settings)
    if settings.budgets is not None:
        settings.budgets = sorted(settings.budgets)
    if settings.target_latency_ms is not None:
        for key, default in LATENCY_DEFAULTS.items():
            if getattr(settings, key) is None:
                setattr(settings, key, default)
    checkpoint = inspect_checkpoint(settings.restore)
    check_method(settings, checkpoint)
    _check_kind(settings, checkpoint)
    stored = stored_task(checkpoint)
    is_own_task = is_unset(settings.task) and settings.data_dir is None and stored is not None
    settings.task, settings.data_dir = task_and_data(settings.restore, settings.task, settings.data_dir, stored)
    request = Request(settings, checkpoint, stored, is_own_task, new_directory(settings, checkpoint))
    check_directory(request)
    return request


def check(settings: CalibrateSettings) -> None:
    """Check each value, and that the keys do not contradict each other.

    Raises:
        UserError: a check failed; names the key, its value and its range, or the keys of which one must be given.
    """
    given = [f"{key}={format_value(getattr(settings, key))}" for key in BUDGETS if getattr(settings, key) is not None]
    if len(given) != 1:
        problem = f"{' and '.join(given)} are given" if given else "no budget is given"
        raise UserError(f"{problem}: give exactly one of {', '.join(BUDGETS.values())}")
    check_shares("target_flops", settings.target_flops)
    check_shares("budgets", settings.budgets)
    check_range(
        settings.agreement is None or 0 < settings.agreement <= 1,
        *("agreement", settings.agreement, "in (0, 1] (of the dense model's predictions)"),
    )
    if settings.columns is not None and settings.texts is None:
        raise UserError(f"columns={format_value(settings.columns)} goes with texts=FILE")
    latency = settings.target_latency_ms
    check_range(latency is None or 0 < latency < math.inf, "target_latency_ms", latency, "above 0 (milliseconds)")
    check_choice("search", settings.search, SEARCHES)
    if settings.search == "evolution":
        settings.generations = GENERATIONS if settings.generations is None else settings.generations
        check_range(settings.generations >= 1, "generations", settings.generations, "1 or more")
        if settings.target_flops is None:
            raise UserError(f"search=evolution goes with target_flops=…, not with {given[0]}")
    elif settings.generations is not None:
        raise UserError(f"generations={settings.generations} goes with search=evolution")
    check_choice("execution", settings.execution, EXECUTIONS)
    check_choice("dtype", settings.dtype, DTYPES)
    check_choice("device", settings.device, ("auto", "cpu", "cuda"))
    check_range(settings.batch_size is None or settings.batch_size >= 1, "batch_size", settings.batch_size, "1 or more")
    check_range(settings.examples >= 1, "examples", settings.examples, "1 or more")
    check_range(settings.threads is None or settings.threads >= 1, "threads", settings.threads, "1 or more")
    for key in LATENCY_DEFAULTS:
        if latency is None and getattr(settings, key) is not None:
            raise UserError(
                f"{key}={getattr(settings, key)} goes with target_latency_ms, not with {given[0]}: FLOPs are counted, "
                "and do not depend on how the model is served"
            )
    if settings.dtype == "int8" and settings.execution == "packed":
        raise UserError("dtype=int8 goes with execution=deployed, not execution=packed")
    if latency is not None and settings.device == "cuda" and settings.execution != "packed":
        raise UserError("execution=deployed is for CPUs: use device=cpu, or execution=packed")
    if settings.to is not None and settings.output_root is not None:
        raise UserError(
            f"to={settings.to} and output_root={settings.output_root} both set the new run's folder: give one of them"
        )


def check_method(settings: CalibrateSettings, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint can be brought to the target.

    Raises:
        UserError: it prunes by a keep rate but several budgets are requested, or it was trained to prune but is to
            keep the predictions of a dense model.
    """
    mode = checkpoint.pruning.get("prune_mode", DENSE_MODE)
    if settings.agreement is not None and not is_dense(checkpoint):
        raise UserError(
            f"agreement={settings.agreement:g} keeps the predictions of a dense model, and "
            f"restore={settings.restore} was trained to prune: give target_flops=…, or restore its dense parent"
        )
    method = method_class(mode)
    if mode != DENSE_MODE and not method.has_strength():
        raise UserError(
            f"restore={settings.restore} prunes by {mode}, which has no setting that brings it to a cost; "
            "train it with other settings"
        )
    if settings.search == "evolution" and not issubclass(method, RankedMethod):
        raise UserError(
            f"search=evolution finds keep rates, and restore={settings.restore} prunes by {mode}, which has none: "
            "leave search out"
        )
    if settings.budgets is not None and mode != DENSE_MODE and not method.has_thresholds():
        raise UserError(
            f"budgets={format_value(settings.budgets)}: restore={settings.restore} prunes by one keep rate ({mode}), "
            "and several budgets are several thresholds a layer. Use target_flops=…, once for each"
        )


class _CallableModule(ModuleType):
    """``ltp.calibrate(model, tokenizer, texts, …)``: importing this module puts it in the function's place."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from ltp.calibration.texts import calibrate

        return calibrate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

COMMAND = Command(
    "calibrate",
    CalibrateSettings,
    main,
    fill,
    # users may give it, and task=demo adds it, because it selects the model to train
    hints={"model": "unknown key model; what is calibrated is chosen by restore=… (a demo run brings its task)"},
)

if __name__ == "__main__":
    sys.exit(COMMAND())

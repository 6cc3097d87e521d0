"""``python -m ltp.calibrate``: calibrate a finished run to another budget without training, as a new run.

The search is in :mod:`ltp.calibration.search`, the rest of the work in :mod:`ltp.calibration`.
"""

import dataclasses
import logging
import math
import sys

from ltp.calibration.directory import check_directory, new_directory
from ltp.calibration.request import BUDGETS, LATENCY_DEFAULTS, CalibrateSettings, Request
from ltp.calibration.summary import print_summary
from ltp.command.cli import Command
from ltp.command.imports import fast_imports
from ltp.command.output import progress
from ltp.errors import UserError, check_choice, check_range, format_value
from ltp.pruning import RATE_MODES
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint, is_finished, read_results
from ltp.runs.loading import stored_task
from ltp.runs.settings import check_shares

log = logging.getLogger("ltp")

EXECUTIONS = ("deployed", "packed")
DTYPES = ("float32", "bfloat16", "int8")


def main(settings: CalibrateSettings) -> None:
    """Calibrate a run, or skip it if that is done already, and print a summary."""
    request = resolve(settings)
    directory = request.directory
    if is_finished(directory) and not request.settings.overwrite:
        log.info("finished already, skipped: %s (overwrite=true calibrates afresh)", directory)
        results = read_results(directory)
    else:
        with fast_imports():
            from ltp.calibration.run import run

        results = run(request, progress)
    print_summary(results, directory)


def fill(settings: CalibrateSettings) -> CalibrateSettings:
    """Fill the nulls of the settings."""
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
    stored = stored_task(checkpoint)
    is_own_task = settings.task is None and settings.data_dir is None and stored is not None
    if settings.task is None:
        if stored is None:
            raise UserError(
                f"restore={settings.restore} is not a run directory that names its task: give task=… (and data_dir=…)"
            )
        settings.task = stored.task
        settings.data_dir = settings.data_dir or stored.data_dir
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
    latency = settings.target_latency_ms
    check_range(latency is None or 0 < latency < math.inf, "target_latency_ms", latency, "above 0 (milliseconds)")
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
    """Check that a checkpoint has thresholds or a keep rate to calibrate.

    Raises:
        UserError: it does not prune, or prunes by a keep rate but several budgets are requested.
    """
    mode = checkpoint.pruning.get("prune_mode", "none")
    if mode == "none":
        raise UserError(
            f"restore={settings.restore} is dense: it prunes no tokens, so there is nothing to calibrate. Train a run "
            f"that does: python -m ltp.train prune=threshold restore={settings.restore} (learned thresholds; "
            "prune=manual, prune=topk: the baselines)"
        )
    if settings.budgets is not None and mode in RATE_MODES:
        raise UserError(
            f"budgets={format_value(settings.budgets)}: restore={settings.restore} prunes by one keep rate ({mode}), "
            "and several budgets are several thresholds a layer. Use target_flops=…, once for each"
        )


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

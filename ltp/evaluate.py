"""``python -m ltp.evaluate``: evaluate a finished run on a split. The evaluation itself is in :mod:`ltp.evaluation`."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from ltp.command.cli import Command, command_line
from ltp.command.imports import fast_imports
from ltp.command.output import check_writable, progress
from ltp.errors import UserError, check_choice, check_range, format_value
from ltp.evaluation.request import DTYPES, EXECUTIONS, EvaluateSettings, Request
from ltp.runs.checkpoints import PREDICTIONS_FILE, Checkpoint, has_thresholds, inspect_checkpoint
from ltp.runs.loading import StoredTask, check_budget, stored_task, task_and_data
from ltp.runs.settings import is_unset


def main(settings: EvaluateSettings) -> None:
    """Evaluate a run: write its predictions, and print the table or write it as JSON."""
    request = resolve(settings)
    output = request.settings.output
    if request.predictions is not None:
        to, restore = request.settings.to, request.settings.restore
        setting = f"to={to}" if to is not None else f"restore={restore}"
        check_writable(setting, request.predictions, "; name another place with to=FILE")
    if output is not None and output != "-":
        check_writable(f"output={output}", Path(output))

    with fast_imports():
        from ltp.evaluation.run import run
    from ltp.evaluation.report import print_report

    report = run(request, command_line("evaluate"), progress)
    if output is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if output == "-":
            print(text, end="")
            return
        from ltp.runs.directory import write_atomically

        write_atomically(Path(output), text)
    print_report(report)


def fill(settings: EvaluateSettings) -> EvaluateSettings:
    """Fill the nulls of the settings."""
    request = resolve(settings)
    return dataclasses.replace(request.settings, to=str(request.predictions) if request.predictions else None)


def resolve(settings: EvaluateSettings) -> Request:
    """Check the settings and fill their nulls. Reads small files only.

    Raises:
        UserError: a value is out of range, keys contradict each other, or the checkpoint does not exist.
    """
    if not isinstance(settings.threshold_scale, list):  # a single value may be given without brackets
        settings.threshold_scale = [settings.threshold_scale]
    check(settings)
    checkpoint = inspect_checkpoint(settings.restore)
    check_budget(checkpoint, settings.budget)
    stored = stored_task(checkpoint)
    is_own_task = is_unset(settings.task) and settings.data_dir is None
    settings.task, settings.data_dir = task_and_data(settings.restore, settings.task, settings.data_dir, stored)
    is_default = settings.split == "validation" and settings.execution == "packed"
    is_default = is_default and settings.dtype is None and settings.budget is None
    if settings.dtype is None:
        settings.dtype = _training_dtype(settings, stored)
    scales = settings.threshold_scale
    if scales != [1] and not has_thresholds(checkpoint):
        raise UserError(_no_thresholds_message(settings, checkpoint))
    if len(scales) > 1 and settings.to is not None:
        raise UserError(f"to={settings.to} holds the predictions of one threshold_scale, not of {len(scales)}")
    predictions = Path(settings.to).expanduser() if settings.to is not None else None
    if predictions is None and is_own_task and is_default and scales == [1] and checkpoint.run_dir is not None:
        predictions = checkpoint.run_dir / PREDICTIONS_FILE
    return Request(settings, checkpoint, predictions)


def _training_dtype(settings: EvaluateSettings, stored: StoredTask | None) -> str:
    """The type of a run's evaluations during training, so that metrics equal those in its results."""
    return stored.evaluation_dtype if settings.execution != "deployed" and stored is not None else "float32"


def _no_thresholds_message(settings: EvaluateSettings, checkpoint: Checkpoint) -> str:
    scales = format_value(_without_brackets(settings.threshold_scale))
    if checkpoint.prunes:
        return (
            f"threshold_scale={scales}: restore={settings.restore} prunes by {checkpoint.pruning['prune_mode']}, which "
            "has no thresholds to scale; train it with other settings, or calibrate it with target_flops=…"
        )
    return f"threshold_scale={scales}: restore={settings.restore} is dense and has no thresholds to scale"


def _without_brackets(values: list[Any]) -> Any:
    """The value itself if there is only one, otherwise the list."""
    return values[0] if len(values) == 1 else values


def check(settings: EvaluateSettings) -> None:
    """Check each value, and that the keys do not contradict each other.

    Raises:
        UserError: a check failed; names the key, its value and its range.
    """
    check_choice("execution", settings.execution, EXECUTIONS)
    check_choice("dtype", settings.dtype, DTYPES)
    check_choice("device", settings.device, ("auto", "cpu", "cuda"))
    check_range(settings.threads is None or settings.threads >= 1, "threads", settings.threads, "1 or more")
    groups = settings.by_length
    check_range(groups is None or groups >= 1, "by_length", groups, "1 or more (groups)")
    check_range(settings.batch_size >= 1, "batch_size", settings.batch_size, "1 or more")
    scales = settings.threshold_scale
    numbers = all(type(scale) in (int, float) and 0 <= scale < math.inf for scale in scales)
    check_range(
        bool(scales) and numbers,
        "threshold_scale",
        _without_brackets(scales),
        "one or more numbers from 0 on, as [0.8,1,1.2]",
    )
    if settings.dtype == "int8" and settings.execution != "deployed":
        raise UserError(f"dtype=int8 goes with execution=deployed, not execution={settings.execution}")
    if settings.device == "cuda" and settings.execution == "deployed":
        raise UserError("execution=deployed is for CPUs: use device=cpu, or execution=packed")
    if settings.output is not None and settings.output == settings.to:
        raise UserError(f"output={settings.output} and to={settings.to} are one file: give two")


COMMAND = Command(
    "evaluate",
    EvaluateSettings,
    main,
    fill,
    # users may give it, and task=demo adds it, because it selects the model to train
    hints={"model": "unknown key model; what is evaluated is chosen by restore=… (a demo run brings its task)"},
)

if __name__ == "__main__":
    sys.exit(COMMAND())

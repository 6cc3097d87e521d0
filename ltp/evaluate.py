"""``python -m ltp.evaluate``: a finished run on a split. The work is done in :mod:`ltp.evaluation`."""

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
from ltp.runs.checkpoints import PREDICTIONS_FILE, Checkpoint, inspect_checkpoint
from ltp.runs.loading import StoredTask, check_budget, stored_task


def main(settings: EvaluateSettings) -> None:
    """Evaluate what a configuration describes; print the table, write the predictions."""
    request = resolve(settings)
    output = request.settings.output
    if request.predictions is not None:
        given = request.settings.to
        what = f"to={given}" if given is not None else f"restore={request.settings.restore}"
        check_writable(what, request.predictions, "; name another place with to=FILE")
    if output is not None and output != "-":
        check_writable(f"output={output}", Path(output))

    with fast_imports():
        from ltp.evaluation.run import run
    from ltp.evaluation.report import print_report

    report = run(request, command_line("evaluate"), progress)
    if output is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        if output == "-":
            print(text, end="")
            return
        from ltp.runs.directory import write_atomically

        write_atomically(Path(output), text)
    print_report(report)


def fill(settings: EvaluateSettings) -> EvaluateSettings:
    """The settings with their nulls filled."""
    request = resolve(settings)
    return dataclasses.replace(request.settings, to=str(request.predictions) if request.predictions else None)


def resolve(settings: EvaluateSettings) -> Request:
    """Check the configuration and fill its nulls. Reads small files only.

    Raises:
        UserError: a value is out of range, keys contradict each other, or the checkpoint is not there.
    """
    if not isinstance(settings.threshold_scale, list):  # one may be written without brackets
        settings.threshold_scale = [settings.threshold_scale]
    check(settings)
    checkpoint = inspect_checkpoint(settings.restore)
    check_budget(checkpoint, settings.budget)
    stored = stored_task(checkpoint)
    is_own_task = settings.task is None and settings.data_dir is None
    if settings.task is None:
        if stored is None:
            raise UserError(f"restore={settings.restore} is no run that names its task: give task=… (and data_dir=…)")
        settings.task = stored.task
        settings.data_dir = settings.data_dir or stored.data_dir
    is_default = settings.split == "validation" and settings.execution == "packed"
    is_default = is_default and settings.dtype is None and settings.budget is None
    if settings.dtype is None:
        settings.dtype = _own_dtype(settings, stored)
    scales = settings.threshold_scale
    if scales != [1] and checkpoint.pruning.get("prune_mode") != "absolute_threshold":
        raise UserError(_no_thresholds(settings, checkpoint))
    if len(scales) > 1 and settings.to is not None:
        raise UserError(f"to={settings.to} holds the predictions of one threshold_scale, not of {len(scales)}")
    predictions = Path(settings.to).expanduser() if settings.to is not None else None
    if predictions is None and is_own_task and is_default and scales == [1] and checkpoint.run_dir is not None:
        predictions = checkpoint.run_dir / PREDICTIONS_FILE
    return Request(settings, checkpoint, predictions)


def _own_dtype(settings: EvaluateSettings, stored: StoredTask | None) -> str:
    """The type in which a run was evaluated while it trained, so that metrics equal those of its results."""
    return stored.evaluation_dtype if settings.execution != "deployed" and stored is not None else "float32"


def _no_thresholds(settings: EvaluateSettings, checkpoint: Checkpoint) -> str:
    scales = format_value(_given(settings.threshold_scale))
    if checkpoint.pruning.get("prune_mode") == "topk":
        return (
            f"threshold_scale={scales}: restore={settings.restore} prunes by top-k, which keeps a given share of the "
            "tokens and has no thresholds to scale; train another share with prune=topk prune.token_keep_rate=…"
        )
    return f"threshold_scale={scales}: restore={settings.restore} is dense and has no thresholds to scale"


def _given(values: list[Any]) -> Any:
    """As they were given: one without brackets."""
    return values[0] if len(values) == 1 else values


def check(settings: EvaluateSettings) -> None:
    """Check every value.

    Raises:
        UserError: names the key, its value and its range.
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
        bool(scales) and numbers, "threshold_scale", _given(scales), "one or more numbers from 0 on, as [0.8,1,1.2]"
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
    # given, or asked for by task=demo, which brings a model to train
    hints={"model": "unknown key model; what is evaluated is chosen by restore=… (a demo run brings its task)"},
)

if __name__ == "__main__":
    sys.exit(COMMAND())

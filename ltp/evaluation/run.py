"""Run an evaluation and return its report."""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ltp.data.datamodule import GLUEDataModule
from ltp.errors import UserError
from ltp.evaluation.request import Request
from ltp.evaluation.scoring import Engine, by_length, chance_warning, evaluate, summarise, write_predictions
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning.flops import DEFINITION
from ltp.runs.loading import (
    check_length,
    load_model,
    load_tokenizer,
    read_splits,
    read_test,
    select_device,
    set_threads,
    silence_libraries,
)
from ltp.runs.plan import check_labels
from ltp.runs.summary import describe_method

log = logging.getLogger("ltp")

#: Makes a progress bar for a number of examples; yields a function to call with the number done since its last call.
Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]


def run(request: Request, command: str, progress: Progress) -> dict[str, Any]:
    """Evaluate the model on the split, once for each threshold scale, and write the predictions.

    Args:
        request: the evaluation.
        command: its command line, for the report.
        progress: makes a progress bar for a number of examples.

    Returns:
        The report. ``results`` has one dict per threshold scale: the values of
        :func:`ltp.evaluation.scoring.summarise`, ``threshold_scale``, ``thresholds`` and, if ``by_length`` is set,
        ``by_length`` with the values of each group.

    Raises:
        UserError: model, data or device do not fit.
    """
    silence_libraries()
    settings, checkpoint = request.settings, request.checkpoint
    assert settings.dtype is not None  # filled by resolve()
    set_threads(settings.threads)
    device = select_device("cpu" if settings.execution == "deployed" else settings.device)
    model = load_model(checkpoint, settings.budget)
    data = read_data(request, model)
    if settings.by_length is not None and not data.task.scores_rows:
        raise UserError(
            f"by_length={settings.by_length}: the metrics of task={data.task.name} are not of single rows, which could "
            "be grouped; leave it out"
        )
    examples = data.rows_of(settings.split)
    results = []
    with progress(examples * len(settings.threshold_scale)) as advance:
        for scale, scaled in _scaled_models(model, settings.threshold_scale):
            try:
                engine = Engine.create(scaled, settings.execution, settings.dtype, device)
            except RuntimeError as error:
                raise UserError(f"dtype={settings.dtype}: {error}") from error
            except ValueError as error:
                raise UserError(f"execution={settings.execution}: {error}") from error
            outcome = evaluate(engine, data, advance)
            result = {"threshold_scale": scale, **summarise(outcome, model)}
            if (warning := chance_warning(result, data.task)) is not None:
                log.warning("restore=%s: %s", checkpoint.source, warning)
            result["thresholds"] = None if model.thresholds is None else model.thresholds.tolist()
            if settings.by_length is not None:
                groups = by_length(outcome, settings.by_length)
                result["by_length"] = [summarise(group, model) for group in groups]
            results.append(result)
    if request.predictions is not None:
        write_predictions(request.predictions, outcome)
    run_results = checkpoint.results or {}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "restore": settings.restore,
        "model": checkpoint.name,
        "method": describe_method(run_results, model.budget) if "method" in run_results else model.config.prune_mode,
        "budget": model.budget,
        "task": data.task.name,
        "split": settings.split,
        "data_dir": settings.data_dir,
        "execution": settings.execution,
        "dtype": settings.dtype,
        "device": str(device),
        "flops_definition": DEFINITION,
        "predictions": None if request.predictions is None else str(request.predictions),
        "results": results,
    }


def read_data(request: Request, model: LTPPreTrainedModel) -> GLUEDataModule:
    """A data module, tokenised, whose only validation split is the one to evaluate.

    Raises:
        UserError: there is no such split, or data, tokenizer and model do not fit together.
    """
    settings, task = request.settings, request.settings.task
    splits = read_splits(task, settings.data_dir)
    check_labels(request.checkpoint, splits.task)
    available = splits.by_name
    if settings.split in ("test", *splits.task.test_splits):
        available[settings.split] = read_test(splits.task, task, settings.split, settings.data_dir)
        if "label" not in available[settings.split].column_names:
            raise UserError(
                f"split={settings.split}: task={task.name} has no labels for it, so that it cannot be scored. "
                f"python -m ltp.predict restore={settings.restore} split={settings.split} output=FILE labels it."
            )
    if settings.split not in available:
        names = (*available, "test", *splits.task.test_splits)
        raise UserError(
            f"split={settings.split}: task={task.name} has no such split. Splits: {', '.join(dict.fromkeys(names))}"
        )
    tokenizer = load_tokenizer(request.checkpoint, splits.task)
    check_length("task.max_length", task.max_length, model, tokenizer)
    data = GLUEDataModule(
        dataclasses.replace(splits, validation={settings.split: available[settings.split]}),
        tokenizer,
        batch_size=settings.batch_size,
        eval_batch_size=settings.batch_size,
        max_length=task.max_length,
    )
    data.setup("validate")
    return data


def _scaled_models(model: LTPPreTrainedModel, scales: Sequence[float]) -> Iterator[tuple[float, LTPPreTrainedModel]]:
    """Yield the model once per factor, with its thresholds multiplied by it; restores them afterwards."""
    thresholds = model.thresholds
    for scale in scales:
        if thresholds is None:
            yield scale, model
            continue
        learned = thresholds.detach().clone()
        with torch.no_grad():
            thresholds.mul_(scale)
        yield scale, model
        with torch.no_grad():
            thresholds.copy_(learned)

"""``python -m ltp.evaluate``: a finished run on a split. What is computed is :mod:`ltp.evaluation.scoring`'s."""

import dataclasses
import datetime
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from ltp.command.cli import Command, command_line
from ltp.command.output import check_writable, progress
from ltp.errors import UserError, check_choice, check_range, format_value
from ltp.runs.checkpoints import PREDICTIONS_FILE, Checkpoint, inspect_checkpoint
from ltp.runs.loading import (
    StoredTask,
    check_budget,
    check_length,
    load_model,
    load_tokenizer,
    select_device,
    set_threads,
    silence_libraries,
    stored_task,
)
from ltp.runs.settings import TaskSettings

if TYPE_CHECKING:  # Lightning and transformers take seconds to import, and a mistake should not
    from rich.table import Table

    from ltp.data.datamodule import GLUEDataModule
    from ltp.model.classifier import LTPForSequenceClassification

EXECUTIONS = ("packed", "masked", "deployed")
DTYPES = ("float32", "bfloat16", "int8")


@dataclass
class EvaluateSettings:
    """One evaluation; ``python -m ltp.evaluate --help`` says what each key means.

    ``threshold_scale`` (float) is one or a list: :func:`resolve` makes it a list.
    """

    restore: str = MISSING
    budget: float | None = None
    task: TaskSettings | None = None
    data_dir: str | None = None
    split: str = MISSING
    by_length: int | None = None
    threshold_scale: Any = MISSING
    execution: str = MISSING
    dtype: str | None = None
    threads: int | None = None
    device: str = MISSING
    batch_size: int = MISSING
    to: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Request:
    """A checked evaluation.

    Attributes:
        settings: nulls filled as far as small files tell.
        checkpoint: what is evaluated.
        predictions: where every example's prediction goes; None for nowhere.
    """

    settings: EvaluateSettings
    checkpoint: Checkpoint
    predictions: Path | None


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
    report = measure(request)
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


def measure(request: Request) -> dict[str, Any]:
    """Run the model over the split, once a threshold scale, and write the predictions.

    Returns:
        The report. ``results`` holds what :func:`ltp.evaluation.scoring.summarise` returns once a scale, with
        ``threshold_scale``, ``thresholds`` and, where groups were asked for, ``by_length``: the same of each group.

    Raises:
        UserError: model, data or device do not fit.
    """
    from ltp.evaluation.scoring import Engine, by_length, evaluate, summarise, write_predictions
    from ltp.pruning.flops import DEFINITION
    from ltp.runs.summary import describe

    silence_libraries()
    settings, checkpoint = request.settings, request.checkpoint
    assert settings.task is not None and settings.dtype is not None  # resolve filled them
    set_threads(settings.threads)
    device = select_device("cpu" if settings.execution == "deployed" else settings.device)
    model = load_model(checkpoint, settings.budget)
    data = read_data(request, model)
    examples = len(data.splits.validation[settings.split])
    results = []
    with progress(examples * len(settings.threshold_scale)) as advance:
        for scale, scaled in _scaled(model, settings.threshold_scale):
            try:
                engine = Engine.of(scaled, settings.execution, settings.dtype, device)
            except RuntimeError as error:
                raise UserError(f"dtype={settings.dtype}: {error}") from error
            outcome = evaluate(engine, data, model, advance)
            result = {"threshold_scale": scale, **summarise(outcome, data.task, model)}
            result["thresholds"] = None if model.thresholds is None else model.thresholds.tolist()
            if settings.by_length is not None:
                groups = by_length(outcome, settings.by_length)
                result["by_length"] = [summarise(group, data.task, model) for group in groups]
            results.append(result)
    if request.predictions is not None:
        write_predictions(request.predictions, outcome)
    run = checkpoint.results or {}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line("evaluate"),
        "restore": settings.restore,
        "model": checkpoint.name,
        "method": describe(run, model.budget) if "method" in run else model.config.prune_mode,
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


def read_data(request: Request, model: "LTPForSequenceClassification") -> "GLUEDataModule":
    """The wanted split as the only validation split of a data module, tokenised.

    Raises:
        UserError: there is no such split, or data, tokenizer and model do not fit.
    """
    from ltp.data.datamodule import GLUEDataModule
    from ltp.runs.loading import read_splits
    from ltp.runs.plan import check_labels

    settings, task = request.settings, request.settings.task
    assert task is not None
    splits = read_splits(task, settings.data_dir)
    check_labels(request.checkpoint, splits.task)
    main_split = next(iter(splits.validation.values()))
    known = {"validation": main_split, **splits.validation, "train": splits.train}
    if settings.split not in known:
        raise UserError(f"split={settings.split}: task={task.name} has no such split. Splits: {', '.join(known)}")
    tokenizer = load_tokenizer(request.checkpoint)
    check_length("task.max_length", task.max_length, model, tokenizer)
    data = GLUEDataModule(
        dataclasses.replace(splits, validation={settings.split: known[settings.split]}),
        tokenizer,
        batch_size=settings.batch_size,
        eval_batch_size=settings.batch_size,
        max_length=task.max_length,
    )
    data.setup("validate")
    return data


def _scaled(
    model: "LTPForSequenceClassification", scales: Sequence[float]
) -> Iterator[tuple[float, "LTPForSequenceClassification"]]:
    """The model with its thresholds multiplied by each factor in turn."""
    import torch

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


def print_report(report: dict[str, Any]) -> None:
    """Print one table, a row a threshold scale and group of examples, and where the predictions are."""
    from rich.console import Console

    console = Console()
    console.print(report_table(report))
    if report["predictions"] is not None:
        console.print(f"predictions: {report['predictions']}", soft_wrap=True, highlight=False, markup=False)


def report_table(report: dict[str, Any]) -> "Table":
    """The report as a table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from ltp.runs.summary import format_tokens

    results = report["results"]
    computed = f"{report['execution']} {report['dtype']}"
    title = f"{report['task']}, {report['split']} · {report['model']} · {report['method']} · {computed}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    is_scaled = [result["threshold_scale"] for result in results] != [1]
    is_grouped = any("by_length" in result for result in results)
    for name, wanted in (("thresholds", is_scaled), ("input tokens", is_grouped), ("examples", True)):
        if wanted:
            table.add_column(name, justify="right")
    for name in (*results[0]["metrics"], "rel. FLOPs", "GFLOPs"):
        table.add_column(name, justify="right")
    table.add_column("tokens per layer", overflow="fold")

    def add(result: dict[str, Any], scale: float, tokens: str, **style: Any) -> None:
        metrics = ("–" if value is None else f"{value:.4f}" for value in result["metrics"].values())
        cells = [f"× {scale:g}"] * is_scaled + [tokens] * is_grouped + [str(result["examples"]), *metrics]
        costs = (f"{result['relative_flops']:.3f}", f"{result['gflops']:.4g}")
        table.add_row(*cells, *costs, format_tokens(result["tokens_per_layer"], arrow="→"), **style)

    for result in results:
        scale = result["threshold_scale"]
        for group in result.get("by_length", ()):
            add(group, scale, "–".join(map(str, dict.fromkeys(group["input_tokens"]))))
        add(result, scale, "all", end_section=is_grouped, style="bold" if is_grouped else None)
    return table


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

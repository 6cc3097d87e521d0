"""The settings of a prediction, and their checks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ltp.data.files import CLASSIC_FOLDERS
from ltp.data.tasks import SpanTask
from ltp.data.tasks.spans import MAX_N_BEST
from ltp.data.texts import STANDARD_INPUT
from ltp.errors import UserError, check_choice, check_range, format_value
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.loading import StoredTask, check_budget, kind_of_checkpoint, null_threshold, stored_task, task_and_data
from ltp.runs.plan import check_labels, task_of
from ltp.runs.settings import TaskSettings, is_unset, unset_task

SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass
class ProcessSettings:
    """The processes of a prediction (group ``trainer``), with the names of Lightning's Trainer."""

    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"


@dataclass
class PredictSettings:
    """Settings of a prediction; ``python -m ltp.predict --help`` explains the keys."""

    restore: str = MISSING
    budget: float | None = None
    text: str | None = None
    text_pair: str | None = None
    input: str | None = None
    split: str | None = None
    task: TaskSettings = field(default_factory=unset_task)
    data_dir: str | None = None
    submission: str | None = None
    columns: list[str] | None = None
    output: str | None = None
    show: bool = MISSING
    html: str | None = None
    max_length: int | None = None
    n_best: int = MISSING
    batch_size: int = MISSING
    threads: int | None = None
    device: str = MISSING
    trainer: ProcessSettings = field(default_factory=ProcessSettings)
    resume: bool = MISSING

    @property
    def in_parts(self) -> str | None:
        """The key and value for which the output is written in parts; None if it is written at once."""
        processes = self.trainer
        for key in ("devices", "num_nodes"):
            if (value := getattr(processes, key)) != 1:
                return f"trainer.{key}={format_value(value)}"
        return "resume=true" if self.resume else None


def threshold_of(settings: PredictSettings, checkpoint: Checkpoint) -> float | None:
    """Return the threshold by which no answer is predicted, of the task that is known; None without one."""
    stored = stored_task(checkpoint)
    named = settings.task if settings.split is not None else None if stored is None else stored.task
    return null_threshold(named)


def resolve(settings: PredictSettings) -> tuple[PredictSettings, Checkpoint]:
    """Check the settings and fill their nulls. Reads small files only.

    Returns:
        The settings, and the checkpoint to predict with.

    Raises:
        UserError: a value is out of range, keys contradict each other, or the checkpoint does not exist.
    """
    check(settings)
    checkpoint = inspect_checkpoint(settings.restore)
    check_budget(checkpoint, settings.budget)
    kind = kind_of_checkpoint(checkpoint)
    if settings.n_best > 1 and not issubclass(kind, SpanTask):
        raise UserError(f"n_best={settings.n_best} is for answers to questions; restore={settings.restore} gives none")
    stored = stored_task(checkpoint)
    if settings.split is not None:
        settings.task, settings.data_dir = task_and_data(settings.restore, settings.task, settings.data_dir, stored)
        check_split(settings, checkpoint)
        if settings.max_length is None:
            settings.max_length = settings.task.max_length
        return settings, checkpoint
    expected = _text_columns(stored)
    if settings.columns is None and settings.input is not None:
        settings.columns = list(expected or ("text",))
    least, most = (len(expected),) * 2 if expected is not None else (kind.min_texts, kind.max_texts)
    if not least <= _texts_per_row(settings) <= most:
        raise UserError(_wrong_text_count_message(settings, most))
    if settings.max_length is None and stored is not None:
        settings.max_length = stored.task.max_length
    return settings, checkpoint


def check_split(settings: PredictSettings, checkpoint: Checkpoint) -> None:
    """Check that a split can be labelled, and written as a submission.

    Raises:
        UserError: the head does not fit the task, there is no such split, or GLUE takes no submission for it.
    """
    task = task_of(settings.task)
    if task.knows_labels:
        check_labels(checkpoint, task)
    splits = ("train", "validation", *task.validation_splits, "test", *task.test_splits)
    if settings.split not in splits:
        names = ", ".join(dict.fromkeys(splits))
        raise UserError(f"split={settings.split}: task={task.name} has no such split. Splits: {names}")
    if settings.submission is None:
        return
    if task.name not in CLASSIC_FOLDERS:
        raise UserError(f"submission={settings.submission}: GLUE has no task {task.name}; write output=FILE")
    if settings.split not in ("test", *task.test_splits):
        raise UserError(f"submission={settings.submission} is for split=test, not split={settings.split}")
    if settings.task.max_validation_samples is not None:
        raise UserError(
            f"submission={settings.submission} needs the whole split: give task.max_validation_samples=null"
        )


def _text_columns(stored: StoredTask | None) -> tuple[str, ...] | None:
    """The text columns of a run's task; None if the task is unknown."""
    return None if stored is None else task_of(stored.task).text_columns


def _texts_per_row(settings: PredictSettings) -> int:
    if settings.text is not None:
        return 1 if settings.text_pair is None else 2
    assert settings.input is not None and settings.columns is not None  # by check() and resolve()
    has_columns = settings.input != "-" and Path(settings.input).suffix != ".txt"
    return len(settings.columns) if has_columns else 1


def _wrong_text_count_message(settings: PredictSettings, expected: int) -> str:
    reads = f"restore={settings.restore} reads {'a pair of texts' if expected == 2 else 'one text'}"
    if settings.text is not None:
        return f"{reads}: {'give text_pair=… too' if expected == 2 else 'leave text_pair out'}"
    if expected == 2:
        return f"{reads}: give a .csv, .tsv or .jsonl file with two columns, columns=[first,second]"
    return f"{reads}: name one column, columns=[…]"


def check(settings: PredictSettings) -> None:
    """Check each value, and that the keys do not contradict each other.

    Raises:
        UserError: a check failed; names the key, its value and its range.
    """
    if sum(value is not None for value in (settings.text, settings.input, settings.split)) != 1:
        raise UserError(
            "give what is to be classified: either text=… or input=FILE (input=- reads standard input), or split=test"
        )
    if settings.split is None:
        for key, is_given in {
            "submission": settings.submission is not None,
            "data_dir": settings.data_dir is not None,
            "task": not is_unset(settings.task),
        }.items():
            if is_given:
                raise UserError(f"{key} goes with split=…, a split of the run's task")
    if settings.text is None and settings.text_pair is not None:
        raise UserError("text_pair=… goes with text=…; of a file, name two columns: columns=[first,second]")
    if settings.columns is not None and settings.input is None:
        raise UserError(f"columns={format_value(settings.columns)} goes with input=FILE")
    if settings.columns is not None:
        distinct = 1 <= len(set(settings.columns)) == len(settings.columns) <= 2
        check_range(distinct, "columns", settings.columns, "one or two column names")
    if settings.output is not None and Path(settings.output).suffix not in SUFFIXES:
        raise UserError(f"output={settings.output}: unknown format; use one of {', '.join(SUFFIXES)}")
    if settings.html is not None and Path(settings.html).suffix not in (".html", ".htm"):
        raise UserError(f"html={settings.html} is a page: its name must end in .html")
    max_length = settings.max_length
    check_range(max_length is None or max_length >= 4, "max_length", max_length, "4 or more (tokens)")
    check_range(1 <= settings.n_best <= MAX_N_BEST, "n_best", settings.n_best, f"from 1 to {MAX_N_BEST}")
    check_range(settings.batch_size >= 1, "batch_size", settings.batch_size, "1 or more")
    check_range(settings.threads is None or settings.threads >= 1, "threads", settings.threads, "1 or more")
    check_choice("device", settings.device, ("auto", "cpu", "cuda"))
    check_choice("trainer.strategy", settings.trainer.strategy, ("auto", "ddp"))
    check_range(settings.trainer.num_nodes >= 1, "trainer.num_nodes", settings.trainer.num_nodes, "1 or more")
    if settings.in_parts is not None:
        check_parts(settings, settings.in_parts)


def check_parts(settings: PredictSettings, key: str) -> None:
    """Check that an output can be written in parts.

    Raises:
        UserError: there is none, there are others beside it, or the processes cannot all read the input.
    """
    if settings.output is None:
        raise UserError(f"{key} needs output=FILE, beside which the parts are written")
    for other, is_given in {
        "text": settings.text is not None,
        "show": settings.show,
        "html": settings.html is not None,
        "submission": settings.submission is not None,
    }.items():
        if is_given:
            raise UserError(f"{key} is for files of many rows, written to output=FILE alone: leave out {other}=…")
    if settings.input == STANDARD_INPUT and key != "resume=true":
        raise UserError(f"{key}: only one process can read standard input: give input=FILE")

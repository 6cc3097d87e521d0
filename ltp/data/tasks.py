"""Task definitions: text columns, labels and metrics of GLUE's tasks, the demo and custom tasks.

Imports neither torch nor datasets, so that the command line can validate a task's name in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltp.errors import UserError, suggest

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews")
REGRESSION_METRICS = ("pearson", "spearman")
SIZES = ("small", "large")


@dataclass(frozen=True)
class Task:
    """A text classification or regression task.

    Attributes:
        name: The value of `task=`, and the name of the task's directory under `data_dir`.
        text_columns: One or two column names, in the tokenizer's order.
        labels: Label names by id; None for regression, and for a custom task whose file has not been read.
        metrics: Names of the task's metrics, the main one first.
        size: "small" or "large"; selects the training length in recipes.
        lr: Default learning rate for fine-tuning.
        label_column: Name of the column with the label.
        label_range: Smallest and largest label of a regression task; None allows any finite number.
        validation_splits: Names of the validation splits, the main one first.
        numbers_in_submissions: Whether GLUE's submission files hold class ids rather than label names.
    """

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    size: str
    lr: float
    label_column: str = "label"
    label_range: tuple[float, float] | None = None
    validation_splits: tuple[str, ...] = ("validation",)
    numbers_in_submissions: bool = False

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Names of the test splits, the main one first."""
        return tuple(split.replace("validation", "test") for split in self.validation_splits)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return self.main_metric in REGRESSION_METRICS

    @property
    def main_metric(self) -> str:
        """The metric that selects checkpoints and compares runs."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """Width of the classification head; 1 for regression.

        Raises:
            ValueError: The task is custom and its training file has not been read.
        """
        if self.is_regression:
            return 1
        if self.labels is None:
            raise ValueError(f"task {self.name}: labels are known only once the training file was read")
        return len(self.labels)


# Learning rates are from BERT's published grid of 2e-5 to 5e-5. The demo's model is trained from random weights
# and needs a higher one.
_SENTENCE_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_ROWS = (
    Task("rte", _SENTENCE_PAIR, _ENTAILMENT, ("accuracy",), "small", 3e-5),
    Task(
        "mrpc",
        _SENTENCE_PAIR,
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        "small",
        3e-5,
        numbers_in_submissions=True,
    ),
    Task("stsb", _SENTENCE_PAIR, None, ("pearson", "spearman"), "small", 3e-5, label_range=(0.0, 5.0)),
    Task(
        "cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), "small", 2e-5, numbers_in_submissions=True
    ),
    Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "large", 2e-5, numbers_in_submissions=True),
    Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), "large", 2e-5),
    Task(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        "large",
        3e-5,
        numbers_in_submissions=True,
    ),
    Task(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        "large",
        2e-5,
        validation_splits=("validation_matched", "validation_mismatched"),
    ),
    Task("demo", ("sentence",), ("negative", "positive"), ("accuracy",), "small", 5e-4),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def get_task(name: str) -> Task:
    """Return the built-in task of that name.

    Raises:
        UserError: There is none; the message lists similar names and all tasks.
    """
    if name in TASKS:
        return TASKS[name]
    hint = suggest(str(name).lower().replace("-", ""), TASKS)
    raise UserError(f"task={name}: no such task.{hint} Tasks: {', '.join(TASKS)}, custom.")


def custom_task(name: str, *, text_columns: Sequence[str], label_column: str, metric: str, size: str) -> Task:
    """Build a task on the user's own files. Its labels are inferred later from the training file.

    Args:
        name: Name of the task in run directories: letters, digits, `_`, `-`, `.`; not that of a built-in task.
        text_columns: One or two column names.
        label_column: Name of the column with the label.
        metric: The main metric. "pearson" and "spearman" make it a regression task.
        size: "small" or "large"; selects the training length in recipes.

    Raises:
        UserError: An argument is invalid; the message names the key.
    """
    columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns or ())
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"task.name={name}: use letters, digits, '_', '-' and '.' only: it names a directory.")
    if name in TASKS:
        raise UserError(f"task.name={name}: this is a built-in task; give the custom task another name.")
    if not 1 <= len(columns) <= 2 or not all(isinstance(column, str) and column for column in columns):
        raise UserError(
            f"task.text_columns={list(columns)}: name one or two text columns,"
            " for example task.text_columns=[sentence] or task.text_columns=[question,answer]."
        )
    if not label_column:
        raise UserError("task.label_column is empty: name the column that holds the label.")
    if len({*columns, label_column}) <= len(columns):
        raise UserError(
            f"task.text_columns={list(columns)}, task.label_column={label_column}: a column can be named only once."
        )
    if "label" in columns:
        raise UserError(f"task.text_columns={list(columns)}: a text column cannot be called 'label'; rename it.")
    known = CLASSIFICATION_METRICS + REGRESSION_METRICS
    if metric not in known:
        raise UserError(
            f"task.metric={metric}: no such metric. Classification: {', '.join(CLASSIFICATION_METRICS)};"
            f" regression: {', '.join(REGRESSION_METRICS)}."
        )
    if size not in SIZES:
        raise UserError(f"task.size={size}: must be {' or '.join(SIZES)}.")
    second = {"f1": "accuracy", "matthews": "accuracy", "pearson": "spearman", "spearman": "pearson"}
    metrics = (metric, second[metric]) if metric in second else (metric,)
    return Task(name, columns, None, metrics, size, lr=2e-5, label_column=label_column)


def build_metrics(task: Task) -> MetricCollection:
    """Build the task's metric objects, exact for any number of processes.

    Returns:
        A collection keyed by metric name. Its inputs are `(preds, target)`, both of shape (batch,):
        int64 class ids for classification, floats for regression.
    """
    from torchmetrics import Metric, MetricCollection

    from ltp.data.metrics import build_metric

    # compute groups merge metrics whose states are equal after the first batch: accuracy's and F1's can be equal
    # by coincidence
    metrics: dict[str, Metric | MetricCollection] = {name: build_metric(name, task.num_labels) for name in task.metrics}
    return MetricCollection(metrics, compute_groups=False)

"""Tasks: one file each kind of output (`text`, `multilabel`, `tokens`), and one each collection of data sets.

A data set is an instance, in a file of this folder. From outside the package it is found in a module that an entry
point of `ltp.tasks` names, or `plugins=[MODULE]` on the command line: every :class:`Task` of the module is a value of
`task=`. Imports neither torch nor pyarrow, so that the command line can check a task's name in milliseconds.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import re
from collections.abc import Sequence
from types import ModuleType

from ltp.data.tasks.base import Task
from ltp.data.tasks.multilabel import MultiLabelTask
from ltp.data.tasks.ranking import RankingTask
from ltp.data.tasks.spans import SpanTask
from ltp.data.tasks.text import TextTask
from ltp.data.tasks.tokens import TokenTask
from ltp.errors import UserError, suggest

__all__ = [
    *("KINDS", "SIZES", "TASKS", "MultiLabelTask", "RankingTask", "SpanTask", "Task", "TextTask", "TokenTask"),
    *("custom_task", "get_task"),
]

SIZES = ("small", "large")
#: Group of entry points of packages that bring tasks: an entry is a module.
ENTRY_POINTS = "ltp.tasks"
#: Kinds of output of custom tasks, by the value of `task.kind=`.
KINDS: dict[str, type[Task]] = {
    kind.kind: kind for kind in (TextTask, MultiLabelTask, TokenTask, SpanTask, RankingTask)
}
#: Tasks by name; :func:`adopt` fills it.
TASKS: dict[str, Task] = {}


def adopt(module: ModuleType) -> bool:
    """Add the tasks of a module to :data:`TASKS`; return whether it has any.

    Raises:
        ValueError: a task has the name of another one.
    """
    tasks = [value for name, value in vars(module).items() if isinstance(value, Task) and not name.startswith("_")]
    for task in tasks:
        if TASKS.setdefault(task.name, task) != task or task.name == "custom":
            raise ValueError(f"{module.__name__} has a task {task.name!r}, which is there already; name it otherwise")
    return bool(tasks)


for _module in pkgutil.iter_modules(__path__):
    adopt(importlib.import_module(f"{__name__}.{_module.name}"))


@functools.cache
def load_entry_points() -> None:
    """Add the tasks of installed packages.

    Raises:
        UserError: a package cannot be imported, or brings no task.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        source = f"the entry point {entry.name} of {ENTRY_POINTS}, {entry.value}"
        try:
            found = adopt(importlib.import_module(entry.value))
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{source}, cannot be imported: {reason}") from error
        if not found:
            raise UserError(f"{source}, has no task: a task is an instance of a class of ltp.data.tasks")


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        UserError: there is none; the message lists similar names and all tasks.
    """
    if name in TASKS:
        return TASKS[name]
    hint = suggest(str(name).lower().replace("-", ""), TASKS)
    raise UserError(f"task={name}: no such task.{hint} Tasks: {', '.join(TASKS)}, custom.")


def custom_task(
    name: str,
    *,
    text_columns: Sequence[str],
    label_column: str,
    metric: str | None,
    size: str,
    kind: str = TextTask.kind,
) -> Task:
    """Build a task on the user's own files. Its labels are inferred later from the training file.

    Args:
        name: name of the task in run directories: letters, digits, `_`, `-`, `.`; not that of a built-in task.
        text_columns: the columns with the input.
        label_column: name of the column with the label.
        metric: the main metric; None for the kind's first. "pearson" and "spearman" make it a regression task.
        size: "small" or "large"; selects the training length in recipes.
        kind: one of :data:`KINDS`.

    Raises:
        UserError: an argument is invalid; the message names the key.
    """
    if kind not in KINDS:
        raise UserError(f"task.kind={kind}: must be {' or '.join(KINDS)}.")
    task = KINDS[kind]
    columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns or ())
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"task.name={name}: use letters, digits, '_', '-' and '.' only: it names a directory.")
    if name in TASKS:
        raise UserError(f"task.name={name}: this is a built-in task; give the custom task another name.")
    are_names = all(isinstance(column, str) and column for column in columns)
    if not task.min_texts <= len(columns) <= task.max_texts or not are_names:
        wanted, example = (
            "one or two text columns",
            "task.text_columns=[sentence] or task.text_columns=[question,answer]",
        )
        if task.max_texts == 1:
            wanted, example = "one column", "task.text_columns=[tokens]"
        elif task.min_texts == 2:
            wanted, example = "two text columns", f"task.text_columns={task.example_columns}"
        raise UserError(f"task.text_columns={list(columns)}: name {wanted}, for example {example}.")
    if not label_column:
        raise UserError("task.label_column is empty: name the column that holds the label.")
    if len({*columns, label_column}) <= len(columns):
        raise UserError(
            f"task.text_columns={list(columns)}, task.label_column={label_column}: a column can be named only once."
        )
    if "label" in columns:
        raise UserError(f"task.text_columns={list(columns)}: a text column cannot be called 'label'; rename it.")
    metric = metric or task.known_metrics[0]
    if metric not in task.known_metrics:
        raise UserError(f"task.metric={metric}: no such metric. {task.describe_metrics()}.")
    if size not in SIZES:
        raise UserError(f"task.size={size}: must be {' or '.join(SIZES)}.")
    metrics = (metric, *task.companions.get(metric, ()))
    return task(name, columns, None, metrics, size, lr=2e-5, label_column=label_column, is_custom=True)


def kind_of(model_class: str, problem_type: str | None, num_labels: int) -> type[Task]:
    """Return the kind of a model's outputs, from its class, `config.problem_type` and width.

    Raises:
        ValueError: there is none, as for a bare encoder.
    """
    for kind in KINDS.values():
        if kind.fits(model_class, problem_type, num_labels):
            return kind
    raise ValueError(f"a {model_class} predicts nothing")

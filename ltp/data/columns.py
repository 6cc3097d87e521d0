"""Validate the columns of a split and convert them to their final types.

Every error message names the file, the row (counted from 1, header excluded) and the remedy.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ltp.data.tables import is_string
from ltp.data.tasks import TASKS, Task
from ltp.errors import UserError

MAX_LABELS = 1_000
MAX_FRACTIONAL_LABELS = 20  # star ratings in halves are classes; more values than these are measurements


def check_rows(table: pa.Table, task: Task, source: object, *, blank_is_missing: bool) -> pa.Table:
    """Validate a split and convert its columns to their final types.

    Args:
        table: The task's text columns and its label column; other columns are dropped.
        task: The task. Its labels must be known, unless it is a regression task.
        source: The file, for error messages.
        blank_is_missing: Whether a blank text counts as a missing value.

    Returns:
        The text columns (string) and `label`: int64 class ids, or float32 for regression.

    Raises:
        UserError: The split is empty, a text or label is missing, or a label is not in the task's set or range.
    """
    checked = check_texts(table, task, source, blank_is_missing=blank_is_missing)
    labels = _check_labels(table[task.label_column], task.label_column, source)
    convert = _to_float32 if task.is_regression else _to_class_ids
    return checked.append_column("label", convert(labels, task, source))


def check_texts(table: pa.Table, task: Task, source: object, *, blank_is_missing: bool) -> pa.Table:
    """Validate the text columns of a split without labels; see `check_rows`.

    Returns:
        The text columns (string).
    """
    _require_rows(table, source)
    return pa.table({name: _check_texts(table[name], name, source, blank_is_missing) for name in task.text_columns})


def is_unlabelled(table: pa.Table, task: Task) -> bool:
    """Whether every label is -1, as in the hub's test splits of GLUE, or missing."""
    return {str(value) for value in pc.unique(table[task.label_column]).to_pylist()} <= {"-1", "-1.0", "None"}


def infer_labels(table: pa.Table, task: Task, source: object) -> tuple[str, ...]:
    """Return the distinct labels of a custom task's training file: numbers in numerical order, then names, sorted.

    Raises:
        UserError: There are fewer than two labels, the labels look like measurements, or a label is missing.
    """
    _require_rows(table, source)
    column = _check_labels(table[task.label_column], task.label_column, source)
    names = {_label_name(value) for value in pc.unique(column).to_pylist()}
    numbers = {name: _parse_number(name) for name in names}
    fractional = any(number is not None and not number.is_integer() for number in numbers.values())
    if len(names) > MAX_LABELS or (fractional and len(names) > MAX_FRACTIONAL_LABELS):
        raise UserError(
            f"{source}: column {task.label_column!r} holds {len(names)} values such as {min(names)!r}:"
            " numbers to predict rather than classes? Then use task.metric=pearson."
        )
    if len(names) < 2:
        only = f", not only {names.pop()!r}" if names else ""
        raise UserError(f"{source}: column {task.label_column!r} needs at least two different labels{only}.")
    return tuple(sorted(names, key=lambda name: ((number := numbers[name]) is None, number or 0.0, name)))


def _require_rows(table: pa.Table, source: object) -> None:
    if table.num_rows == 0:
        raise UserError(f"{source}: no rows; give a split with at least one example.")


def _check_texts(column: pa.ChunkedArray, name: str, source: object, blank_is_missing: bool) -> pa.ChunkedArray:
    column = pc.dictionary_decode(column)  # pandas' categoricals
    if not is_string(column.type) and not pa.types.is_null(column.type):
        raise UserError(f"{source}: column {name!r} holds {column.type} values, not text.")
    column = column.cast(pa.string())
    missing = pc.is_null(column)
    if blank_is_missing:
        missing = pc.or_kleene(missing, pc.equal(pc.utf8_trim_whitespace(column), ""))
    if (row := _first_row(missing)) is not None:
        raise UserError(f"{source}: row {row} has no text in column {name!r}; fill it in or remove the row.")
    return column


def _check_labels(column: pa.ChunkedArray, name: str, source: object) -> pa.ChunkedArray:
    """Check that no label is missing; strip surrounding whitespace from strings."""
    column = pc.dictionary_decode(column)  # pandas' categoricals
    if is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        missing = pc.or_kleene(pc.is_null(column), pc.equal(column, ""))
    else:
        missing = pc.is_null(column, nan_is_null=True)
    if (row := _first_row(missing)) is not None:
        raise UserError(f"{source}: row {row} has no label in column {name!r}; label it or remove the row.")
    return column


def _to_class_ids(column: pa.ChunkedArray, task: Task, source: object) -> pa.ChunkedArray:
    """Convert label names, or ids of a built-in task, to int64 ids."""
    assert task.labels is not None, "labels are inferred before rows are checked"
    ids = {name: index for index, name in enumerate(task.labels)}
    if task.name in TASKS:
        ids |= {str(index): index for index in range(len(task.labels))}
    distinct = pc.unique(column)
    distinct_ids = pa.array([ids.get(_label_name(value)) for value in distinct.to_pylist()], pa.int64())
    labels = pc.take(distinct_ids, pc.index_in(column, value_set=distinct))
    if (row := _first_row(pc.is_null(labels))) is not None:
        label = _label_name(column[row - 1].as_py())
        if label == "-1" and task.name in TASKS:
            raise UserError(
                f"{source}: row {row} has label -1: the split is unlabelled, as the hub's test splits are;"
                " use a labelled one."
            )
        accepted = [f"{name} ({i})" if task.name in TASKS else name for i, name in enumerate(task.labels)]
        origin = "" if task.name in TASKS else " (from the training file)"
        raise UserError(
            f"{source}: row {row} has label {label!r} in column {task.label_column!r};"
            f" labels of task {task.name}{origin}: {', '.join(accepted)}."
        )
    return labels


def _to_float32(column: pa.ChunkedArray, task: Task, source: object) -> pa.ChunkedArray:
    """Convert the labels of a regression task to float32."""
    try:
        numbers = pc.cast(column, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        rows = (row for row, value in enumerate(column.to_pylist(), start=1) if _parse_number(str(value)) is None)
        first = next(rows, 1)
        raise UserError(
            f"{source}: row {first} has label {column[first - 1].as_py()!r} in column {task.label_column!r};"
            f" task {task.name} needs numbers{_range_text(task)}."
        ) from None
    low, high = task.label_range or (-sys.float_info.max, sys.float_info.max)
    within = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    if (row := _first_row(pc.invert(within))) is not None:
        raise UserError(
            f"{source}: row {row} has label {numbers[row - 1].as_py():g} in column {task.label_column!r};"
            f" task {task.name} needs finite numbers{_range_text(task)}."
        )
    return pc.cast(numbers, pa.float32())


def _range_text(task: Task) -> str:
    return f" from {task.label_range[0]:g} to {task.label_range[1]:g}" if task.label_range else ""


def _label_name(value: Any) -> str:
    """Format a label as text: 1, 1.0, "1" and "1.0" (pandas' form of ids in a column with gaps) all give "1"."""
    if isinstance(value, bool):
        return str(value).lower()
    name = str(value)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def _parse_number(name: str) -> float | None:
    """Parse a finite number; None if the text is not one."""
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _first_row(flags: pa.ChunkedArray) -> int | None:
    """Return the 1-based row of the first true flag; None if there is none."""
    index = pc.index(flags, True).as_py()
    return None if index < 0 else index + 1

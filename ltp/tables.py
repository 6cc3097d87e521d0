"""One file of labelled texts as a checked Arrow table.

Columns are read and checked whole, in Arrow, so that QQP's and MNLI's 400,000 rows take a second or two.
Every message names the file, the row (counted from 1, without the header) and the remedy.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ltp.errors import UserError
from ltp.tasks import TASKS, Task

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")

log = logging.getLogger(__name__)


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a parquet, JSONL, CSV or TSV file, values as they stand in the file.

    CSV and TSV values are strings, and a blank cell is a missing value only to `check_rows`. In TSV files
    quotes are ordinary characters, as in GLUE's. Files are UTF-8.

    Args:
        path: The file; its suffix decides the format.
        columns: Names of the columns wanted. CSV and TSV files have a header line.

    Raises:
        UserError: No such file, another suffix, a missing column, a file that cannot be parsed.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        return _read_parquet(path, columns)
    if path.suffix == ".jsonl":
        return _read_jsonl(path, columns)
    require_columns(path, columns, header(path))
    return read_separated(path, columns)


def header(path: Path) -> list[str]:
    """The fields of a CSV or TSV file's first line.

    Raises:
        UserError: The file is empty or not UTF-8.
    """
    delimiter, quoting = ("\t", csv.QUOTE_NONE) if path.suffix != ".csv" else (",", csv.QUOTE_MINIMAL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines, delimiter=delimiter, quoting=quoting))
    except StopIteration:
        raise UserError(f"{path}: the file is empty.") from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except csv.Error as error:
        raise UserError(f"{path}: cannot be parsed: {error}.") from None


def require_columns(where: object, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Raise a UserError that names the columns missing from `found`, and those named twice."""
    if missing := [column for column in wanted if column not in found]:
        raise UserError(f"{where}: no column {' and '.join(map(repr, missing))}; found: {', '.join(found)}.")
    if double := [column for column in wanted if list(found).count(column) > 1]:
        raise UserError(f"{where}: column {double[0]!r} appears twice.")


def read_separated(
    path: Path, columns: Sequence[str], *, names: Sequence[str] | None = None, skip_broken: bool = False
) -> pa.Table:
    """Read columns, as strings, of a CSV file, or of a tab-separated one with any other suffix than `.csv`.

    Args:
        path: The file.
        columns: Columns wanted, among `names` or the header's.
        names: Names of all columns where the file has no header line.
        skip_broken: Leave out rows with too few or too many fields, with a warning, rather than fail, as long
            as they are fewer than 1 in 100: the hub's GLUE leaves them out too (QQP has some).
    """
    is_csv = path.suffix == ".csv"
    broken: list[pyarrow.csv.InvalidRow] = []

    def on_invalid_row(row: pyarrow.csv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            # one thread: only then do invalid rows know their number; large blocks: a row must fit into one
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=1 << 25, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="," if is_csv else "\t",
                quote_char='"' if is_csv else False,
                newlines_in_values=is_csv,
                invalid_row_handler=on_invalid_row,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns),
                column_types={column: pa.string() for column in columns},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise _not_utf8(path) from None
        raise UserError(f"{path}: cannot be parsed: {_one_line(error)}") from None
    if broken:
        first = broken[0]
        row = f"row {first.number - (0 if names else 1)}" if first.number else "a row"
        fields = f"{row} has {first.actual_columns} fields instead of {first.expected_columns}"
        if not skip_broken or len(broken) * 100 > table.num_rows:
            hint = "quote texts that contain commas" if is_csv else "texts in TSV files cannot hold tabs or line breaks"
            raise UserError(f"{path}: {fields}; {hint}.")
        log.warning("%s: %d broken rows left out, as in the hub's GLUE (%s)", path, len(broken), fields)
    return table


def _read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require_columns(path, columns, file.schema_arrow.names)
            return file.read(columns=list(columns)).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None


def _read_jsonl(path: Path, columns: Sequence[str]) -> pa.Table:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    row = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if not line.strip():
                    continue
                row += 1
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise UserError(f"{path}: row {row} is not a JSON object; each line must be one, as {{...}}.")
                if not record.keys() >= values.keys():
                    require_columns(f"{path}: row {row}", columns, list(record))
                for column, column_values in values.items():
                    column_values.append(record[column])
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: row {row} is not valid JSON: {error.msg} (column {error.colno}).") from None
    return pa.table({column: _json_array(path, column, values[column]) for column in columns})


def _json_array(path: Path, column: str, values: list[Any]) -> pa.Array:
    for row, value in enumerate(values, start=1):
        if isinstance(value, dict | list):
            raise UserError(f"{path}: row {row}: column {column!r} holds {json.dumps(value)[:60]}, not a plain value.")
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers and strings in one column
        return pa.array([None if value is None else str(value) for value in values])


def check_rows(table: pa.Table, task: Task, where: object, *, blank_is_missing: bool) -> pa.Table:
    """Check a split and bring it into its final form.

    Args:
        table: The task's text columns and its label column; other columns are dropped.
        task: Its labels must be known, unless it is a regression task.
        where: The file, for messages.
        blank_is_missing: Whether a blank text is a missing value.

    Returns:
        The text columns (string) and `label`: int64 class ids, or float32 for regression.

    Raises:
        UserError: An empty split; a missing text or label; a label outside the task's set or range.
    """
    require_columns(where, (*task.text_columns, task.label_column), table.column_names)
    if table.num_rows == 0:
        raise UserError(f"{where}: the split is empty: no rows.")
    checked = {name: _texts(table[name], name, where, blank_is_missing) for name in task.text_columns}
    labels = _present(table[task.label_column], task.label_column, where)
    checked["label"] = _numbers(labels, task, where) if task.is_regression else _class_ids(labels, task, where)
    return pa.table(checked)


def infer_labels(table: pa.Table, task: Task, where: object) -> tuple[str, ...]:
    """The distinct labels of a custom task's training file: numbers in numerical order, else alphabetical.

    Raises:
        UserError: Fewer than two labels, labels that look like measurements, or a missing label.
    """
    require_columns(where, (task.label_column,), table.column_names)
    column = _present(table[task.label_column], task.label_column, where)
    names = {_label_name(value) for value in pc.unique(column).to_pylist()}
    numbers = {name: _number(name) for name in names}
    if any(number is not None and not number.is_integer() for number in numbers.values()) or len(names) > 1_000:
        raise UserError(
            f"{where}: column {task.label_column!r} holds {len(names)} distinct values such as {min(names)!r}:"
            f" these look like measurements, not classes; use task.metric=pearson for a regression task."
        )
    if len(names) < 2:
        found = "".join(f" (only {name!r})" for name in names)
        raise UserError(f"{where}: column {task.label_column!r} needs at least two different labels{found}.")
    return tuple(sorted(names, key=lambda name: ((number := numbers[name]) is None, number or 0.0, name)))


def _texts(column: pa.ChunkedArray, name: str, where: object, blank_is_missing: bool) -> pa.ChunkedArray:
    column = _decoded(column)
    if not _is_string(column.type) and not pa.types.is_null(column.type):
        raise UserError(f"{where}: column {name!r} holds {column.type} values, not text.")
    column = column.cast(pa.string())
    missing = pc.is_null(column)
    if blank_is_missing:
        missing = pc.or_kleene(missing, pc.equal(pc.utf8_trim_whitespace(column), ""))
    if (row := _first(missing)) is not None:
        raise UserError(f"{where}: row {row} has no text in column {name!r}; fill it in or remove the row.")
    return column


def _present(column: pa.ChunkedArray, name: str, where: object) -> pa.ChunkedArray:
    """The label column, without a missing value in it; strings without surrounding blanks."""
    column = _decoded(column)
    if _is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        missing = pc.or_kleene(pc.is_null(column), pc.equal(column, ""))
    else:
        missing = pc.is_null(column, nan_is_null=True)
    if (row := _first(missing)) is not None:
        raise UserError(f"{where}: row {row} has no label in column {name!r}; label it or remove the row.")
    return column


def _class_ids(column: pa.ChunkedArray, task: Task, where: object) -> pa.ChunkedArray:
    """Labels given as names, or for built-in tasks as ids, to int64 ids."""
    assert task.labels is not None, "labels are inferred before rows are checked"
    ids = {name: index for index, name in enumerate(task.labels)}
    if task.name in TASKS:
        ids |= {str(index): index for index in range(len(task.labels))}
    distinct = pc.unique(column)
    distinct_ids = pa.array([ids.get(_label_name(value)) for value in distinct.to_pylist()], pa.int64())
    labels = pc.take(distinct_ids, pc.index_in(column, value_set=distinct))
    if (row := _first(pc.is_null(labels))) is not None:
        label = _label_name(column[row - 1].as_py())
        if label == "-1" and task.name in TASKS:
            raise UserError(
                f"{where}: row {row} has label -1: the split is unlabelled, as the hub's test splits are;"
                " use a labelled one."
            )
        accepted = [f"{name} ({i})" if task.name in TASKS else name for i, name in enumerate(task.labels)]
        source = "" if task.name in TASKS else " (from the training file)"
        raise UserError(
            f"{where}: row {row} has label {label!r} in column {task.label_column!r};"
            f" labels of task {task.name}{source}: {', '.join(accepted)}."
        )
    return labels


def _numbers(column: pa.ChunkedArray, task: Task, where: object) -> pa.ChunkedArray:
    """Labels of a regression task to float32."""
    try:
        numbers = pc.cast(column, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        bad = (row for row, value in enumerate(column.to_pylist(), start=1) if _number(str(value)) is None)
        row = next(bad, 1)
        raise UserError(
            f"{where}: row {row} has label {column[row - 1].as_py()!r} in column {task.label_column!r};"
            f" task {task.name} needs numbers{_range_text(task)}."
        ) from None
    low, high = task.label_range or (-sys.float_info.max, sys.float_info.max)
    within = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    if (row := _first(pc.invert(within))) is not None:
        raise UserError(
            f"{where}: row {row} has label {numbers[row - 1].as_py():g} in column {task.label_column!r};"
            f" task {task.name} needs finite numbers{_range_text(task)}."
        )
    return pc.cast(numbers, pa.float32())


def _range_text(task: Task) -> str:
    return f" from {task.label_range[0]:g} to {task.label_range[1]:g}" if task.label_range else ""


def _label_name(value: Any) -> str:
    """A label as text: 1, 1.0, "1" and "1.0" (as pandas writes ids beside missing ones) are all "1"."""
    if isinstance(value, bool):
        return str(value).lower()
    name = str(value)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Categories (pandas' categoricals) as their values."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _first(flags: pa.ChunkedArray) -> int | None:
    """The 1-based row of the first true flag."""
    index = pc.index(flags, True).as_py()
    return None if index < 0 else index + 1


def _not_utf8(path: Path) -> UserError:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return UserError(f"{path}: line {number} is not UTF-8; save the file with the encoding UTF-8.")
    return UserError(f"{path}: the file is not UTF-8; save it with the encoding UTF-8.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

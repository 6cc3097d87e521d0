"""Read the columns of a parquet, JSONL, CSV or TSV file into an Arrow table.

Arrow processes whole columns, so that the 400,000 rows of QQP and MNLI take a second or two.
Every error message names the file, the row (counted from 1, header excluded) and the remedy.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ltp.data import TABLE_SUFFIXES
from ltp.errors import UserError

log = logging.getLogger(__name__)


def read_table(path: Path, columns: Sequence[str], *, remedy: str) -> pa.Table:
    """Read columns of a parquet, JSONL, CSV or TSV file, without converting values.

    CSV and TSV values are strings, including blank cells. In TSV files quotes are ordinary characters, as in
    GLUE's. Files are UTF-8.

    Args:
        path: The file; its suffix determines the format.
        columns: Names of the columns to read. CSV and TSV files need a header line.
        remedy: A sentence with the remedy for a missing column.

    Raises:
        UserError: The file does not exist, has an unknown suffix, lacks a column or cannot be parsed.
    """
    if path.suffix not in TABLE_SUFFIXES:
        raise UserError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(TABLE_SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        return _read_parquet(path, columns, remedy)
    if path.suffix == ".jsonl":
        return _read_jsonl(path, columns, remedy)
    require_columns(path, columns, header(path), remedy)
    return read_separated(path, columns)


def header(path: Path) -> list[str]:
    """Return the fields of a CSV or TSV file's first line.

    Raises:
        UserError: The file is empty, not UTF-8 or cannot be parsed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if path.suffix == ".csv":
                return next(csv.reader(lines))
            return next(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except StopIteration:
        raise UserError(f"{path}: the file is empty.") from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except csv.Error as error:
        raise UserError(f"{path}: cannot be parsed: {error}.") from None


def require_columns(source: object, required: Sequence[str], names: Sequence[str], remedy: str) -> None:
    """Check that each required column occurs exactly once among the column names of a file.

    Args:
        source: The file, for the message.
        required: Required column names.
        names: All column names of the file.
        remedy: A sentence with the remedy for a missing column.

    Raises:
        UserError: Columns are missing, or one occurs twice; the message names them.
    """
    if missing := [column for column in required if column not in names]:
        raise UserError(f"{source}: no column {' and '.join(map(repr, missing))}; found: {', '.join(names)}. {remedy}")
    if duplicates := [column for column in required if list(names).count(column) > 1]:
        raise UserError(f"{source}: column {duplicates[0]!r} appears twice.")


def read_separated(
    path: Path, columns: Sequence[str], *, names: Sequence[str] | None = None, skip_broken: bool = False
) -> pa.Table:
    """Read columns of a CSV or tab-separated file as strings.

    Args:
        path: The file; comma-separated if its suffix is `.csv`, else tab-separated.
        columns: Names of the columns to read, from `names` or the header line.
        names: Names of all columns, for a file without a header line.
        skip_broken: Skip rows with too few or too many fields, with a warning, rather than fail, unless they are
            more than 1 in 100. The hub's GLUE skips them too (QQP has some).

    Raises:
        UserError: The file is not UTF-8 or cannot be parsed, or has broken rows that are not skipped.
    """
    is_csv = path.suffix == ".csv"
    broken: list[pyarrow.csv.InvalidRow] = []

    def on_invalid_row(row: pyarrow.csv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            # one thread: else invalid rows have no number; large blocks: a row must fit into one
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
            hint = "quote texts with commas" if is_csv else "texts in TSV files cannot hold tabs or line breaks"
            raise UserError(f"{path}: {fields}; {hint}.")
        log.warning("%s: %d broken rows left out, as in the hub's GLUE (%s)", path, len(broken), fields)
    return table


def _read_parquet(path: Path, columns: Sequence[str], remedy: str) -> pa.Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require_columns(path, columns, file.schema_arrow.names, remedy)
            return file.read(columns=list(columns)).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None


def _read_jsonl(path: Path, columns: Sequence[str], remedy: str) -> pa.Table:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    row = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if not line.strip():
                    continue
                row += 1
                record = json.loads(line, parse_constant=_parse_constant)
                if not isinstance(record, dict):
                    raise UserError(f"{path}: row {row} is not a JSON object, as every line must be.")
                if not record.keys() >= values.keys():
                    require_columns(f"{path}: row {row}", columns, list(record), remedy)
                for column, column_values in values.items():
                    column_values.append(record[column])
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: row {row} is not valid JSON: {error.msg} (column {error.colno}).") from None
    return pa.table({column: _json_array(path, column, values[column]) for column in columns})


def _parse_constant(name: str) -> float | None:
    """``NaN`` is a missing value."""
    return None if name == "NaN" else float(name)


def _json_array(path: Path, column: str, values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
        if not pa.types.is_nested(array.type):
            return array
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    except UnicodeEncodeError:
        row = next(row for row, value in enumerate(values, start=1) if not _is_unicode(value))
        raise UserError(f"{path}: row {row}: column {column!r} holds half a character (a lone surrogate).") from None
    for row, value in enumerate(values, start=1):
        if isinstance(value, dict | list):
            excerpt = json.dumps(value)[:60]
            raise UserError(f"{path}: row {row}: column {column!r} holds {excerpt}, not a text or number.")
    return pa.array([None if value is None else str(value) for value in values])  # numbers and strings mixed


def _is_unicode(value: Any) -> bool:
    """Whether a value is free of surrogates, which UTF-8 cannot encode."""
    return not isinstance(value, str) or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _not_utf8(path: Path) -> UserError:
    lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    number = next(number for number, line in enumerate(lines, start=1) if not _is_unicode(line))
    return UserError(f"{path}: line {number} is not UTF-8; save the file in that encoding.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

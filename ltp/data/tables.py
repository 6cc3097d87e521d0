"""Read the columns of a parquet, JSONL, CSV or TSV file into an Arrow table.

Arrow processes whole columns, so that the 400,000 rows of QQP and MNLI take a second or two.
Every error message names the file, the row (counted from 1, header excluded) and the remedy.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ltp.data import TABLE_SUFFIXES
from ltp.errors import UserError

log = logging.getLogger(__name__)

_SLICE = 128  # rows that are converted to Python at once: a small dictionary page can hold the same long text often
_BLOCK = 1 << 25  # bytes of a CSV file that are parsed at once; a row must fit into one
_ROW_BYTES = 16  # at least, of a value in memory


def read_table(path: Path, columns: Sequence[str], *, remedy: str, lists: Sequence[str] = ()) -> pa.Table:
    """Read columns of a parquet, JSONL, CSV or TSV file, without converting values.

    CSV and TSV values are strings, including blank cells. In TSV files quotes are ordinary characters, as in
    GLUE's. Files are UTF-8.

    Args:
        path: The file; its suffix determines the format.
        columns: Names of the columns to read. CSV and TSV files need a header line.
        remedy: A sentence with the remedy for a missing column.
        lists: Those that may hold lists of texts or numbers.

    Raises:
        UserError: The file does not exist, has an unknown suffix, lacks a column or cannot be parsed.
    """
    if path.suffix not in TABLE_SUFFIXES:
        raise UserError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(TABLE_SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        return _read_parquet(path, columns, remedy)
    _check_memory(path, path.stat().st_size, "")
    if path.suffix == ".jsonl":
        return _read_jsonl(path, columns, remedy, lists)
    require_columns(path, columns, header(path), remedy)
    return read_separated(path, columns)


def read_records(path: Path, columns: Sequence[str], *, remedy: str) -> Iterator[dict[str, Any]]:
    """Read the rows of a parquet, JSONL, CSV or TSV file with all their columns, part by part.

    Args:
        path, columns, remedy: See `read_table`; `columns` must be there.

    Yields:
        The values of a row by column; strings for CSV and TSV.

    Raises:
        UserError: See `read_table`; or a column name occurs twice.
    """
    if path.suffix == ".jsonl":
        yield from _json_records(path, columns, remedy)
        return
    if path.suffix == ".parquet":
        batches = _parquet_batches(path, columns, remedy)
    else:
        names = header(path)
        require_columns(path, columns, names, remedy)
        require_columns(path, names, names, remedy)
        batches = _separated_batches(path, names)
    for batch in batches:
        for start in range(0, batch.num_rows, _SLICE):
            yield from batch.slice(start, _SLICE).to_pylist()


def _check_memory(path: Path, size: int, what: str) -> None:
    """Check that a file's declared content fits into memory, before it is read.

    Raises:
        UserError: it would take more than half of it.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 2:
        raise UserError(
            f"{path}: {what or 'it'} holds {size / 2**30:,.1f} GiB, more than half of this machine's memory "
            f"({memory / 2**30:,.0f} GiB). Split the file."
        )


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns; of a JSONL file those of its first row.

    Raises:
        UserError: See `read_table`.
    """
    if path.suffix == ".parquet":
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                return file.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None
    if path.suffix == ".jsonl":
        return list(next(_json_records(path, (), ""), {}))
    return header(path)


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
        raise not_utf8(path) from None
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
    broken: list[pyarrow.csv.InvalidRow] = []
    try:
        table = pyarrow.csv.read_csv(path, **_separated_options(path, columns, names, broken))
    except pa.ArrowInvalid as error:
        raise _cannot_be_parsed(path, error) from None
    if broken:
        if not skip_broken or len(broken) * 100 > table.num_rows:
            raise _broken_row(path, broken[0], header_lines=0 if names else 1)
        log.warning(
            "%s: %d broken rows left out, as in the hub's GLUE (%s)",
            *(path, len(broken), _fields(broken[0], header_lines=0 if names else 1)),
        )
    return table


def _separated_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    broken: list[pyarrow.csv.InvalidRow] = []
    try:
        with pyarrow.csv.open_csv(path, **_separated_options(path, columns, None, broken)) as reader:
            for batch in reader:
                if broken:
                    break
                yield batch
    except pa.ArrowInvalid as error:
        raise _cannot_be_parsed(path, error) from None
    if broken:
        raise _broken_row(path, broken[0], header_lines=1)


def _separated_options(
    path: Path, columns: Sequence[str], names: Sequence[str] | None, broken: list[pyarrow.csv.InvalidRow]
) -> dict[str, Any]:
    """Return the options of Arrow's reader; it appends the rows with too few or too many fields to a list."""
    is_csv = path.suffix == ".csv"

    def on_invalid_row(row: pyarrow.csv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    return {
        # one thread: else invalid rows have no number
        "read_options": pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names),
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter="," if is_csv else "\t",
            quote_char='"' if is_csv else False,
            newlines_in_values=is_csv,
            invalid_row_handler=on_invalid_row,
        ),
        "convert_options": pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types={column: pa.string() for column in columns},
            strings_can_be_null=False,
        ),
    }


def _cannot_be_parsed(path: Path, error: pa.ArrowInvalid) -> UserError:
    return not_utf8(path) if "UTF8" in str(error) else UserError(f"{path}: cannot be parsed: {_one_line(error)}")


def _broken_row(path: Path, row: pyarrow.csv.InvalidRow, *, header_lines: int) -> UserError:
    hint = "quote texts with commas" if path.suffix == ".csv" else "texts in TSV files cannot hold tabs or line breaks"
    return UserError(f"{path}: {_fields(row, header_lines=header_lines)}; {hint}.")


def _fields(row: pyarrow.csv.InvalidRow, *, header_lines: int) -> str:
    name = f"row {row.number - header_lines}" if row.number else "a row"
    return f"{name} has {row.actual_columns} fields instead of {row.expected_columns}"


def _read_parquet(path: Path, columns: Sequence[str], remedy: str) -> pa.Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require_columns(path, columns, file.schema_arrow.names, remedy)
            groups = range(file.num_row_groups)
            declared = sum(_declared_bytes(file.metadata.row_group(group), columns) for group in groups)
            _check_memory(path, declared, f"its {file.metadata.num_rows:,} rows:")
        strings = [column for column in columns if is_string(file.schema_arrow.field(column).type)]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=strings) as file:
            table = file.read(columns=list(columns)).replace_schema_metadata(None)
        _check_memory(path, sum(_decoded_bytes(table[column]) for column in strings), "its texts:")
        return pa.table({column: pc.dictionary_decode(table[column]) for column in columns})
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None


def _parquet_batches(path: Path, columns: Sequence[str], remedy: str) -> Iterator[pa.RecordBatch]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            require_columns(path, columns, schema.names, remedy)
            require_columns(path, schema.names, schema.names, remedy)
            for column in columns:
                data_type = schema.field(column).type
                if pa.types.is_nested(data_type) or pa.types.is_binary(data_type):
                    raise UserError(f"{path}: column {column!r} holds {data_type} values, not text.")
            for group in range(file.num_row_groups):
                declared = _declared_bytes(file.metadata.row_group(group), schema.names)
                _check_memory(path, declared, f"row group {group + 1}:")
        strings = [name for name in schema.names if is_string(schema.field(name).type)]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=strings) as file:
            yield from file.iter_batches(batch_size=8 * _SLICE)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None


def is_string(data_type: pa.DataType) -> bool:
    """Whether a column holds text, also one whose texts are dictionary-coded."""
    if pa.types.is_dictionary(data_type):  # pandas' categoricals
        data_type = data_type.value_type
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def _declared_bytes(group: Any, columns: Sequence[str]) -> int:
    """Return what columns of a row group take in memory at least, by the file's own account."""
    leaves = [group.column(index) for index in range(group.num_columns)]
    sizes = [leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] in columns]
    return max(sum(sizes), group.num_rows * _ROW_BYTES * len(columns))


def _decoded_bytes(column: pa.ChunkedArray) -> int:
    """Return the size of the texts of a dictionary-coded column, each as often as it occurs."""
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        total += pc.sum(pc.cast(pc.take(lengths, chunk.indices), pa.int64())).as_py() or 0
    return total


def _read_jsonl(path: Path, columns: Sequence[str], remedy: str, lists: Sequence[str]) -> pa.Table:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for record in _json_records(path, columns, remedy):
        for column, column_values in values.items():
            column_values.append(record[column])
    read = {column: _json_lists if column in lists else _json_array for column in columns}
    return pa.table({column: read[column](path, column, values[column]) for column in columns})


def _json_records(path: Path, columns: Sequence[str], remedy: str) -> Iterator[dict[str, Any]]:
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
                if not record.keys() >= set(columns):
                    require_columns(f"{path}: row {row}", columns, list(record), remedy)
                yield record
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: row {row} is not valid JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise UserError(f"{path}: row {row} is nested too deeply.") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: row {row} is not valid JSON: {_one_line(error)}") from None


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


def _json_lists(path: Path, column: str, values: list[Any]) -> pa.Array:
    """Convert a column that may hold lists; texts and numbers alone are left to :func:`_json_array`."""
    if not any(isinstance(value, list) for value in values):
        return _json_array(path, column, values)
    kinds = {str: "texts", int: "numbers", float: "numbers", bool: "numbers"}
    first: str | None = None
    for row, value in enumerate(values, start=1):
        found = {kinds.get(type(part)) for part in value} if isinstance(value, list) else {None}
        if value is not None and found:
            first = first or next(iter(found))
            if found != {first} or first is None:
                excerpt = json.dumps(value)[:60]
                raise UserError(
                    f"{path}: row {row}: column {column!r} holds {excerpt}, not a list of {first or 'texts'}."
                )
            if not all(map(_is_unicode, value)):
                raise UserError(f"{path}: row {row}: column {column!r} holds half a character (a lone surrogate).")
    return pa.array(values)


def _is_unicode(value: Any) -> bool:
    """Whether a value is free of surrogates, which UTF-8 cannot encode."""
    return not isinstance(value, str) or not any("\ud800" <= letter <= "\udfff" for letter in value)


def not_utf8(path: Path) -> UserError:
    """Return the error of a file that is not UTF-8, with its first such line."""
    lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    number = next(number for number, line in enumerate(lines, start=1) if not _is_unicode(line))
    return UserError(f"{path}: line {number} is not UTF-8; save the file in that encoding.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

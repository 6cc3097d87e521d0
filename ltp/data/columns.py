"""Check the columns of a split.

Every error message names the file, the row (counted from 1, header excluded) and the remedy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ltp.data.tables import is_string
from ltp.errors import UserError


def check_texts(table: pa.Table, names: Sequence[str], source: object, *, blank_is_missing: bool) -> pa.Table:
    """Check columns of texts.

    Args:
        table: the split.
        names: the columns; others are dropped.
        source: the file, for error messages.
        blank_is_missing: whether a blank text counts as a missing value.

    Returns:
        The columns (string).

    Raises:
        UserError: the split is empty, or a text is missing.
    """
    require_rows(table, source)
    return pa.table({name: _check_texts(table[name], name, source, blank_is_missing) for name in names})


def require_rows(table: pa.Table, source: object) -> None:
    """Check that a split has rows."""
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
    if (row := first_row(missing)) is not None:
        raise UserError(f"{source}: row {row} has no text in column {name!r}; fill it in or remove the row.")
    return column


def check_labels(column: pa.ChunkedArray, name: str, source: object) -> pa.ChunkedArray:
    """Check that no label is missing; strip surrounding whitespace from strings."""
    column = pc.dictionary_decode(column)  # pandas' categoricals
    if is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        missing = pc.or_kleene(pc.is_null(column), pc.equal(column, ""))
    else:
        missing = pc.is_null(column, nan_is_null=True)
    if (row := first_row(missing)) is not None:
        raise UserError(f"{source}: row {row} has no label in column {name!r}; label it or remove the row.")
    return column


def label_name(value: Any) -> str:
    """Format a label as text: 1, 1.0, "1" and "1.0" (pandas' form of ids in a column with gaps) all give "1"."""
    if isinstance(value, bool):
        return str(value).lower()
    name = str(value)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def parse_number(name: str) -> float | None:
    """Parse a finite number; None if the text is not one."""
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def first_row(flags: pa.ChunkedArray) -> int | None:
    """Return the 1-based row of the first true flag; None if there is none."""
    index = pc.index(flags, True).as_py()
    return None if index < 0 else index + 1

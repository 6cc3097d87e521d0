"""Tokens alive in each example, as ``python -m ltp.evaluate`` leaves them in a run directory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltp.reporting.rows import Row
from ltp.runs.checkpoints import PREDICTIONS_FILE

_COLUMN = "token_lengths"


class UnreadableError(Exception):
    """A file of predictions that cannot be used; says why."""


def find_predictions(row: Row) -> Path | None:
    """The predictions of the first of a row's runs that has some: they are those of the budget in use."""
    files = (run.directory / PREDICTIONS_FILE for run in row.runs if run.in_use)
    return next((file for file in files if file.is_file()), None)


def read_token_lengths(path: Path) -> np.ndarray:
    """Tokens alive entering each layer, and after the last, (examples, L+1).

    Raises:
        UnreadableError: the file is damaged, of another kind or empty.
    """
    try:
        lengths = pq.read_table(path, columns=[_COLUMN]).column(_COLUMN).to_pylist()
        matrix = np.array(lengths, dtype=float)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise UnreadableError(str(error).splitlines()[0]) from error
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise UnreadableError(f"{_COLUMN} is not one list of numbers an example")
    return matrix

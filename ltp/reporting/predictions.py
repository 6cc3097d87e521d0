"""Tokens alive in each example, from the predictions that ``python -m ltp.evaluate`` writes to a run directory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltp.reporting.rows import Row
from ltp.runs.checkpoints import PREDICTIONS_FILE

_COLUMN = "token_lengths"


class UnreadableError(Exception):
    """A predictions file cannot be used; the message gives the reason."""


def find_predictions(row: Row) -> Path | None:
    """Return the first predictions file among the runs of a row, if the row is of the budget in use."""
    files = (run.directory / PREDICTIONS_FILE for run in row.runs if run.in_use)
    return next((file for file in files if file.is_file()), None)


def read_token_lengths(path: Path) -> np.ndarray:
    """Read the tokens alive entering each layer, and after the last, (examples, L+1) float64.

    Raises:
        UnreadableError: the file is damaged, empty or not a predictions file.
    """
    try:
        lengths = pq.read_table(path, columns=[_COLUMN]).column(_COLUMN).to_pylist()
        matrix = np.array(lengths, dtype=float)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise UnreadableError(str(error).splitlines()[0]) from error
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise UnreadableError(f"{_COLUMN} is not one list of numbers an example")
    return matrix

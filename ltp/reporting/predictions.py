"""Tokens alive in each example, and their labels, from the predictions that ``python -m ltp.evaluate`` writes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltp.reporting.rows import Row
from ltp.runs.checkpoints import PREDICTIONS_FILE


@dataclass(frozen=True)
class Outcomes:
    """What a predictions file says of tokens.

    Attributes:
        lengths: tokens alive entering each layer, and after the last, (examples, L+1) float64.
        layers: of each label of a token the number of layers that the token went through, (M,) int64.
        is_right: whether it is predicted, (M,) bool. M is 0 where texts have labels rather than tokens.
    """

    lengths: np.ndarray
    layers: np.ndarray
    is_right: np.ndarray


_NO_LAYERS = np.empty(0, int)


class UnreadableError(Exception):
    """A predictions file cannot be used; the message gives the reason."""


def find_predictions(row: Row) -> Path | None:
    """Return the first predictions file among the runs of a row, if the row is of the budget in use."""
    files = (run.directory / PREDICTIONS_FILE for run in row.runs if run.in_use)
    return next((file for file in files if file.is_file()), None)


def read_outcomes(path: Path) -> Outcomes:
    """Read a predictions file.

    Raises:
        UnreadableError: the file is damaged, empty or not a predictions file.
    """
    try:
        known = set(pq.read_schema(path).names)
        table = pq.read_table(path, columns=["token_lengths", *({"token_layers", "token_is_right"} & known)])
        matrix = np.array(table["token_lengths"].to_pylist(), dtype=float)
        labels = [
            np.concatenate([np.array(row, dtype) for row in table[name].to_pylist()]) if name in known else empty
            for name, dtype, empty in (("token_layers", int, _NO_LAYERS), ("token_is_right", bool, _NO_LAYERS > 0))
        ]
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise UnreadableError(str(error).splitlines()[0]) from error
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise UnreadableError("token_lengths is not one list of numbers an example")
    return Outcomes(matrix, *labels)

"""Learning curves of runs, from ``metrics.jsonl``."""

import json
import math
from pathlib import Path

from ltp.reporting.rows import Row
from ltp.runs.checkpoints import METRICS_FILE


def learning_curve(row: Row) -> list[tuple[int, float]]:
    """Return the main metric on the validation split by optimiser step, of the first run of a row that has it.

    Returns:
        Steps, ascending, and values; empty if the row was calibrated, or its files are gone or damaged.
    """
    for run in row.runs:
        if not run.is_calibrated and (curve := _read(run.directory / METRICS_FILE, f"val/{run.metric_name}")):
            return curve
    return []


def _read(path: Path, key: str) -> list[tuple[int, float]]:
    curve: dict[int, float] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    step, value = int(record["step"]), float(record[key])
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                    continue  # a line of other values
                if math.isfinite(value):
                    curve[step] = value
    except (OSError, ValueError):
        return []
    return sorted(curve.items())

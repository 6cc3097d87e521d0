"""Read ``results.json``: the only place that does, and that says what is wrong with one."""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ltp.errors import UserError

RESULTS_FILE = "results.json"
_LONGEST_NAME = 100  # characters: it becomes a part of file names
_STRINGS = ("task", "model", "stage", "prune_mode")
#: What makes results comparable.
COMPARED = (*_STRINGS, "seed", "hyperparameters", "metric", "relative_flops")
#: What a summary of a run shows.
SHOWN = (
    *(*COMPARED, "method", "metrics", "gflops", "dense_gflops", "tokens_per_layer", "thresholds"),
    *("device", "duration_seconds"),
)
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(_STRINGS, (str, "a string")),
    **dict.fromkeys(("method", "parent", "parent_run_id", "run_id"), ((str, type(None)), "a string")),
    "seed": (int, "an integer"),
    **dict.fromkeys(("hyperparameters", "metric", "metrics"), (dict, "an object")),
}


class DamagedError(ValueError):
    """A file is not what it should be; the message says how."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DamagedError: the file holds something else, or is no JSON.
    """
    try:
        # earlier versions wrote NaN for a metric that is undefined
        content = json.loads(path.read_bytes().decode("utf-8"), parse_constant=lambda name: None)
    except RecursionError:
        raise DamagedError("not valid JSON: nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise DamagedError(f"not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedError("not a JSON object")
    return content


def read_results(run_dir: Path, required: Collection[str] = ()) -> dict[str, Any]:
    """Read a finished run's ``results.json``.

    Args:
        run_dir: the run directory.
        required: keys that it must have.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / RESULTS_FILE
    try:
        results = read_json(path)
        if error := results_error(results, required):
            raise DamagedError(error)
    except DamagedError as error:
        raise UserError(
            f"{path} is damaged: {error}. Delete it, and start the run's command again to write it anew."
        ) from None
    return results


def results_error(results: dict[str, Any], required: Collection[str]) -> str | None:
    """Check that results have some keys, and the types of those that they have; return the first error, or None."""
    if not results and not required:
        return "it is empty"
    for key in required:
        if key not in results:
            return f"no key {key}"
    for key, (type_, name) in _TYPES.items():
        if key in results and (not isinstance(results[key], type_) or isinstance(results[key], bool)):
            return f"{key} is not {name}"
    for key in ("task", "model"):
        if len(results.get(key, "")) > _LONGEST_NAME:
            return f"{key} has {len(results[key])} characters"
    if "metric" in results:
        metric = results["metric"]
        if not isinstance(metric.get("name"), str):
            return "metric has no name"
        if len(metric["name"]) > _LONGEST_NAME:
            return f"metric has a name of {len(metric['name'])} characters"
        if "value" not in metric or (metric["value"] is not None and not is_number(metric["value"])):  # null: undefined
            return f"metric is {json.dumps(metric.get('value'))}, not a number"
    for key in ("relative_flops", "gflops", "dense_gflops", "duration_seconds"):
        if key in results and not is_number(results[key]):
            return f"{key} is {json.dumps(results[key])}, not a number"
    if error := _list_error(results):
        return error
    budgets = results.get("budgets")
    if budgets is not None and not (isinstance(budgets, list) and all(map(_is_budget, budgets))):
        return "budgets is not a list of results"
    return None


def _list_error(results: dict[str, Any]) -> str | None:
    for key in ("tokens_per_layer", "thresholds"):
        values = results.get(key)
        if values is not None and not (isinstance(values, list) and values and all(map(is_number, values))):
            return f"{key} is not a list of numbers"
    return None


def _is_budget(entry: Any) -> bool:
    match entry:
        case {"budget": budget, "metric": {"name": str(), "value": value}, "relative_flops": cost}:
            return all(map(is_number, (budget, value, cost))) and _list_error(entry) is None
    return False


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False

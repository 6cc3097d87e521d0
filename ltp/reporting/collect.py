"""Every run under some folders, and what else stands there: nothing is left out without a word."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from ltp import __version__
from ltp.runs.checkpoints import CONFIG_FILE, RESULTS_FILE
from ltp.runs.summary import at_budget

UNFINISHED = f"unfinished ({CONFIG_FILE} without {RESULTS_FILE})"
NO_RUN = f"no run (neither {CONFIG_FILE} nor {RESULTS_FILE} in it or below)"
UNREADABLE = f"{RESULTS_FILE} cannot be read"
NO_FOLDER = "cannot be opened"

#: What other commands of ltp write beside the runs.
_PRODUCTS = ("bench", "report")
#: Where runs lie inside a run: a learned run's hard stage, and what was calibrated from it. What else a run directory
#: holds is the run's own.
_INSIDE_RUNS = ("hard", "calibrated")


@dataclass(frozen=True)
class Run:
    """A finished run, or one of its budgets.

    Attributes:
        directory: where it lives, under the folder that was searched.
        results: its ``results.json``; of a budget as :func:`ltp.runs.summary.at_budget` gives it.
        in_use: whether the checkpoint prunes like this unless told otherwise; of a run's budgets one does.
    """

    directory: Path
    results: dict[str, Any] = field(repr=False)
    in_use: bool = True

    def by_budget(self) -> "list[Run]":
        """The run at each of its budgets, ascending; without several the run itself."""
        budgets = self.budgets
        if len(budgets) < 2:
            return [self]
        return [
            Run(self.directory, at_budget(self.results, budget), in_use=budget == budgets[-1]) for budget in budgets
        ]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.results["task"]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.results["model"]

    @property
    def stage(self) -> str:
        """``finetune``, ``soft`` or ``hard``."""
        return self.results["stage"]

    @property
    def seed(self) -> int:
        """The seed."""
        return self.results["seed"]

    @property
    def metric_name(self) -> str:
        """The task's main metric."""
        return self.results["metric"]["name"]

    @property
    def metric(self) -> float:
        """Its value on the validation split."""
        return self.results["metric"]["value"]

    @property
    def relative_flops(self) -> float:
        """Of the dense cost of the same examples."""
        return self.results["relative_flops"]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """As resolved."""
        return self.results["hyperparameters"]

    @cached_property
    def method(self) -> str:
        """``dense``, ``learned``, ``manual`` or ``topk``; results of the first versions do not say it."""
        if self.results.get("method"):
            return self.results["method"]
        mode = self.results["prune_mode"]
        if mode != "absolute_threshold":
            return "dense" if mode == "none" else mode
        is_learned = self.stage == "soft" or self.hyperparameters.get("lambda_threshold") is not None
        return "learned" if is_learned else "manual"

    @property
    def budgets(self) -> list[float]:
        """All that the weights were brought to, ascending, in relative FLOPs; empty without a budget."""
        return [one["budget"] for one in self.results.get("budgets") or ()]

    @property
    def target(self) -> float | None:
        """The budget that these results are about; None where there is none, or they are of a run with several."""
        if len(self.budgets) == 1:
            return self.budgets[0]
        return self.hyperparameters.get("target_flops")

    @property
    def all_budgets(self) -> list[float]:
        """The budgets of the whole run, whichever of them these results are about; empty without one."""
        return self.budgets or ([self.target] if self.target is not None else [])

    @property
    def is_calibrated(self) -> bool:
        """Whether it was brought to its budget without training."""
        return bool(self.results.get("calibrated"))

    @property
    def tokens(self) -> list[float] | None:
        """Mean tokens alive entering each layer, and after the last."""
        return self.results.get("tokens_per_layer")

    @property
    def thresholds(self) -> list[float] | None:
        """One a layer; None where nothing is compared with a threshold."""
        return self.results.get("thresholds")

    @property
    def speedup(self) -> float | None:
        """Measured over its own dense form, where it was measured."""
        match self.results.get("measured_speedup"):
            case {"speedup": {"median": float() | int() as median}}:
                return median
        return None


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no table.

    Attributes:
        path: the folder.
        why: one reason for many.
        detail: what is particular to it; may be empty.
    """

    path: Path
    why: str
    detail: str = ""


@dataclass
class Collection:
    """What stands under some folders."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def collect(folders: Sequence[Path]) -> Collection:
    """Read every run under some folders, in the order of their paths.

    A run that stands there twice (folders that overlap, a copied directory) counts once.
    """
    found = Collection()
    seen: set[Path] = set()
    for folder in folders:
        _search(folder, found, seen)
    by_id: dict[str, Run] = {}
    for run in found.runs:
        first = by_id.setdefault(run.results.get("run_id") or str(run.directory), run)
        if first is not run:
            found.left_out.append(LeftOut(run.directory, "copies of a run", f"of {first.directory}"))
    return Collection(list(by_id.values()), found.left_out)


def _search(folder: Path, found: Collection, seen: set[Path]) -> bool:
    """Add what stands in a folder and below.

    Returns:
        Whether there is a run, or something that was left out for a reason of its own.
    """
    place = folder.resolve()
    if place in seen:  # a link back, or folders that overlap
        return True
    seen.add(place)
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        found.left_out.append(LeftOut(folder, NO_FOLDER, error.strerror or ""))
        return True
    names = {child.name for child in children}
    is_run = bool(names & {CONFIG_FILE, RESULTS_FILE})
    if RESULTS_FILE in names:
        _read(folder, found)
    elif is_run:
        found.left_out.append(LeftOut(folder, UNFINISHED))
    inside = list(_folders(children, is_run))
    empty = [child for child in inside if not _search(child, found, seen)]
    if not is_run and len(empty) == len(inside):
        return False  # named once, by the highest folder without a run
    found.left_out += [LeftOut(child, NO_RUN) for child in empty]
    return True


def _folders(children: Sequence[Path], is_run: bool) -> Iterator[Path]:
    for child in children:
        ours = child.name in _INSIDE_RUNS if is_run else child.name not in _PRODUCTS
        if ours and not child.name.startswith(".") and child.is_dir():
            yield child


def _read(folder: Path, found: Collection) -> None:
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        found.left_out.append(LeftOut(folder, UNREADABLE, error.strerror or ""))
        return
    except (ValueError, RecursionError) as error:
        found.left_out.append(LeftOut(folder, UNREADABLE, f"no JSON: {error}"))
        return
    newer = _newer_version(results)
    wrong = _first_fault(results)
    if newer:
        why = f"written by a newer version of ltp than this one ({__version__})"
        found.left_out.append(LeftOut(folder, why, newer))
    elif wrong:
        found.left_out.append(LeftOut(folder, f"{RESULTS_FILE} is not one of ltp's", wrong))
    else:
        found.runs.append(Run(folder, results))


def _newer_version(results: Any) -> str | None:
    """The version that wrote the results, where it may have changed what a key means: not a mere patch."""
    match results:
        case {"versions": {"ltp": str() as format_value}}:
            try:
                return format_value if Version(format_value).release[:2] > Version(__version__).release[:2] else None
            except InvalidVersion:
                return None
    return None


def _first_fault(results: Any) -> str | None:
    """What keeps results from being compared with others; None where nothing does."""
    if not isinstance(results, dict):
        return "no JSON object"
    for key, kind, words in (
        ("task", str, "a word"),
        ("model", str, "a word"),
        ("stage", str, "a word"),
        ("prune_mode", str, "a word"),
        ("seed", int, "a whole number"),
        ("hyperparameters", dict, "an object"),
        ("metric", dict, "an object"),
    ):
        if key not in results:
            return f"no key {key}"
        if not isinstance(results[key], kind) or isinstance(results[key], bool):
            return f"{key} is not {words}"
    if not isinstance(results["metric"].get("name"), str):
        return "metric has no name"
    for key, value in (("metric", results["metric"].get("value")), ("relative_flops", results.get("relative_flops"))):
        if not _is_number(value):
            return f"{key} is {json.dumps(value)}, not a number"
    for key in ("method", "parent", "parent_run_id", "run_id"):
        if not isinstance(results.get(key, ""), str | None):
            return f"{key} is not a word"
    if wrong := _list_fault(results):
        return wrong
    budgets = results.get("budgets")
    if budgets is not None and not (isinstance(budgets, list) and all(map(_is_budget, budgets))):
        return "budgets is not a list of results"
    return None


def _list_fault(results: dict[str, Any]) -> str | None:
    for key in ("tokens_per_layer", "thresholds"):
        values = results.get(key)
        if values is not None and not (isinstance(values, list) and values and all(map(_is_number, values))):
            return f"{key} is not a list of numbers"
    return None


def _is_budget(entry: Any) -> bool:
    match entry:
        case {"budget": budget, "metric": {"name": str(), "value": value}, "relative_flops": cost}:
            return all(map(_is_number, (budget, value, cost))) and _list_fault(entry) is None
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Search of folders for finished runs. Folders that are left out are recorded with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from ltp import __version__
from ltp.pruning import all_methods, variant_of
from ltp.runs.checkpoints import CONFIG_FILE
from ltp.runs.results import COMPARED, RESULTS_FILE, DamagedError, is_number, read_json, results_error
from ltp.runs.summary import at_budget

UNFINISHED = f"unfinished ({CONFIG_FILE} without {RESULTS_FILE})"
NO_RUN = f"no run (neither {CONFIG_FILE} nor {RESULTS_FILE} in it or below)"
UNREADABLE = f"{RESULTS_FILE} cannot be read"
NO_FOLDER = "cannot be opened"

#: Output folders of other commands, next to the runs.
_OUTPUTS_OF_COMMANDS = ("bench", "report")
#: Folders of a run directory that contain runs: the hard stage of a learned run, and runs calibrated from it.
_NESTED_RUNS = ("hard", "calibrated")


@dataclass(frozen=True)
class Run:
    """A finished run, or one of its budgets.

    Attributes:
        directory: run directory, below the folder that was searched.
        results: ``results.json`` of the run; of one budget as returned by :func:`ltp.runs.summary.at_budget`.
        in_use: whether the checkpoint uses this budget by default; true for exactly one budget of a run.
    """

    directory: Path
    results: dict[str, Any] = field(repr=False)
    in_use: bool = True

    def split_by_budget(self) -> "list[Run]":
        """Return one run per budget, ascending; the run itself if it has fewer than two budgets."""
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
        """Name of the task's main metric."""
        return self.results["metric"]["name"]

    @property
    def metric(self) -> float:
        """Value of the main metric on the validation split."""
        return self.results["metric"]["value"]

    @property
    def other_metrics(self) -> dict[str, float]:
        """Values of the task's other metrics by name; without those that are undefined."""
        metrics = self.results.get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        return {name: value for name, value in metrics.items() if name != self.metric_name and is_number(value)}

    @property
    def label_counts(self) -> list[int] | None:
        """Number of validation examples of each class; None for a regression, and in results of early versions."""
        counts = self.results.get("label_counts")
        is_list = isinstance(counts, list) and len(counts) > 1 and all(map(is_number, counts)) and sum(counts) > 0
        return counts if is_list else None

    @property
    def relative_flops(self) -> float:
        """FLOPs relative to the dense FLOPs of the same examples."""
        return self.results["relative_flops"]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Hyper-parameters, with resolved values."""
        return self.results["hyperparameters"]

    @cached_property
    def method(self) -> str:
        """``dense``, ``learned``, ``manual`` or ``topk``; inferred for results of early versions."""
        if self.results.get("method"):
            return self.results["method"]
        mode = self.results["prune_mode"]
        kind = all_methods().get(mode)
        if kind is None or len(kind.variants) == 1:
            return mode if kind is None else kind.variants[0].name
        learned = (name for name, fact in kind.settings().items() if fact.learned)
        is_learned = self.stage == "soft" or any(self.hyperparameters.get(name) is not None for name in learned)
        return variant_of(kind, learned=is_learned)

    @property
    def budgets(self) -> list[float]:
        """Budgets of the checkpoint, ascending, in relative FLOPs; empty without a budget."""
        return [entry["budget"] for entry in self.results.get("budgets") or ()]

    @property
    def target(self) -> float | None:
        """Budget of these results; None without a budget, or if they cover several budgets."""
        if len(self.budgets) == 1:
            return self.budgets[0]
        return self.hyperparameters.get("target_flops")

    @property
    def all_budgets(self) -> list[float]:
        """Budgets of the whole run, also if these results are of one budget; empty without a budget."""
        return self.budgets or ([self.target] if self.target is not None else [])

    @property
    def is_calibrated(self) -> bool:
        """Whether it reached its budget by calibration, without training."""
        return bool(self.results.get("calibrated"))

    @property
    def tokens(self) -> list[float] | None:
        """Mean tokens alive entering each layer, and after the last."""
        return self.results.get("tokens_per_layer")

    @property
    def thresholds(self) -> list[float] | None:
        """Threshold of each layer; None for methods without thresholds."""
        return self.results.get("thresholds")

    @property
    def speedup(self) -> float | None:
        """Measured speed-up over the same weights without pruning; None if it was not measured."""
        match self.results.get("measured_speedup"):
            case {"speedup": {"median": median}} if is_number(median):
                return median
        return None


@dataclass(frozen=True)
class LeftOut:
    """A folder or file that the report does not use.

    Attributes:
        path: the folder or file.
        why: reason, shared by many entries.
        detail: detail of this entry; may be empty.
    """

    path: Path
    why: str
    detail: str = ""


@dataclass
class Collection:
    """The finished runs found, and the folders left out."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def collect(folders: Sequence[Path]) -> Collection:
    """Read every run in and below some folders, sorted by path.

    A run that is found twice (overlapping folders, a copied directory) is used once.
    """
    collection = Collection()
    seen: set[Path] = set()
    for folder in folders:
        _search(folder, collection, seen)
    by_id: dict[str, Run] = {}
    for run in collection.runs:
        first = by_id.setdefault(run.results.get("run_id") or str(run.directory), run)
        if first is not run:
            collection.left_out.append(LeftOut(run.directory, "copies of a run", f"of {first.directory}"))
    return Collection(list(by_id.values()), collection.left_out)


def _search(folder: Path, collection: Collection, seen: set[Path]) -> bool:
    """Add the runs in and below a folder to a collection.

    Returns:
        False if there is neither a run nor an entry that is left out for another reason.
    """
    resolved = folder.resolve()
    if resolved in seen:  # a symbolic link to a parent, or overlapping folders
        return True
    seen.add(resolved)
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        collection.left_out.append(LeftOut(folder, NO_FOLDER, error.strerror or ""))
        return True
    names = {child.name for child in children}
    is_run = bool(names & {CONFIG_FILE, RESULTS_FILE})
    if RESULTS_FILE in names:
        _read(folder, collection)
    elif is_run:
        collection.left_out.append(LeftOut(folder, UNFINISHED))
    subfolders = list(_subfolders(children, is_run))
    empty = [child for child in subfolders if not _search(child, collection, seen)]
    if not is_run and len(empty) == len(subfolders):
        return False  # only the topmost folder without a run is reported
    collection.left_out += [LeftOut(child, NO_RUN) for child in empty]
    return True


def _subfolders(children: Sequence[Path], is_run: bool) -> Iterator[Path]:
    for child in children:
        may_contain_runs = child.name in _NESTED_RUNS if is_run else child.name not in _OUTPUTS_OF_COMMANDS
        if may_contain_runs and not child.name.startswith(".") and child.is_dir():
            yield child


def _read(folder: Path, collection: Collection) -> None:
    try:
        results = read_json(folder / RESULTS_FILE)
    except OSError as error:
        collection.left_out.append(LeftOut(folder, UNREADABLE, error.strerror or ""))
        return
    except DamagedError as error:
        collection.left_out.append(LeftOut(folder, UNREADABLE, str(error)))
        return
    if newer := _newer_version(results):
        why = f"written by a newer version of ltp than this one ({__version__})"
        collection.left_out.append(LeftOut(folder, why, newer))
    elif problem := results_error(results, COMPARED):
        collection.left_out.append(LeftOut(folder, f"{RESULTS_FILE} is not one of ltp's", problem))
    elif undefined := _undefined(results):
        collection.left_out.append(LeftOut(folder, "the metric is undefined", undefined))
    else:
        collection.runs.append(Run(folder, results))


def _newer_version(results: Any) -> str | None:
    """Return the version that wrote the results if its major or minor version is newer than this one."""
    match results:
        case {"versions": {"ltp": str() as version}}:
            try:
                return version if Version(version).release[:2] > Version(__version__).release[:2] else None
            except InvalidVersion:
                return None
    return None


def _undefined(results: Any) -> str | None:
    """Return why the results' metric has no value; None if it has one, or is malformed."""
    match results:
        case {"metric": {"name": str() as name, "value": None}}:
            reasons = results.get("undefined")
            reason = reasons.get(name) if isinstance(reasons, dict) else None
            return f"{name}: {reason}" if isinstance(reason, str) else name
    return None

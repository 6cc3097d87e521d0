"""Groups of comparable runs (same task, model and validation split), with one row per setting, over all seeds."""

import dataclasses
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltp.pruning import budget_dependent_settings, searched_settings, variants
from ltp.reporting.collect import Run
from ltp.runs.results import is_number

_STAGES = ("finetune", "soft", "hard")
#: The same for all methods: the budget, and how it was reached.
_SHOWN_FOR_ALL = ("target_flops", "budgets", "target_latency_ms", "distill_mode", "calibrated")
_ROUNDING = 1e-9  # metrics that differ by less are equal


@dataclass(frozen=True)
class Spread:
    """Mean over runs, and the sample standard deviation; None for a single run."""

    mean: float
    deviation: float | None = None

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Spread":
        """Compute the spread of one or more values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Split:
    """Task, model and validation split, which comparable runs have in common.

    Attributes:
        task: name of the task.
        model: name of the model.
        metric: name of the main metric.
        max_length: maximum length, in tokens.
        examples: number of validation examples; None if the results do not contain it.
        tokens: mean length of the examples, in tokens; it differs for another split or tokenizer.
        dense_gflops: dense GFLOPs per example; it differs for another architecture with the same model name.
    """

    task: str
    model: str
    metric: str
    max_length: int | None
    examples: int | None
    tokens: float | None
    dense_gflops: float | None


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed; of runs with several budgets, their results at one budget.

    Attributes:
        method: ``dense``, ``learned``, ``manual``, ``topk``.
        variant: of ``target``, ``budgets``, ``calibrated``, ``distilled`` those that apply. Figures draw one curve per
            method and variant.
        stage: ``finetune``, ``soft``, ``hard``.
        runs: the runs, sorted by seed.
        settings: hyper-parameters; those of parent runs are prefixed with their stage, such as ``soft lr``.
        shown_settings: names of the settings that distinguish the row from others of its method and stage.
        metric, relative_flops: spread over the runs.
        other_metrics: the same for the task's other metrics, by name.
        difference: difference of the metric to the dense parent; None without a dense run.
        speedup: measured speed-up; None if it was not measured.
        tokens: mean tokens alive entering each layer, and after the last.
        thresholds: mean threshold of each layer.
        is_superseded: whether it is a soft stage whose hard stage is finished, and is represented by it.
        on_front: whether the row is on the Pareto front of the group (metric, relative FLOPs).
    """

    method: str
    variant: tuple[str, ...]
    stage: str
    runs: tuple[Run, ...]
    settings: dict[str, Any]
    shown_settings: tuple[str, ...]
    metric: Spread
    relative_flops: Spread
    difference: Spread | None
    speedup: Spread | None
    tokens: list[float] | None
    thresholds: list[float] | None
    other_metrics: dict[str, Spread] = field(default_factory=dict)
    is_superseded: bool = False
    on_front: bool = False


@dataclass(frozen=True)
class Group:
    """Comparable rows.

    Attributes:
        split: task, model and validation split of the rows.
        slug: prefix of file names.
        rows: the rows, sorted by method, then by descending cost.
        dense: the best dense row; None without one.
        points: loss of the metric that the summary tolerates, in points (metric × 100).
        majority: metrics of a classifier that always answers with the larger class, by name; empty if the classes of
            the validation examples are not known.
    """

    split: Split
    slug: str
    rows: tuple[Row, ...]
    dense: Row | None
    points: float
    majority: dict[str, float] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """The pruning methods of the rows."""
        return list(dict.fromkeys(row.method for row in self.rows if row.method != "dense"))

    @property
    def variants(self) -> list[tuple[str, tuple[str, ...]]]:
        """The pruning methods of the rows with their variants; those without a variant first."""
        pairs = {(row.method, row.variant) for row in self.rows if row.method != "dense"}
        methods = self.methods
        return sorted(pairs, key=lambda pair: (methods.index(pair[0]), len(pair[1]), pair[1]))

    def cheapest(self, method: str | None = None) -> Row | None:
        """Return the cheapest row (of a method) that loses no more than ``points`` to dense."""
        candidates = [
            row
            for row in self.rows
            if row.method != "dense"
            and not row.is_superseded
            and method in (None, row.method)
            and row.difference is not None
            and 100 * row.difference.mean >= -self.points - _ROUNDING
        ]
        return min(candidates, key=lambda row: (row.relative_flops.mean, -row.metric.mean), default=None)

    def front_of(self, method: str, variant: tuple[str, ...] | None = None) -> list[Row]:
        """Return the Pareto front of a method, or of one of its variants, sorted by cost."""
        front = pareto_front(
            row
            for row in self.rows
            if row.method == method and variant in (None, row.variant) and not row.is_superseded
        )
        return sorted(front, key=lambda row: row.relative_flops.mean)

    def curve_of(self, method: str, variant: tuple[str, ...]) -> list[Row]:
        """Return the points of a variant's trade-off curve, sorted by cost.

        They are its Pareto front; of runs with a budget the best row of each budget, because their costs were asked
        for, and a cheaper row that is better by chance must not hide one of them.
        """
        if "target" not in variant:
            return self.front_of(method, variant)
        best: dict[float, Row] = {}
        for row in self.rows:
            if (row.method, row.variant) == (method, variant) and not row.is_superseded:
                target = row.settings["target_flops"]
                if target not in best or row.metric.mean > best[target].metric.mean:
                    best[target] = row
        return sorted(best.values(), key=lambda row: row.relative_flops.mean)


def compare(runs: Sequence[Run], points: float = 1.0) -> list[Group]:
    """Group comparable runs, sorted by task and model.

    Args:
        runs: finished runs.
        points: see :class:`Group`.
    """
    ancestry = Ancestry(runs)
    groups: dict[Split, list[Run]] = defaultdict(list)
    for run in runs:
        for run_at_budget in run.split_by_budget():
            groups[_split(run_at_budget)].append(run_at_budget)
    _merge_incomplete_splits(groups)
    splits = sorted(groups, key=repr)
    return [
        _group(split, slug, groups[split], ancestry, points) for split, slug in zip(splits, _slugs(splits), strict=True)
    ]


def pareto_front(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that no other row dominates: higher metric, lower relative FLOPs."""
    by_cost: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_cost[row.relative_flops.mean].append(row)
    front: list[Row] = []
    best = float("-inf")
    for cost in sorted(by_cost):
        highest = max(row.metric.mean for row in by_cost[cost])
        if highest > best:
            front += [row for row in by_cost[cost] if row.metric.mean == highest]
            best = highest
    return front


class Ancestry:
    """Parents of runs, found by run id, or by path if the results have no run id.

    Args:
        runs: all finished runs.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._by_id = {run.results["run_id"]: run for run in runs if run.results.get("run_id")}
        self._by_path = {run.directory.resolve(): run for run in runs}
        self._by_tail = {tail: run for run in runs if (tail := _tail(run, run.directory)) is not None}
        self._parents = {
            parent.directory for run in runs if not run.is_calibrated and (parent := self.parent(run)) is not None
        }

    def parent(self, run: Run) -> Run | None:
        """Return the run that a run started from, if it is among the runs."""
        parent_id, name = run.results.get("parent_run_id"), run.results.get("parent")
        if parent_id in self._by_id:
            return self._by_id[parent_id]
        if parent_id is not None or not isinstance(name, str):
            return None  # the parent's path may contain another run by now
        tail = _tail(run, Path(name))
        parent = self._by_path.get(Path(name).resolve()) or (self._by_tail.get(tail) if tail is not None else None)
        return parent if parent is None or parent.directory != run.directory else None

    def is_superseded(self, run: Run) -> bool:
        """Whether a run is a soft stage that a finished hard one started from."""
        return run.stage == "soft" and run.directory in self._parents

    def ancestors(self, run: Run) -> list[Run]:
        """Return the parent of a run, the parent of this parent, and so on."""
        ancestors: list[Run] = []
        parent = self.parent(run)
        while parent is not None and parent not in (run, *ancestors):
            ancestors.append(parent)
            parent = self.parent(parent)
        return ancestors

    def settings(self, run: Run) -> dict[str, Any]:
        """Return the settings of a run and its ancestors (prefixed, such as ``soft lr``), without nulls."""
        settings, ancestors = _run_settings(run), self.ancestors(run)
        trained = run
        while trained.is_calibrated and ancestors:  # the settings are those of the run that was calibrated
            trained = ancestors.pop(0)
        if run.results.get("train_examples") is not None:
            settings["train_examples"] = run.results["train_examples"]
        oldest = trained
        for oldest in ancestors:
            inherited = _run_settings(oldest)
            if oldest.all_budgets == trained.all_budgets:  # the same budget, which the run's own settings contain
                inherited = {key: value for key, value in inherited.items() if key not in ("target_flops", "budgets")}
            settings |= {f"{oldest.stage} {key}": value for key, value in inherited.items()}
        if isinstance(name := oldest.results.get("parent"), str):
            tail = _tail(oldest, Path(name))
            settings["parent"] = _without_seed("/".join(tail[2:]) if tail is not None else Path(name).name)
        return settings

    def dense(self, run: Run) -> Run | None:
        """Return the dense run that a run descends from."""
        return next((ancestor for ancestor in self.ancestors(run) if ancestor.method == "dense"), None)


def _run_settings(run: Run) -> dict[str, Any]:
    """Return the settings of a run, its budget first, without nulls and without values that a search determined."""
    budgets = run.budgets if len(run.budgets) > 1 else None
    settings: dict[str, Any] = {"target_flops": run.target, "budgets": budgets}
    has_budget = run.is_calibrated or run.target is not None or budgets is not None
    omitted = (*(searched_settings(run.method) if has_budget else ()), "trained_for")
    settings |= {name: value for name, value in run.hyperparameters.items() if name not in (*settings, *omitted)}
    if isinstance(teacher := settings.get("distill_teacher"), str):
        settings["distill_teacher"] = _without_seed(teacher)
    settings["calibrated"] = _before_calibration(run) if run.is_calibrated else None
    return {name: value for name, value in settings.items() if value is not None}


def _before_calibration(run: Run) -> dict[str, Any] | bool:
    """Return the settings that determined a calibrated run's cost before calibration; True if there are none."""
    settings = run.hyperparameters
    if (trained_for := settings.get("trained_for")) is not None:
        return {"budgets": sorted(trained_for)} if isinstance(trained_for, list) else {"target_flops": trained_for}
    return {name: settings[name] for name in searched_settings(run.method) if settings.get(name) is not None} or True


def _variant(settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the variant of a row, see :class:`Row`."""
    budget = "budgets" if "budgets" in settings else "target" if "target_flops" in settings else None
    if "calibrated" in settings:
        budget = "calibrated"
    distilled = any(name.rpartition(" ")[2] == "distill_mode" and not name.startswith("finetune") for name in settings)
    return tuple(word for word in (budget, "distilled" if distilled else None) if word is not None)


def _tail(run: Run, directory: Path) -> tuple[str, ...] | None:
    """Return the path of a run from ``<model>/<task>`` on, which does not change if the output folder is moved."""
    parts = directory.parts
    for start in reversed(range(len(parts) - 2)):
        if parts[start : start + 2] == (run.model, run.task):
            return parts[start:]
    return None


def _without_seed(name: str) -> str:
    return re.sub(r"\bseed_\d+", "seed_*", name)


def _split(run: Run) -> Split:
    results = run.results
    examples, dense = results.get("validation_examples"), results.get("dense_gflops")
    length = run.hyperparameters.get("max_length")
    return Split(
        task=run.task,
        model=run.model,
        metric=run.metric_name,
        max_length=length if isinstance(length, int) else None,
        examples=examples if isinstance(examples, int) else None,
        tokens=_six_digits(run.tokens[0]) if run.tokens else None,
        dense_gflops=_six_digits(float(dense or 0)) if is_number(dense) else None,
    )


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def _merge_incomplete_splits(groups: dict[Split, list[Run]]) -> None:
    """Merge groups without a number of examples into the group that is otherwise equal, if there is only one."""
    for split in [split for split in groups if split.examples is None]:
        same = [
            other
            for other in groups
            if other.examples is not None and dataclasses.replace(other, examples=None) == split
        ]
        if len(same) == 1:
            groups[same[0]] += groups.pop(split)


def _slugs(splits: Sequence[Split]) -> list[str]:
    """Return a file name prefix per split: task and model, and other fields if needed to distinguish splits."""
    parts = [
        {
            "": f"{split.task}_{split.model}",
            "metric": split.metric,
            "max_length": f"length{split.max_length}",
            "examples": f"{split.examples}examples",
            "tokens": f"{split.tokens}tokens",
            "dense_gflops": f"{split.dense_gflops}gflops",
        }
        for split in splits
    ]
    slugs = []
    for part in parts:
        alike = [other for other in parts if other[""] == part[""]]
        differing = [part[name] for name in part if len({other[name] for other in alike}) > 1]
        slugs.append(re.sub(r"[^\w.-]", "_", "_".join([part[""], *differing])))
    return slugs


def _group(split: Split, slug: str, runs: Sequence[Run], ancestry: Ancestry, points: float) -> Group:
    by_settings: dict[str, list[Run]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        run_settings = ancestry.settings(run)
        identity = json.dumps([run.method, run.stage, run_settings], sort_keys=True)
        by_settings[identity].append(run)
        settings[identity] = run_settings
    members = {identity: tuple(sorted(same, key=lambda run: run.seed)) for identity, same in by_settings.items()}
    dense_metrics = {
        identity: Spread.from_values([run.metric for run in same])
        for identity, same in members.items()
        if same[0].method == "dense"
    }
    best = max(dense_metrics, key=lambda identity: dense_metrics[identity].mean, default=None)
    fallback = members[best] if best is not None else ()
    shown_settings = _settings_to_show({identity: (same[0], settings[identity]) for identity, same in members.items()})
    directories = {run.directory for run in runs}
    rows = []
    for identity, same in members.items():
        difference = _difference(same, ancestry, directories, fallback)
        rows.append(_row(same, settings[identity], shown_settings[identity], difference, ancestry))
    front = {id(row) for row in pareto_front(row for row in rows if not row.is_superseded)}
    rows = [dataclasses.replace(row, on_front=id(row) in front) for row in rows]
    rows.sort(key=_sort_key)
    dense = max((row for row in rows if row.method == "dense"), key=lambda row: row.metric.mean, default=None)
    return Group(split, slug, tuple(rows), dense, points, _majority(runs))


def _majority(runs: Sequence[Run]) -> dict[str, float]:
    """Return the metrics of the larger class, from the first run that knows the classes of its examples."""
    counts = next((run.label_counts for run in runs if run.label_counts is not None), None)
    if counts is None:
        return {}
    share = max(counts) / sum(counts)
    metrics = {"accuracy": share, "matthews": 0.0}
    if len(counts) == 2:  # of the second class
        metrics["f1"] = 2 * share / (1 + share) if counts[1] == max(counts) else 0.0
    return metrics


def _sort_key(row: Row) -> tuple[Any, ...]:
    known = list(variants())
    method = known.index(row.method) if row.method in known else len(known)
    stage = _STAGES.index(row.stage) if row.stage in _STAGES else len(_STAGES)
    return method, row.method, stage, -row.relative_flops.mean, -row.metric.mean, str(row.runs[0].directory)


def _difference(runs: Sequence[Run], ancestry: Ancestry, directories: set[Path], dense: Sequence[Run]) -> Spread | None:
    """Compute the differences of the metric to dense runs; None for dense runs, or without ``dense``.

    Each run is compared with its own dense parent if this is in the group (in ``directories``), and otherwise with the
    runs of ``dense`` of the same seed, or with the mean of ``dense``.
    """
    if runs[0].method == "dense" or not dense:
        return None
    differences = []
    for run in runs:
        parent = ancestry.dense(run)
        same_seed = [other for other in dense if other.seed == run.seed]
        references = [parent] if parent is not None and parent.directory in directories else same_seed or dense
        differences.append(run.metric - statistics.fmean(reference.metric for reference in references))
    return Spread.from_values(differences)


def _row(
    runs: tuple[Run, ...],
    settings: dict[str, Any],
    shown_settings: tuple[str, ...],
    difference: Spread | None,
    ancestry: Ancestry,
) -> Row:
    first = runs[0]
    speedups = [run.speedup for run in runs if run.speedup is not None]
    return Row(
        method=first.method,
        variant=_variant(settings),
        stage=first.stage,
        runs=runs,
        settings=settings,
        shown_settings=shown_settings,
        metric=Spread.from_values([run.metric for run in runs]),
        relative_flops=Spread.from_values([run.relative_flops for run in runs]),
        difference=difference,
        speedup=Spread.from_values(speedups) if speedups else None,
        tokens=_means([run.tokens for run in runs]),
        thresholds=_means([run.thresholds for run in runs]),
        other_metrics={
            name: Spread.from_values([run.other_metrics[name] for run in runs])
            for name in first.other_metrics
            if all(name in run.other_metrics for run in runs)
        },
        is_superseded=all(map(ancestry.is_superseded, runs)),
    )


def _always_shown(method: str) -> tuple[str, ...]:
    """Return the settings that are shown even if they do not vary: they determine the cost."""
    found = variants().get(method)
    return () if found is None else found.shown


def _means(lists: Sequence[list[float] | None]) -> list[float] | None:
    known = [values for values in lists if values is not None]
    if len(known) != len(lists) or len({len(values) for values in known}) != 1:
        return None
    return [statistics.fmean(column) for column in zip(*known, strict=True)]


def _settings_to_show(rows: dict[str, tuple[Run, dict[str, Any]]]) -> dict[str, tuple[str, ...]]:
    """Return the names of the settings that vary among the rows of a method and stage, for each row."""
    by_method_and_stage: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run, settings in rows.values():
        by_method_and_stage[run.method, run.stage].append(settings)
    varying: dict[tuple[str, str], set[str]] = {}
    for key, alike in by_method_and_stage.items():
        names = {name for settings in alike for name in settings}
        varying[key] = {
            name
            for name in names
            if _varies(name, alike)
            # omit settings of a parent that equal the run's own, such as the temperature of the soft stage
            and not (" " in name and all(settings.get(name) == settings.get(name.split()[1]) for settings in alike))
        }
    return {
        identity: tuple(
            name
            for name in settings
            if name in varying[run.method, run.stage] or name in (*_SHOWN_FOR_ALL, *_always_shown(run.method))
        )
        for identity, (run, settings) in rows.items()
    }


def _varies(name: str, alike: Sequence[dict[str, Any]]) -> bool:
    """Whether a setting has several values among these rows; rows with and without a budget may count separately."""
    stage, space, last = name.rpartition(" ")
    is_optional = last in budget_dependent_settings() or last.startswith(("distill_", "latency_"))
    is_optional = is_optional and last != "distill_mode"
    values: dict[bool, set[str]] = defaultdict(set)
    for settings in alike:
        has_budget = any(f"{stage}{space}{key}" in settings for key in ("target_flops", "budgets"))
        has_budget = has_budget and not (stage == "" and "calibrated" in settings)
        if not is_optional or name in settings:
            values[is_optional and has_budget].add(json.dumps(settings.get(name), sort_keys=True))
    return any(len(different) > 1 for different in values.values())

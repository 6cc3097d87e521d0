"""Comparable runs: a group a task, model and validation split; in it a row for runs that differ in the seed only."""

import dataclasses
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltp.reporting.collect import Run

#: The order of methods in tables; others follow.
METHODS = ("dense", "learned", "manual", "topk")
_STAGES = ("finetune", "soft", "hard")
#: What sets a method's cost: said even where it does not vary.
_ALWAYS_SHOWN = {"topk": ("token_keep_rate",), "manual": ("final_token_threshold",)}
#: The same of any method: what it was brought to, and how.
_SHOWN_OF_ALL = ("target_flops", "budgets", "target_latency_ms", "distill_mode", "calibrated")
#: What a budget replaces or brings its own default of: compared only among rows that were led to one, or to none.
_OF_NO_BUDGET = ("final_token_threshold", "lr_threshold", "temperature")
#: What a budget's search finds, other for every seed, rather than what somebody set.
_FOUND = {"manual": ("final_token_threshold",), "topk": ("token_keep_rate",)}
_ROUNDING = 1e-9  # differences of metrics that are this close are equal


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the sample's standard deviation where there are several."""

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one or more values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Split:
    """What runs must share to be compared.

    Attributes:
        task: its name.
        model: its name.
        metric: the main one.
        max_length: in tokens.
        examples: of the validation split; None in results that do not say it.
        tokens: mean length of its examples: another split, or another tokenizer, has another.
        dense_gflops: the model's dense cost of one: another shape under the same name has another.
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
    """Runs, at one of their budgets where they have several, that differ in the seed only.

    Attributes:
        method: ``dense``, ``learned``, ``manual``, ``topk``.
        variant: what else it is, in words: of ``target``, ``budgets``, ``calibrated``, ``distilled``; figures draw a
            curve for each method and variant.
        stage: ``finetune``, ``soft``, ``hard``.
        runs: by seed.
        settings: hyper-parameters, and those of the runs it started from as ``soft lr``.
        said: the names of those settings that tell it from the other rows of its method and stage.
        metric, relative_flops: over the runs.
        difference: of the metric to the dense parent's; None where there is no dense run.
        speedup: as measured; None where it was not.
        tokens: mean tokens alive entering each layer, and after the last.
        thresholds: means, one a layer.
        is_passed: whether it is a soft stage whose hard stage is finished: that one stands for both.
        on_front: whether no other row of the group is as good and cheaper, or as cheap and better.
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
    is_superseded: bool = False
    on_front: bool = False


@dataclass(frozen=True)
class Group:
    """Rows that can be compared.

    Attributes:
        split: what they share.
        slug: a word for names of files.
        rows: by method, the costly ones first.
        dense: the best dense row.
        points: how much of the metric (in points of a hundred) the summary gives away.
    """

    split: Split
    slug: str
    rows: tuple[Row, ...]
    dense: Row | None
    points: float

    @property
    def methods(self) -> list[str]:
        """The pruning methods among the rows."""
        return list(dict.fromkeys(row.method for row in self.rows if row.method != "dense"))

    @property
    def variants(self) -> list[tuple[str, tuple[str, ...]]]:
        """The pruning methods with their variants among the rows, the plain ones first."""
        found = {(row.method, row.variant) for row in self.rows if row.method != "dense"}
        methods = self.methods
        return sorted(found, key=lambda pair: (methods.index(pair[0]), len(pair[1]), pair[1]))

    def cheapest(self, method: str | None = None) -> Row | None:
        """The paper's summary: the cheapest row (of a method) that loses no more than ``points`` to dense."""
        able = [
            row
            for row in self.rows
            if row.method != "dense"
            and not row.is_superseded
            and method in (None, row.method)
            and row.difference is not None
            and 100 * row.difference.mean >= -self.points - _ROUNDING
        ]
        return min(able, key=lambda row: (row.relative_flops.mean, -row.metric.mean), default=None)

    def front_of(self, method: str, variant: tuple[str, ...] | None = None) -> list[Row]:
        """The Pareto front among the rows of a method, or of one of its variants; the cheap ones first."""
        front = pareto_front(
            row
            for row in self.rows
            if row.method == method and variant in (None, row.variant) and not row.is_superseded
        )
        return sorted(front, key=lambda row: row.relative_flops.mean)


def compare(runs: Sequence[Run], points: float = 1.0) -> list[Group]:
    """Groups of comparable runs, by task and model.

    Args:
        runs: finished runs.
        points: see :class:`Group`.
    """
    ancestry = Ancestry(runs)
    groups: dict[Split, list[Run]] = defaultdict(list)
    for run in runs:
        for each in run.by_budget():
            groups[_split(each)].append(each)
    _join_unrecorded(groups)
    splits = sorted(groups, key=repr)
    return [
        _group(split, slug, groups[split], ancestry, points) for split, slug in zip(splits, _slugs(splits), strict=True)
    ]


def pareto_front(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other one dominates: metric up, relative FLOPs down."""
    by_cost: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_cost[row.relative_flops.mean].append(row)
    front: list[Row] = []
    best = float("-inf")
    for cost in sorted(by_cost):
        top = max(row.metric.mean for row in by_cost[cost])
        if top > best:
            front += [row for row in by_cost[cost] if row.metric.mean == top]
            best = top
    return front


class Ancestry:
    """Which run started from which: by run id, and in results without one by the parent's path.

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
        """The run that a run started from, if it is among the runs."""
        identifier, name = run.results.get("parent_run_id"), run.results.get("parent")
        if identifier in self._by_id:
            return self._by_id[identifier]
        if identifier is not None or not isinstance(name, str):
            return None  # another training may stand at the parent's path by now
        tail = _tail(run, Path(name))
        found = self._by_path.get(Path(name).resolve()) or (self._by_tail.get(tail) if tail is not None else None)
        return found if found is None or found.directory != run.directory else None

    def is_superseded(self, run: Run) -> bool:
        """Whether a run is a soft stage that a finished hard one started from."""
        return run.stage == "soft" and run.directory in self._parents

    def line(self, run: Run) -> list[Run]:
        """A run's parent, its parent, and so on."""
        line: list[Run] = []
        while (parent := self.parent(line[-1] if line else run)) is not None and parent not in (run, *line):
            line.append(parent)
        return line

    def settings(self, run: Run) -> dict[str, Any]:
        """What was set for a run, with what was set for its ancestors as ``soft lr``. Nulls are left out."""
        settings, line = _own_settings(run), self.line(run)
        trained = run
        while trained.is_calibrated and line:  # its settings are those of the run that was calibrated
            trained = line.pop(0)
        if run.results.get("train_examples") is not None:
            settings["train_examples"] = run.results["train_examples"]
        oldest = trained
        for oldest in line:
            above = _own_settings(oldest)
            if oldest.all_budgets == trained.all_budgets:  # held where it was led
                above = {name: value for name, value in above.items() if name not in ("target_flops", "budgets")}
            settings |= {f"{oldest.stage} {name}": value for name, value in above.items()}
        if isinstance(name := oldest.results.get("parent"), str):
            tail = _tail(oldest, Path(name))
            settings["parent"] = _without_seed("/".join(tail[2:]) if tail is not None else Path(name).name)
        return settings

    def dense(self, run: Run) -> Run | None:
        """The dense run that a run descends from."""
        return next((ancestor for ancestor in self.line(run) if ancestor.method == "dense"), None)


def _own_settings(run: Run) -> dict[str, Any]:
    """What was set for a run, its budget first; what was found for the budget is left out, and so are nulls."""
    several = run.budgets if len(run.budgets) > 1 else None
    settings: dict[str, Any] = {"target_flops": run.target, "budgets": several}
    is_led = run.is_calibrated or run.target is not None or several is not None
    found = (*(_FOUND.get(run.method, ()) if is_led else ()), "trained_for")
    settings |= {name: value for name, value in run.hyperparameters.items() if name not in (*settings, *found)}
    if isinstance(teacher := settings.get("distill_teacher"), str):
        settings["distill_teacher"] = _without_seed(teacher)
    settings["calibrated"] = _origin(run) if run.is_calibrated else None
    return {name: value for name, value in settings.items() if value is not None}


def _origin(run: Run) -> dict[str, Any] | bool:
    """How hard a calibrated run pruned before, where something was set for that; else True."""
    given = run.hyperparameters
    if (trained_for := given.get("trained_for")) is not None:
        several = isinstance(trained_for, list)
        return {"budgets": sorted(trained_for)} if several else {"target_flops": trained_for}
    return {name: given[name] for name in _FOUND.get(run.method, ()) if given.get(name) is not None} or True


def _variant(settings: dict[str, Any]) -> tuple[str, ...]:
    """What tells a kind of runs from others of its method: see :class:`Row`."""
    budget = "budgets" if "budgets" in settings else "target" if "target_flops" in settings else None
    if "calibrated" in settings:
        budget = "calibrated"
    distilled = any(name.rpartition(" ")[2] == "distill_mode" and not name.startswith("finetune") for name in settings)
    return tuple(word for word in (budget, "distilled" if distilled else None) if word is not None)


def _tail(run: Run, directory: Path) -> tuple[str, ...] | None:
    """A run's place from ``<model>/<task>`` on: the same in a tree that was moved."""
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
        dense_gflops=_six_digits(dense) if isinstance(dense, int | float) else None,
    )


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def _join_unrecorded(groups: dict[Split, list[Run]]) -> None:
    """Join results that do not say how many examples they saw to those that do, where only one split can be meant."""
    for split in [split for split in groups if split.examples is None]:
        same = [
            other
            for other in groups
            if other.examples is not None and dataclasses.replace(other, examples=None) == split
        ]
        if len(same) == 1:
            groups[same[0]] += groups.pop(split)


def _slugs(splits: Sequence[Split]) -> list[str]:
    """A name for files each: task and model, and what else tells them apart."""
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
        own = ancestry.settings(run)
        identity = json.dumps([run.method, run.stage, own], sort_keys=True)
        by_settings[identity].append(run)
        settings[identity] = own
    members = {identity: tuple(sorted(same, key=lambda run: run.seed)) for identity, same in by_settings.items()}
    dense_metrics = {
        identity: Spread.of([run.metric for run in same])
        for identity, same in members.items()
        if same[0].method == "dense"
    }
    best = max(dense_metrics, key=lambda identity: dense_metrics[identity].mean, default=None)
    fallback = members[best] if best is not None else ()
    shown_settings = _settings_to_show({identity: (same[0], settings[identity]) for identity, same in members.items()})
    here = {run.directory for run in runs}
    rows = []
    for identity, same in members.items():
        difference = _difference(same, ancestry, here, fallback)
        rows.append(_row(same, settings[identity], shown_settings[identity], difference, ancestry))
    front = {id(row) for row in pareto_front(row for row in rows if not row.is_superseded)}
    rows = [dataclasses.replace(row, on_front=id(row) in front) for row in rows]
    rows.sort(key=_order)
    dense = max((row for row in rows if row.method == "dense"), key=lambda row: row.metric.mean, default=None)
    return Group(split, slug, tuple(rows), dense, points)


def _order(row: Row) -> tuple[Any, ...]:
    method = METHODS.index(row.method) if row.method in METHODS else len(METHODS)
    stage = _STAGES.index(row.stage) if row.stage in _STAGES else len(_STAGES)
    return method, row.method, stage, -row.relative_flops.mean, -row.metric.mean, str(row.runs[0].directory)


def _difference(runs: Sequence[Run], ancestry: Ancestry, here: set[Path], dense: Sequence[Run]) -> Spread | None:
    """To each run's own dense parent, where that was scored on the same examples; else to the group's ``dense``."""
    if runs[0].method == "dense" or not dense:
        return None
    differences = []
    for run in runs:
        own = ancestry.dense(run)
        same_seed = [other for other in dense if other.seed == run.seed]
        against = [own] if own is not None and own.directory in here else same_seed or dense
        differences.append(run.metric - statistics.fmean(other.metric for other in against))
    return Spread.of(differences)


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
        metric=Spread.of([run.metric for run in runs]),
        relative_flops=Spread.of([run.relative_flops for run in runs]),
        difference=difference,
        speedup=Spread.of(speedups) if speedups else None,
        tokens=_means([run.tokens for run in runs]),
        thresholds=_means([run.thresholds for run in runs]),
        is_superseded=all(map(ancestry.is_superseded, runs)),
    )


def _means(lists: Sequence[list[float] | None]) -> list[float] | None:
    known = [values for values in lists if values is not None]
    if len(known) != len(lists) or len({len(values) for values in known}) != 1:
        return None
    return [statistics.fmean(column) for column in zip(*known, strict=True)]


def _settings_to_show(rows: dict[str, tuple[Run, dict[str, Any]]]) -> dict[str, tuple[str, ...]]:
    """The names of the settings that vary among the rows of a method and stage, for each row."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run, settings in rows.values():
        kinds[run.method, run.stage].append(settings)
    varying: dict[tuple[str, str], set[str]] = {}
    for kind, alike in kinds.items():
        names = {name for settings in alike for name in settings}
        varying[kind] = {
            name
            for name in names
            if _varies(name, alike)
            # a hard run has its soft run's temperature
            and not (" " in name and all(own.get(name) == own.get(name.split()[1]) for own in alike))
        }
    return {
        identity: tuple(
            name
            for name in settings
            if name in varying[run.method, run.stage] or name in (*_SHOWN_OF_ALL, *_ALWAYS_SHOWN.get(run.method, ()))
        )
        for identity, (run, settings) in rows.items()
    }


def _varies(name: str, alike: Sequence[dict[str, Any]]) -> bool:
    """Whether a setting tells some of these rows apart, among those for which it means the same."""
    stage, space, last = name.rpartition(" ")
    is_optional = last in _OF_NO_BUDGET or last.startswith(("distill_", "latency_"))
    is_optional = is_optional and last != "distill_mode"
    values: dict[bool, set[str]] = defaultdict(set)
    for settings in alike:
        led = any(f"{stage}{space}{key}" in settings for key in ("target_flops", "budgets"))
        led = led and not (stage == "" and "calibrated" in settings)
        if not is_optional or name in settings:
            values[is_optional and led].add(json.dumps(settings.get(name), sort_keys=True))
    return any(len(different) > 1 for different in values.values())
